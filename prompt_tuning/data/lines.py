"""Text of a file piece by piece and line by line, never more of it in memory than a row.

UTF-8 with or without a byte order mark; a line ends in LF or CRLF and nowhere else (U+2028, NEL
and the like are characters of a text). What is not such a text ends in a UserError that begins
with `file:line`.
"""

import codecs
import contextlib
import gzip
import io
import itertools
import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from prompt_tuning.errors import UserError

MAX_ROW = 2**24  # characters; the limit keeps a file without line ends out of memory
_PIECE = 2**18  # bytes
BOM = '\ufeff'
_SIGNATURES = {
    b'\x1f\x8b': 'It begins like a gzip file: let its name end in .gz.',
    b'PK\x03\x04': 'It begins like a zip file or a spreadsheet: save its table as CSV.',
    codecs.BOM_UTF16_LE: 'It begins like UTF-16: save it as UTF-8.',
    codecs.BOM_UTF16_BE: 'It begins like UTF-16: save it as UTF-8.',
}


@contextlib.contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
  """A file's bytes; those of a `.gz` unpacked.

  Raises:
    UserError: the file cannot be read.
  """
  try:
    file = open(path, 'rb')  # noqa: SIM115 (closed below; only opening is in the try)
  except OSError as error:
    raise UserError(f'{path}: cannot be read: {error.strerror or error}.') from None
  with file, gzip.open(file) if path.lower().endswith('.gz') else file as unpacked:
    yield unpacked


def lines(file: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
  """(line number from 1, line with its line end) of each line.

  Args:
    file: bytes, as from `opened`.
    name: of the file, for messages.

  Raises:
    UserError: see `pieces`; or a line of more than MAX_ROW characters.
  """
  return enumerate(split(pieces(file, name), name), 1)


def split(pieces: Iterable[str], name: str) -> Iterator[str]:
  """The lines, with their line ends, of a text in parts."""
  return itertools.chain.from_iterable(_blocks(pieces, name))


def _blocks(pieces: Iterable[str], name: str) -> Iterator[list[str]]:
  """Lists of whole lines: a step of a Python generator for each line would take half the time."""
  number = 1
  begun, size = [], 0  # parts of a line whose end has not come yet
  for piece in filter(None, pieces):  # a byte order mark alone leaves an empty one
    block = io.StringIO(piece, newline='\n').readlines()  # splitlines() knows other ends
    begun.append(block[0])
    size += len(block[0])
    if size > MAX_ROW:
      raise too_long(name, number)
    if piece.endswith('\n'):
      rest = []
    else:
      rest = [block.pop()] if len(block) > 1 else None
    if rest is not None:
      block[0] = ''.join(begun)
      begun, size = rest, sum(map(len, rest))
      yield block
      number += len(block)
  if begun:
    yield [''.join(begun)]


def too_long(name: str, place: int | str) -> UserError:
  """The error about a row that is taken for a mistake."""
  return UserError(
      f'{name}:{place}: a row of more than {MAX_ROW:,} characters begins here. Expected are rows '
      'that end in line feeds (Unix or Windows line ends), and shorter texts.')


def pieces(file: BinaryIO, name: str) -> Iterator[str]:
  """Yields the text of a file in parts, without a byte order mark at its beginning.

  Raises:
    UserError: invalid UTF-8, a NUL, a broken gzip file.
  """
  decoder = codecs.getincrementaldecoder('utf-8')()
  number, in_line = 1, 0  # the line at the end of what was decoded, bytes of it so far
  head = b''
  beginning = True
  while True:
    data = _read(file, name, number)
    head = head or data[:4]
    try:
      text = decoder.decode(data, final=not data)
    except UnicodeDecodeError as error:
      place = _place(error.object[:error.start], number, in_line)
      raise _no_text(name, *place, f'byte {error.object[error.start]:#04x}', 'is not UTF-8',
                     head) from None
    nul = text.find('\0')
    if nul >= 0:
      place = _place(text[:nul].encode(), number, in_line)
      raise _no_text(name, *place, 'a NUL', 'is no text', head)
    if text:
      yield text.removeprefix(BOM) if beginning else text
      beginning = False
      last = text.rfind('\n') + 1
      number += text.count('\n')
      in_line = len(text[last:].encode()) + (0 if last else in_line)
    if not data:
      return


def _read(file: BinaryIO, name: str, number: int) -> bytes:
  try:
    read = getattr(file, 'read1', file.read)  # what is there, before a broken end shows
    return read(_PIECE)
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise UserError(
        f'{name}:{number}: the gzip file is broken from here on: {error}. Expected a whole gzip '
        'file; pack or copy it again.') from None
  except OSError as error:
    raise UserError(f'{name}:{number}: cannot be read from here on: {error.strerror or error}.'
                    ) from None


def _place(before: bytes, number: int, in_line: int) -> tuple[int, int]:
  """(line, position in it) of what follows these bytes; line `number` has had `in_line` bytes."""
  found = before.count(b'\n')
  return number + found, len(before) - before.rfind(b'\n') - 1 + (0 if found else in_line)


def _no_text(name: str, number: int, position: int, found: str, what: str, head: bytes):
  hint = next((text for start, text in _SIGNATURES.items() if head.startswith(start)),
              'Save the file as UTF-8 text (iconv -t utf-8).')
  return UserError(f'{name}:{number}: {found} at position {position} {what}. {hint}')
