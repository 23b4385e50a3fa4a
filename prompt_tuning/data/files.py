"""Rows of one JSONL, JSON, TSV or CSV file, each with the place where it begins.

A byte order mark, CRLF line ends and gzip are read as they come; blank lines are left out. Whatever
else is wrong with a file ends in a UserError that begins with `file:line`. A file is read as it is
used: one row is in memory, whatever its size.
"""

import collections
import csv
import difflib
import functools
import hashlib
import itertools
import logging
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from prompt_tuning.data import json_rows
from prompt_tuning.data import lines as lines_lib
from prompt_tuning.errors import UserError, excerpt, listed

log = logging.getLogger(__name__)

FORMATS = ('jsonl', 'json', 'tsv', 'csv', 'lines')
_FORMAT_OF_SUFFIX = {
    '.jsonl': 'jsonl', '.ndjson': 'jsonl', '.json': 'json', '.tsv': 'tsv', '.txt': 'tsv',
    '.csv': 'csv'}
_DELIMITERS = {'a tab': '\t', 'a comma': ',', 'a semicolon': ';'}

Row = dict[str, Any]


def read_rows(
    path: str | os.PathLike, file_format: str | None = None, skip_short_rows: bool = False,
    header: tuple[str, ...] = (), list_in: str = '',
) -> Iterator[tuple[str, Row]]:
  """Yields (place, row) of a file.

  A place is unique: the number of the line, from 1; in a JSON list `line:column`, since many rows
  may stand on one line.

  Args:
    path: the file; a last suffix `.gz` is unpacked.
    file_format: one of FORMATS; None reads it off the suffix. TSV has no quoting, as GLUE is
      published, and so no tabs or line ends in a text; CSV has the standard one (RFC 4180). Both
      begin with a line of column names. With 'lines' each line that is not blank is a row
      `{'text': line}`.
    skip_short_rows: leave out TSV rows with too few columns (a few published files have some).
    header: column names of a TSV or CSV file that may begin with a row instead of names (it does
      when its first line has none of these), and of rows that are lists in JSON.
    list_in: name of the list of rows in a JSON file that is one object, such as SQuAD's `data`.

  Raises:
    UserError: no such file, broken gzip, invalid UTF-8, a NUL, broken JSON or CSV, a row that does
      not have the header's columns, a row of more than lines.MAX_ROW characters, a file without
      rows.
  """
  path = os.fspath(path)
  check_file(path)
  readers = {'jsonl': _jsonl, 'json': functools.partial(_json, header=header, list_in=list_in),
             'csv': functools.partial(_csv, header=header), 'lines': _lines,
             'tsv': functools.partial(_tsv, skip_short_rows=skip_short_rows, header=header)}
  file_format = file_format or format_of(path)
  if file_format not in readers:
    raise UserError(f'{path}: the file format {file_format!r} is not known; there are '
                    f'{", ".join(FORMATS)}.')
  with lines_lib.opened(path) as file:
    rows = readers[file_format](file, path)
    first = next(rows, None)
    if first is None:
      header = 'after the line of column names' if file_format in ('tsv', 'csv') else 'in it'
      raise UserError(f'{path}: expected rows, found nothing {header}: it holds no rows. Give a '
                      'file with at least one example.')
    yield first
    yield from rows


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
  path = os.fspath(path)
  check_file(path)
  try:
    with open(path, 'rb') as f:
      return hashlib.file_digest(f, 'sha256').hexdigest()
  except OSError as error:
    raise UserError(f'{path}: cannot be read: {error.strerror or error}.') from None


def check_file(path: str):
  """Raises UserError where there is no such file, naming the nearest one beside it."""
  if os.path.isfile(path):
    return
  folder = os.path.dirname(path) or '.'
  if os.path.isdir(path):
    raise UserError(f'{path} is a folder; give the path of one file.')
  if os.path.exists(path):
    raise UserError(f'{path} is a pipe or a device; give a file, which is read more than once.')
  if not os.path.isdir(folder):
    raise UserError(f'There is no file {path!r}: its folder does not exist.')
  near = difflib.get_close_matches(os.path.basename(path), os.listdir(folder), n=3, cutoff=0.5)
  hint = f' Did you mean {", ".join(near)}?' if near else ''
  raise UserError(f'There is no file {path!r}.{hint}')


def _jsonl(file, path: str) -> Iterator[tuple[str, Row]]:
  return json_rows.in_lines(lines_lib.lines(file, path), path)


def _json(file, path: str, header: tuple[str, ...], list_in: str,
          ) -> Iterator[tuple[str, Row]]:
  """A list of objects; or JSON lines in a file that is called .json, as many are."""
  pieces = lines_lib.pieces(file, path)
  start = ''
  while not start.strip() and (piece := next(pieces, '')):
    start += piece
    if len(start) > lines_lib.MAX_ROW:
      raise lines_lib.too_long(path, 1)
  before = list_in and re.match(
      rf'\s*{{\s*("version"\s*:\s*"[^"]*"\s*,\s*)?"{list_in}"\s*:\s*(?=\[)', start)
  if before:  # becomes as many spaces, so that places stay right
    start = re.sub(r'[^\n]', ' ', before[0]) + start[before.end():]
  pieces = itertools.chain([start], pieces)
  if before:
    return json_rows.in_list(pieces, path, alone=False, columns=header)
  if start.lstrip().startswith('['):
    return json_rows.in_list(pieces, path, columns=header)
  return json_rows.in_lines(enumerate(lines_lib.split(pieces, path), 1), path)


def _tsv(file, path: str, skip_short_rows: bool, header: tuple[str, ...],
         ) -> Iterator[tuple[str, Row]]:
  numbered = lines_lib.lines(file, path)
  columns = []
  skipped = 0
  for number, line in numbered:
    line = line.removesuffix('\n').removesuffix('\r')
    if '\r' in line:
      raise UserError(
          f'{path}:{number}: a carriage return inside a line, near '
          f'{excerpt(line[max(line.index(chr(13)) - 30, 0):][:60])}. Expected line feeds as line '
          'ends (Unix or Windows); a TSV text cannot hold a line end, a CSV text in quotes can.')
    if not columns and line:
      names = line.split('\t')
      if not header or set(header) & set(names):
        columns = _header(names, path, number, '\t')
        continue
      columns = list(header)
    if line:
      values = line.split('\t')
      if len(values) == len(columns):
        yield str(number), dict(zip(columns, values, strict=True))
      elif skip_short_rows and len(values) < len(columns):
        skipped += 1
      else:
        raise _ragged(values, columns, path, number,
                      ' TSV has no quoting: each tab begins a column.')
  if skipped:
    log.warning('%s: %d rows with fewer columns than the first line names were left out.', path,
                skipped)


def _lines(file, path: str) -> Iterator[tuple[str, Row]]:
  for number, line in lines_lib.lines(file, path):
    if line.strip():
      yield str(number), {'text': line.removesuffix('\n').removesuffix('\r')}


def _csv(file, path: str, header: tuple[str, ...]) -> Iterator[tuple[str, Row]]:
  csv.field_size_limit(lines_lib.MAX_ROW)  # else 128 KiB, less than a long document
  reader = csv.reader(lines_lib.split(lines_lib.pieces(file, path), path), strict=True)
  columns = []
  number = 1
  try:
    for values in reader:
      if not columns and values:
        if not header or set(header) & set(values):
          columns = _header(values, path, number, ',')
          number = reader.line_num + 1
          continue
        columns = list(header)
      if values and len(values) == len(columns):
        yield str(number), dict(zip(columns, values, strict=True))
      elif values:
        raise _ragged(values, columns, path, number)
      number = reader.line_num + 1
  except csv.Error as error:
    raise _broken_csv(str(error), path, number) from None


def _broken_csv(message: str, path: str, number: int) -> UserError:
  if 'field larger' in message:
    return lines_lib.too_long(path, number)
  hint = ('A field that holds quotes, commas or line ends has to stand in quotes ("), with each '
          'quote inside doubled.')
  if 'new-line character' in message:
    message = 'a carriage return inside a line (old Mac line ends?)'
    hint = 'Expected line feeds as line ends (Unix or Windows).'
  elif 'unexpected end' in message:
    message = 'a quote that opens in this row is never closed'
  return UserError(f'{path}:{number}: the row that begins here is not valid CSV: {message}. {hint}')


def _header(columns: list[str], path: str, number: int, delimiter: str) -> list[str]:
  repeated = [name for name, times in collections.Counter(columns).items() if times > 1]
  if repeated:
    raise UserError(
        f'{path}:{number}: the first line has to name the columns, each once; it repeats '
        f'{listed(repeated)}.')
  if len(columns) == 1:
    for name, other in _DELIMITERS.items():
      if other != delimiter and other in columns[0]:
        raise UserError(
            f'{path}:{number}: the first line names one column, {excerpt(columns[0])}: it seems '
            f'divided by {name}. TSV files (.tsv, .txt) are divided by tabs, CSV files (.csv) by '
            'commas.')
  return columns


def _ragged(values: list, columns: list, path: str, number: int, hint: str = '') -> UserError:
  many = 'more' if len(values) > len(columns) else 'fewer'
  return UserError(
      f'{path}:{number}: this row has {many} columns than the first line names: found '
      f'{len(values)}, expected {len(columns)}: {listed(columns)}.{hint}')
