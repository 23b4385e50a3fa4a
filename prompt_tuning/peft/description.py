"""Methods in words: what a prompt file says of the methods whose leaves it holds."""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence

from prompt_tuning.errors import UserError
from prompt_tuning.peft.method import Method

_PACKAGE = 'prompt_tuning.peft.'


def describe(methods: Sequence[Method]) -> list[dict]:
  """Methods as JSON values: each one's class and fields, but for what sets first values.

  Example:
    >>> from prompt_tuning.peft.model_tuning import ModelTuning
    >>> describe([ModelTuning()])
    [{'class': 'prompt_tuning.peft.model_tuning.ModelTuning'}]
  """
  return [{'class': f'{type(method).__module__}.{type(method).__qualname__}', **_fields(method)}
          for method in methods]


def metadata(methods: Sequence[Method]) -> dict:
  """What a prompt file says of its methods: their names, and their settings."""
  return {'method': ','.join(type(method).__name__ for method in methods),
          'methods': describe(methods)}


def rebuild(descriptions, source: str) -> tuple[Method, ...]:
  """The methods that `describe` described.

  Only classes of this package are looked up: a file must not choose what is imported.

  Args:
    descriptions: what the file holds.
    source: the file, for messages.

  Raises:
    UserError: a method that this version does not know, or settings it does not take.
  """
  if not isinstance(descriptions, list) or not descriptions:
    raise UserError(f'{source} describes its methods as {descriptions!r}. The file is damaged.')
  return tuple(_rebuild(description, source) for description in descriptions)


def _rebuild(description, source) -> Method:
  fields = dict(description) if isinstance(description, Mapping) else {}
  name = str(fields.pop('class', None))
  module, _, kind = name.rpartition('.')
  try:
    if not module.startswith(_PACKAGE):
      raise ImportError(f'it is not one of {_PACKAGE}*')
    found = getattr(importlib.import_module(module), kind)
    if not issubclass(found, Method):
      raise TypeError('it is no method')
    # Lists are what JSON makes of tuples; a method has to be hashable.
    return found(**{key: tuple(value) if isinstance(value, list) else value
                    for key, value in fields.items()})
  except (ImportError, AttributeError, TypeError) as error:
    raise UserError(f'{source} was written by the method {name}, which cannot be built here: '
                    f'{error}. Update prompt-tuning, or configure the method yourself.') from None


def _fields(method) -> dict:
  """{field: value} of the plain ones; an initialiser, an object of its own, is none."""
  values = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
  return {name: list(value) if isinstance(value, tuple) else value
          for name, value in values.items() if _is_plain(value)}


def _is_plain(value) -> bool:
  if isinstance(value, tuple):
    return all(_is_plain(item) for item in value)
  return value is None or isinstance(value, str | int | float)


def differences(ours: Sequence[Method], theirs: Sequence[Method]) -> list[str]:
  """Settings in which methods differ and that the shapes of their leaves do not show."""
  return [f'{type(mine).__name__}.{name} is {getattr(other, name)!r} in the file and '
          f'{getattr(mine, name)!r} in the configuration'
          for mine, other in zip(ours, theirs, strict=False) if type(mine) is type(other)
          for name in mine.unseen if getattr(mine, name) != getattr(other, name)]
