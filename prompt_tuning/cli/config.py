"""From flags to one configured object: gin files, overrides, and what is wrong with them."""

import ast
import collections.abc
import contextlib
import dataclasses
import difflib
import inspect
import os
import pathlib
import re
import tokenize
import types
import typing
from collections.abc import Iterator, Sequence

import gin
from gin import config as gin_config
from gin import config_parser
from prompt_tuning.errors import UserError

_MACRO = 'gin.macro'


def gin_root() -> pathlib.Path:
  """The folder of the gin files: inside an installed package, or beside it in a checkout."""
  package = pathlib.Path(__file__).resolve().parent.parent
  installed = package / 'gin'
  return installed if installed.is_dir() else package.parent / 'gin'


def parse(
    files: Sequence[str],
    overrides: Sequence[tuple[str, str]] = (),
    search_paths: Sequence[str] = (),
    bindings: Sequence[tuple[str, str]] = (),
    more_files: Sequence[str] = (),
) -> None:
  """Parses gin files, then overrides, and locks the configuration.

  Args:
    files: gin files in order; a later binding wins. Looked up in the working directory, in
      `search_paths`, in the project's gin folder.
    overrides: (name, value) from `--gin.NAME=VALUE`; a value that is no gin literal is a string.
    search_paths: folders where gin files and their includes are looked up.
    bindings: (name, gin value) of the caller's own, after the files and before the overrides.
    more_files: gin files after the bindings.

  Raises:
    UserError: a file is not there or does not parse; a name is unknown; a macro has no value.
  """
  gin.clear_config()
  _set_search_paths(search_paths)
  for file in files:
    parse_file(file)
  for name, value in bindings:
    _bind(name, value)
  for file in more_files:
    parse_file(file)
  for name, value in overrides:
    _override(name, value)
  _require_all_macros()
  with _user_errors():
    gin.finalize()


def parse_file(file: str) -> None:
  """Parses one gin file and what it includes into the current configuration."""
  with _user_errors(f'gin file {file}'):
    try:
      gin.parse_config_file(file)
    except OSError as error:
      missing = re.search(r'Unable to open file: (.*?)\. Searched', str(error))
      raise UserError(_no_such_file(missing.group(1) if missing else file)) from None


def build(configurable, file: str = ''):
  """Calls a configured class or function with the bindings that the files and flags made.

  Args:
    configurable: the class or function.
    file: the gin file that binds it, named where it has no bindings.
  """
  registered = gin_config._inverse_lookup(configurable)
  if registered is None or ('', registered.selector) not in gin_config._CONFIG:
    raise UserError(f'Nothing is configured: add --gin_file={file} after the gin files of a model, '
                    'a method and a task. See --help for a whole command.')
  with _user_errors():
    built = gin.get_configurable(configurable)()
    check_types(built)
  return built


def check_types(instance) -> None:
  """Refuses text where a number is needed, and the like, in a dataclass and those inside it.

  gin binds whatever it is given; without this, BATCH_SIZE=many would fail somewhere deep down.

  Raises:
    UserError: naming the field.
  """
  hints = typing.get_type_hints(type(instance))
  for field in dataclasses.fields(instance):
    value, allowed = getattr(instance, field.name), hints[field.name]
    if not _is_a(value, allowed):
      raise UserError(f'{field.name} of {type(instance).__name__} is {value!r}; allowed: '
                      f'{_in_words(allowed)}.')
    for part in value if isinstance(value, tuple | list) else (value,):
      # Only what gin files and flags configure; what a task is made of is its author's code.
      if dataclasses.is_dataclass(part) and gin_config._inverse_lookup(type(part)) is not None:
        check_types(part)


def check_range(name: str, value, low: float, high: float | None = None) -> None:
  """Refuses a number outside [low, high]; anything but a number is left to check_types.

  Raises:
    UserError: naming the macro `name`.
  """
  if isinstance(value, int | float) and not (low <= value and (high is None or value <= high)):
    allowed = f'{low} or more' if high is None else f'{low} to {high}'
    raise UserError(f'{name} is {value}; give {allowed}.')


def _is_a(value, allowed) -> bool:
  """Whether a value fits a type hint; the inside of a mapping is not looked at."""
  origin = typing.get_origin(allowed) or allowed
  if origin is typing.Any:
    return True
  if origin in (types.UnionType, typing.Union):
    return any(_is_a(value, kind) for kind in typing.get_args(allowed))
  if origin is tuple:
    kinds = typing.get_args(allowed)
    return isinstance(value, tuple | list) and (
        kinds[-1] is not Ellipsis or all(_is_a(part, kinds[0]) for part in value))
  if isinstance(value, bool):  # which Python counts among the whole numbers
    return allowed not in (int, float)
  if origin is float:
    return isinstance(value, int | float)
  return isinstance(value, origin) if isinstance(origin, type) else True


def _in_words(allowed) -> str:
  origin = typing.get_origin(allowed) or allowed
  kinds = [kind for kind in typing.get_args(allowed) if kind is not Ellipsis]
  if origin in (types.UnionType, typing.Union):
    return ' or '.join(map(_in_words, kinds))
  if origin is tuple:
    return f'a list of {", ".join(map(_in_words, kinds))}'
  if origin is collections.abc.Callable:
    return 'a function, such as @module.Name() of a gin file'
  return {type(None): 'None'}.get(allowed, getattr(origin, '__name__', str(origin)))


def text() -> str:
  """All bindings, flattened: a gin file that configures the same run again."""
  return gin.config_str(max_line_length=100)


def operative_text() -> str:
  """The bindings that were read, with the defaults of everything that was built."""
  return gin.operative_config_str(max_line_length=100)


def bindings() -> dict[str, str]:
  """{name: value as text} of every binding: macros, and parameters with their scope and module."""
  return {
      '/'.join(filter(None, (scope, *([] if selector == _MACRO else [f'{selector}.{name}'])))):
      repr(value)
      for (scope, selector), values in gin_config._CONFIG.items() for name, value in values.items()}


def default(name: str) -> str | None:
  """What a parameter of `bindings` is where nothing binds it, as text; None: not known."""
  selector, _, parameter = name.rpartition('/')[2].rpartition('.')
  registered = gin_config._REGISTRY.get_match(selector) if selector else None
  known = {} if registered is None else inspect.signature(registered.wrapped).parameters
  value = known[parameter].default if parameter in known else inspect.Parameter.empty
  return None if value is inspect.Parameter.empty else repr(value)


def macro(name: str, default=None):
  """The value of a macro that is defined, else `default`."""
  if (name, _MACRO) not in gin_config._CONFIG:
    return default
  return gin.query_parameter(f'{name}/macro.value')


def plain(value: str) -> str:
  """The text of an override: without quotes where they were given."""
  try:
    return str(ast.literal_eval(value))
  except (SyntaxError, ValueError):
    return value


def is_literal(value: str) -> bool:
  """Whether gin can read the text of a value: a Python literal, `@reference` or `%MACRO`."""
  try:
    parser = config_parser.ConfigParser(value, _Names())
    parser.parse_value()
    rest = parser._current_token
  except (SyntaxError, ValueError, tokenize.TokenError):
    return False
  return rest.type in (tokenize.ENDMARKER, tokenize.NEWLINE)


class _Names(config_parser.ParserDelegate):
  """Accepts every reference and macro: reads syntax only."""

  def configurable_reference(self, scoped_configurable_name, evaluate):
    return scoped_configurable_name

  def macro(self, macro_name):
    return macro_name


def _override(name: str, value: str) -> None:
  """Binds one `--gin.NAME=VALUE`, where NAME is a macro or `module.Class.parameter`."""
  if '.' not in name and name not in _known_macros():
    raise UserError(_unknown_name(name))
  before = macro(name)
  with _user_errors(f'--gin.{name}={value}'):
    _bind(name, value if is_literal(value) else repr(value))
  if isinstance(before, bool | int | float) and isinstance(macro(name), str):
    raise UserError(f'--gin.{name}={value}: text is given and {type(before).__name__} is needed, '
                    f'as in {before!r}.')


def _bind(name: str, value: str) -> None:
  # A binding outside a file knows no module unless the files' imports are repeated before it.
  imports = gin_config.ImportManager(gin_config._IMPORTS).sorted_imports
  gin.parse_config([*(statement.format() for statement in imports), f'{name} = {value}'])


def _defined_macros() -> set[str]:
  return {scope for scope, selector in gin_config._CONFIG if selector == _MACRO}


def _used_macros() -> set[str]:
  references = gin_config.iterate_references(gin_config._CONFIG)
  return {'/'.join(ref.scopes) for ref in references if ref.config_key[1] == _MACRO}


def _known_macros() -> set[str]:
  return _defined_macros() | _used_macros()


def _unknown_name(name: str) -> str:
  known = sorted(_known_macros())
  near = difflib.get_close_matches(name.upper(), known, n=3, cutoff=0.5)
  nearest = f' Nearest: {", ".join(near)}.' if near else ''
  everything = ', '.join(known) or 'none: give --gin_file first'
  return f'--gin.{name}: no parsed gin file defines or uses {name}.{nearest} Known: {everything}.'


def _require_all_macros() -> None:
  missing = sorted(_used_macros() - _defined_macros())
  if missing:
    flags = ' '.join(f'--gin.{name}=...' for name in missing)
    raise UserError(f'No value for {", ".join(missing)}. Give {flags} or a gin file that sets it.')


def _no_such_file(name: str) -> str:
  root = gin_root()
  known = sorted(path.relative_to(root).as_posix() for path in root.rglob('*.gin'))
  near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
  nearest = f' Nearest: {", ".join(near)}.' if near else ''
  searched = ', '.join(os.path.abspath(prefix) for prefix in gin_config._LOCATION_PREFIXES)
  return f'No gin file {name}. Searched: {searched}.{nearest}'


def _set_search_paths(search_paths: Sequence[str]) -> None:
  for path in search_paths:
    if not os.path.isdir(path):
      raise UserError(f'--gin_search_paths: no folder {path}. Give existing folders.')
  gin_config._LOCATION_PREFIXES[:] = ['', *search_paths, str(gin_root())]
  # gin would also take `models/` for an importable package of that name and look inside it.
  gin_config._FILE_READERS[:] = [(open, os.path.isfile)]


@contextlib.contextmanager
def _user_errors(where: str = '') -> Iterator[None]:
  """Turns what gin says about wrong bindings into one line.

  gin reports a wrong name, type or value by raising whatever it met (ValueError, NameError,
  TypeError, SyntaxError ...) with its own explanation appended, so the kind of the error tells
  nothing and its first line the most.
  """
  try:
    yield
  except UserError as error:
    # gin appends its call stack to every message that passes through it.
    raise UserError(str(error).split('\n  In call to configurable')[0]) from None
  except (SyntaxError, NameError, ImportError, AttributeError, TypeError, ValueError) as error:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = lines[0] if lines else type(error).__name__
    near = [line for line in lines[1:] if line.startswith(('In ', 'Failed', 'Near'))]
    raise UserError(': '.join(filter(None, (where, message))) +
                    (f' ({near[0]})' if near else '')) from error
