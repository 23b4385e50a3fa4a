"""JSON objects of a file: one a line, or all in one list, which is read object by object.

Stricter than the json module where it would make something of a mistake: names that stand twice
in an object (the last one would win), NaN and Infinity, halves of surrogate pairs.
"""

import collections
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from prompt_tuning.data import lines
from prompt_tuning.errors import UserError, excerpt, listed

Row = dict[str, Any]

_SPACE = ' \t\n\r'  # of JSON; str.strip() would take more
_NO_SPACE = re.compile(r'[^ \t\n\r]')
_SURROGATE = re.compile(r'\\u[dD][89a-fA-F]')
_MAX_DEPTH = 100
_EXPECTED = 'a JSON object such as {"text": "...", "label": "..."}'


class _Refused(ValueError):
  """Valid for the json module, and refused here."""


def _object(pairs: list[tuple[str, Any]]) -> Row:
  row = dict(pairs)
  if len(row) < len(pairs):
    times = collections.Counter(name for name, _ in pairs)
    repeated = [name for name in row if times[name] > 1]
    raise _Refused(f'a JSON object has the name {listed(repeated)} more than once; expected each '
                   'name once')
  return row


def _constant(name: str):
  raise _Refused(f'{name} is no JSON; expected a number, or null')


# Made once: json.loads builds a decoder at each call that has options.
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def parse(line: str, name: str, number: int) -> Row:
  """The JSON object that a line holds.

  Args:
    line: the text.
    name: of the file, for messages.
    number: of the line, for messages.

  Raises:
    UserError: anything but one object.
  """
  text = line.strip(_SPACE)
  try:
    value, end = _decode(text, 0)
    if end < len(text):
      raise json.JSONDecodeError('more text after the JSON value', text, end)
    if '[' in text or text.rfind('{') > 0 or '\\u' in text:  # rare, and quick to find out
      _check(value, text, 0, end)
  except json.JSONDecodeError as error:
    raise UserError(f'{name}:{number}: {_message(error, f" at column {error.colno}")} Expected '
                    f'one JSON object on each line.{_hint(text)}') from None
  except _Refused as error:
    raise UserError(f'{name}:{number}: {error}.') from None
  if not isinstance(value, dict):
    raise UserError(f'{name}:{number}: expected {_EXPECTED}, found {excerpt(text)}.')
  return value


def in_lines(numbered: Iterable[tuple[int, str]], name: str) -> Iterator[tuple[str, Row]]:
  """Yields (line, row) of JSON lines; blank lines are left out."""
  for number, line in numbered:
    if line and not line.isspace():
      yield str(number), parse(line, name, number)


def in_list(pieces: Iterator[str], name: str, alone: bool = True, columns: tuple[str, ...] = (),
            ) -> Iterator[tuple[str, Row]]:
  """Yields (line:column where it begins, row) of one JSON list of objects.

  Args:
    pieces: the text in parts.
    name: of the file, for messages.
    alone: whether nothing may follow the list; what follows is not looked at otherwise.
    columns: names of the values where rows are lists; () refuses lists.

  Raises:
    UserError: the text is no list of objects.
  """
  text = _Text(pieces, name)
  separator = text.take('[')
  if text.peek() == ']':
    separator = text.take(']')
  while separator != ']':
    is_list = text.peek() == '[' and columns
    place = text.place
    row = text.value('[' if is_list else '{')
    if is_list and len(row) != len(columns):
      raise UserError(f'{name}:{place}: a row of {len(row)} values; expected {len(columns)}: '
                      f'{listed(columns)}.')
    yield place, dict(zip(columns, row, strict=True)) if is_list else row
    separator = text.take(',]')
  if alone and text.peek():
    raise UserError(f'{name}:{text.place}: expected nothing after the list of rows, found '
                    f'{text.rest()}.')


class _Text:
  """A text of which the part that is being read is in memory."""

  def __init__(self, pieces: Iterator[str], name: str):
    self._pieces = pieces
    self._name = name
    self._held = ''
    self._at = 0
    self._line = 1
    self._line_start = 0  # in what is held, negative for a line that began before

  @property
  def place(self) -> str:
    """line:column, both from 1."""
    return f'{self._line}:{self._at - self._line_start + 1}'

  def peek(self) -> str:
    """The next character that is no space, '' at the end."""
    while True:
      found = _NO_SPACE.search(self._held, self._at)
      self._advance(found.start() if found else len(self._held))
      if found or not self._grow():
        return found[0] if found else ''

  def take(self, allowed: str) -> str:
    """Goes past the next character, which has to be one of these."""
    character = self.peek()
    if not character or character not in allowed:
      raise UserError(f'{self._name}:{self.place}: expected {" or ".join(allowed)} of a JSON list, '
                      f'found {self.rest()}.')
    self._advance(self._at + 1)
    return character

  def value(self, begins: str) -> Any:
    """Goes past the next value, which has to begin so: an object or a list."""
    if self.peek() != begins:
      raise UserError(f'{self._name}:{self.place}: expected {_EXPECTED}, found {self.rest()}.')
    while True:
      try:
        value, end = _decode(self._held, self._at)
        _check(value, self._held, self._at, end)
        break
      except json.JSONDecodeError as error:  # broken, or not all of it is here
        size, broken_at = len(self._held) - self._at, error.pos - self._at
        if size > lines.MAX_ROW and broken_at > size // 2:
          raise lines.too_long(self._name, self.place) from None
        if size > lines.MAX_ROW or not self._grow():
          self._advance(self._at + broken_at)
          raise UserError(f'{self._name}:{self.place}: {_message(error)} Expected a list of JSON '
                          'objects.') from None
      except _Refused as error:
        raise UserError(f'{self._name}:{self.place}: {error}.') from None
    self._advance(end)
    return value

  def rest(self) -> str:
    """What follows, for messages."""
    return excerpt(self._held[self._at:self._at + 100].rstrip(_SPACE)) if self.peek() else (
        'the end of the file')

  def _advance(self, to: int):
    ends = self._held.count('\n', self._at, to)
    if ends:
      self._line += ends
      self._line_start = self._held.rindex('\n', self._at, to) + 1
    self._at = to

  def _grow(self) -> bool:
    """Takes in at least as much as is held, so that all attempts at a row take linear time."""
    parts = [self._held[self._at:]]
    wanted = max(len(parts[0]), 1)
    for piece in self._pieces:
      parts.append(piece)
      wanted -= len(piece)
      if wanted <= 0:
        break
    self._line_start -= self._at
    self._held, self._at = ''.join(parts), 0
    return len(parts) > 1


def _decode(text: str, at: int) -> tuple[Any, int]:
  """(value, its end); raises json.JSONDecodeError or _Refused."""
  try:
    return _DECODER.raw_decode(text, at)
  except (json.JSONDecodeError, _Refused):
    raise
  except RecursionError:
    raise _Refused(f'JSON nested deeper than {_MAX_DEPTH} levels; expected flat objects') from None
  except ValueError:  # int() has a limit of digits
    raise _Refused('a number of thousands of digits; expected numbers, or quoted text') from None


def _check(value: Any, text: str, at: int, end: int):
  """Refuses what the decoder takes and later code cannot write: deep JSON, half characters."""
  if text.count('[', at, end) + text.count('{', at, end) > _MAX_DEPTH and _is_deep(value):
    raise _Refused(f'JSON nested deeper than {_MAX_DEPTH} levels; expected flat objects')
  if _SURROGATE.search(text, at, end):
    try:
      json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
      raise _Refused('half of a surrogate pair (\\ud800 to \\udfff) is no character; expected '
                     'both halves, or the character itself') from None


def _is_deep(value: Any) -> bool:
  """Whether lists and objects are nested deeper than _MAX_DEPTH; without recursion."""
  level = [value]
  for _ in range(_MAX_DEPTH):
    level = [child for item in level if isinstance(item, dict | list)
             for child in (item.values() if isinstance(item, dict) else item)]
  return any(isinstance(item, dict | list) for item in level)


def _message(error: json.JSONDecodeError, column: str = '') -> str:
  around = error.doc[max(error.pos - 30, 0):error.pos + 30]
  return f'not valid JSON: {error.msg.removesuffix(" at")}{column}, near {excerpt(around)}.'


def _hint(text: str) -> str:
  if '\r' in text:
    return ' The line has a carriage return inside: are these old Mac line ends?'
  if text.startswith(lines.BOM):
    return ' The line begins with a byte order mark: were two files joined?'
  if text in '{[':
    return ' One value over several lines is read from a list in a file called .json.'
  return ''
