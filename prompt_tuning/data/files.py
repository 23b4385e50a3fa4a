"""Rows of one JSONL, JSON, TSV or CSV file, each with its line number.

A byte order mark, CRLF line ends and gzip are read as they come. Whatever else is wrong with a file
ends in a UserError that begins with `file:line`.
"""

import csv
import difflib
import gzip
import hashlib
import json
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

from prompt_tuning.errors import UserError

FORMATS = ('jsonl', 'json', 'tsv', 'csv')
_FORMAT_OF_SUFFIX = {
    '.jsonl': 'jsonl', '.ndjson': 'jsonl', '.json': 'json', '.tsv': 'tsv', '.txt': 'tsv',
    '.csv': 'csv'}
_MAX_CSV_FIELD = 2**24  # the standard library stops at 128 KiB, less than a long document

Row = dict[str, Any]


def read_rows(
    path: str | os.PathLike, file_format: str | None = None, skip_short_rows: bool = False,
) -> Iterator[tuple[int, Row]]:
  """Yields (line number from 1, row) of a file.

  Args:
    path: the file; a last suffix `.gz` is unpacked.
    file_format: one of FORMATS; None reads it off the suffix. TSV has no quoting, CSV the standard
      one; both begin with a line of column names.
    skip_short_rows: leave out TSV rows with too few columns (a few published files have some).

  Raises:
    UserError: no such file, broken gzip, invalid UTF-8, broken JSON or CSV, a row that does not
      have the header's columns, a file without rows.
  """
  path = os.fspath(path)
  check_file(path)
  readers = {'jsonl': _jsonl, 'json': _json, 'tsv': _tsv, 'csv': _csv}
  rows = readers[file_format or format_of(path)](path)
  count = 0
  for line, row in rows:
    if row is None:
      if not skip_short_rows:
        raise UserError(f'{path}:{line}: this row has fewer columns than the first line names.')
      continue
    count += 1
    yield line, row
  if not count:
    raise UserError(f'{path} holds no rows. Give a file with at least one example.')


def format_of(path: str) -> str:
  """File format by suffix."""
  suffixes = [s.lower() for s in pathlib.PurePath(path).suffixes]
  if suffixes and suffixes[-1] == '.gz':
    suffixes.pop()
  if not suffixes or suffixes[-1] not in _FORMAT_OF_SUFFIX:
    raise UserError(
        f'{path}: the file format is read off the suffix, which has to be one of '
        f'{", ".join(_FORMAT_OF_SUFFIX)} (each also with .gz).')
  return _FORMAT_OF_SUFFIX[suffixes[-1]]


def content_hash(path: str | os.PathLike) -> str:
  """sha256 (hex) of a file's bytes."""
  check_file(os.fspath(path))
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def check_file(path: str):
  """Raises UserError where there is no such file, naming the nearest one beside it."""
  if os.path.isfile(path):
    return
  folder = os.path.dirname(path) or '.'
  if os.path.isdir(path):
    raise UserError(f'{path} is a folder; give the path of one file.')
  if not os.path.isdir(folder):
    raise UserError(f'There is no file {path!r}: its folder does not exist.')
  near = difflib.get_close_matches(os.path.basename(path), os.listdir(folder), n=3, cutoff=0.5)
  hint = f' Did you mean {", ".join(near)}?' if near else ''
  raise UserError(f'There is no file {path!r}.{hint}')


def _lines(path: str) -> Iterator[tuple[int, str]]:
  """Yields (line number, decoded line with its line end)."""
  number = 0
  try:
    with (gzip.open(path, 'rb') if path.endswith('.gz') else open(path, 'rb')) as f:
      for number, line in enumerate(f, 1):
        if number == 1:
          line = line.removeprefix(b'\xef\xbb\xbf')
        try:
          yield number, line.decode('utf-8')
        except UnicodeDecodeError as error:
          raise UserError(
              f'{path}:{number}: byte {line[error.start]:#04x} at position {error.start} is not '
              'UTF-8. Save the file as UTF-8 (iconv -t utf-8).') from None
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise UserError(f'{path}: the gzip file is broken after line {number}: {error}') from None
  except OSError as error:
    raise UserError(f'{path}: cannot be read: {error.strerror or error}') from None


def _jsonl(path: str) -> Iterator[tuple[int, Row]]:
  for number, line in _lines(path):
    if line.strip():
      yield number, _json_object(_parse_json(line, path, number), path, number, line)


def _json(path: str) -> Iterator[tuple[int, Row]]:
  """A list of objects; or JSON lines in a file that is called .json, as many are."""
  first = next((line for _, line in _lines(path) if line.strip()), '')
  if not first.lstrip().startswith('['):
    yield from _jsonl(path)
    return
  text = ''.join(line for _, line in _lines(path))
  rows = _parse_json(text, path, None)
  for number, row in enumerate(rows, 1):
    yield number, _json_object(row, path, number, repr(row))


def _parse_json(text: str, path: str, number: int | None) -> Any:
  try:
    value = json.loads(text)
    if '\\u' in text:  # an escaped half of a surrogate pair is no text; found before it is used
      json.dumps(value, ensure_ascii=False).encode('utf-8')
    return value
  except json.JSONDecodeError as error:
    where = error.lineno if number is None else number
    raise UserError(
        f'{path}:{where}: not valid JSON: {error.msg} at column {error.colno}: '
        f'{_excerpt(text)}. Expected one JSON object on each line.') from None
  except UnicodeEncodeError:
    raise UserError(
        f'{path}:{number or 1}: holds half of a surrogate pair (\\ud800 to \\udfff), which is no '
        'character.') from None


def _json_object(value: Any, path: str, number: int, text: str) -> Row:
  if not isinstance(value, dict):
    raise UserError(
        f'{path}:{number}: expected a JSON object such as {{"text": "...", "label": "..."}}, '
        f'found {_excerpt(text)}.')
  return value


def _tsv(path: str) -> Iterator[tuple[int, Row | None]]:
  columns = None
  for number, line in _lines(path):
    line = line.removesuffix('\n').removesuffix('\r')
    if columns is None:
      columns = _header(line.split('\t'), path, number)
    elif line:
      yield number, _table_row(columns, line.split('\t'), path, number)


def _csv(path: str) -> Iterator[tuple[int, Row | None]]:
  csv.field_size_limit(_MAX_CSV_FIELD)
  reader = csv.reader((line for _, line in _lines(path)), strict=True)
  columns = None
  try:
    for values in reader:
      if columns is None:
        columns = _header(values, path, reader.line_num)
      elif values:
        yield reader.line_num, _table_row(columns, values, path, reader.line_num)
  except csv.Error as error:
    raise UserError(
        f'{path}:{reader.line_num}: not valid CSV: {error}. Fields that hold quotes, commas or '
        'line ends have to be quoted with ", and a quote inside is doubled.') from None


def _header(columns: list[str], path: str, number: int) -> list[str]:
  repeated = sorted({c for c in columns if columns.count(c) > 1})
  if repeated:
    raise UserError(
        f'{path}:{number}: the first line has to name the columns, each once; it repeats '
        f'{", ".join(map(repr, repeated))}.')
  return columns


def _table_row(columns: list[str], values: list[str], path: str, number: int) -> Row | None:
  if len(values) < len(columns):
    return None
  if len(values) > len(columns):
    raise UserError(
        f'{path}:{number}: this row has {len(values)} columns, the first line names '
        f'{len(columns)}: {", ".join(columns)}.')
  return dict(zip(columns, values, strict=True))


def _excerpt(text: str, size: int = 60) -> str:
  text = text.strip()
  return repr(text if len(text) <= size else text[:size] + '...')
