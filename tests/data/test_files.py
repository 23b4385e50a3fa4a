"""File formats and the messages about broken ones."""

import csv
import gzip
import io
import json
import logging
import os
import re
import tracemalloc

import pytest

from prompt_tuning.data import files, lines
from prompt_tuning.errors import UserError

LONG = 'x' * 10**6


def rows(path, content, **kwargs):
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return list(files.read_rows(path, **kwargs))


def test_jsonl_with_bom_crlf_and_blank_lines(tmp_path):
  content = b'\xef\xbb\xbf{"a": "\xc3\xa9"}\r\n\r\n{"a": "line\\nend"}'
  assert rows(tmp_path / 'x.jsonl', content) == [('1', {'a': 'é'}), ('3', {'a': 'line\nend'})]


def test_unicode_line_separators_do_not_end_a_row(tmp_path):
  assert rows(tmp_path / 'x.jsonl', '{"a": "x\u2028y\x85z"}\n') == [('1', {'a': 'x\u2028y\x85z'})]
  assert rows(tmp_path / 'x.tsv', 'a\tb\nx\u2028y\t\x0b\n') == [
      ('2', {'a': 'x\u2028y', 'b': '\x0b'})]


def test_json_list_and_gzip(tmp_path):
  assert rows(tmp_path / 'y.json', '{"a": 1}\n') == [('1', {'a': 1})]
  packed = gzip.compress(b'a\tb\n1\t2\n')
  assert rows(tmp_path / 'x.tsv.GZ', packed) == [('2', {'a': '1', 'b': '2'})]
  assert rows(tmp_path / 'x.json', '\n [{"a": 1}, {"a": 2}]') == [
      ('2:3', {'a': 1}), ('2:13', {'a': 2})]
  with pytest.raises(UserError, match='x.json: expected rows, found nothing in it'):
    rows(tmp_path / 'x.json', '[ ]\n')


def test_places_in_a_json_list_that_comes_in_many_pieces(tmp_path, monkeypatch):
  monkeypatch.setattr(lines, '_PIECE', 7)
  given = [{'text': 'é' * n, 'n': [n, {'m': None}]} for n in range(20)]
  for indent in (None, 2):
    text = json.dumps(given, indent=indent, ensure_ascii=False)
    found = rows(tmp_path / 'x.json', text)
    assert [row for _, row in found] == given
    for place, row in found:
      line, column = map(int, place.split(':'))
      assert text.split('\n')[line - 1][column - 1:].startswith('{')
      assert json.JSONDecoder().raw_decode(
          '\n'.join(text.split('\n')[line - 1:])[column - 1:])[0] == row


def test_tsv_has_no_quoting(tmp_path):
  assert rows(tmp_path / 'x.tsv', '\ufeffa\tb\r\n"x\ty"\r\n') == [('2', {'a': '"x', 'b': 'y"'})]


def test_csv_has_standard_quoting(tmp_path):
  content = 'a,b\r\n"x, ""y""\nz",1\r\n\r\nplain,2\r\n'
  assert rows(tmp_path / 'x.csv', content) == [
      ('2', {'a': 'x, "y"\nz', 'b': '1'}), ('5', {'a': 'plain', 'b': '2'})]


@pytest.mark.parametrize('name, content', [
    ('x.jsonl', json.dumps({'a': LONG, 'b': 'y'})), ('x.json', json.dumps([{'a': LONG, 'b': 'y'}])),
    ('x.tsv', f'a\tb\n{LONG}\ty'), ('x.csv', f'a,b\n{LONG},y'), ('y.csv', f'a,b\n"{LONG}",y\n')])
def test_rows_of_a_megabyte(tmp_path, name, content):
  assert [row for _, row in rows(tmp_path / name, content)] == [{'a': LONG, 'b': 'y'}]


def test_format_may_be_given(tmp_path):
  assert rows(tmp_path / 'x.data', 'a,b\n1,2\n', file_format='csv') == [('2', {'a': '1', 'b': '2'})]
  with pytest.raises(UserError, match="'xlsx' is not known; there are jsonl, json, tsv, csv"):
    rows(tmp_path / 'x.data', 'a,b\n1,2\n', file_format='xlsx')


def test_short_rows_may_be_left_out(tmp_path, caplog):
  with caplog.at_level(logging.WARNING):
    found = rows(tmp_path / 'x.tsv', 'a\tb\n1\n2\t3\n', skip_short_rows=True)
  assert found == [('3', {'a': '2', 'b': '3'})]
  assert '1 rows with fewer columns' in caplog.text
  with pytest.raises(UserError, match='x.tsv:2: this row has more columns'):
    rows(tmp_path / 'x.tsv', 'a\tb\n1\t2\t3\n', skip_short_rows=True)


PACKED = gzip.compress(b'{"a": 1}\n' * 99, mtime=0)


@pytest.mark.parametrize('name, content, match', [
    # JSON lines
    ('x.jsonl', '{"a": 1}\n{"a": \n', r'x.jsonl:2: not valid JSON.*one JSON object on each line'),
    ('x.jsonl', '{"a": 1} {"a": 2}\n', r'x.jsonl:1: not valid JSON: more text after.*column 9,'),
    ('x.jsonl', '{"a": "b\n', r'x.jsonl:1: .*Unterminated string starting at column 7, near'),
    ('x.jsonl', '{"a": 1}\n[1]\n', r'x.jsonl:2: expected a JSON object.*found \'\[1\]\''),
    ('x.jsonl', '{\n "a": 1\n}\n', r'x.jsonl:1: .*a list in a file called .json'),
    ('x.jsonl', '{"a": 1}\n\ufeff{"a": 1}\n', r'x.jsonl:2: .*were two files joined'),
    ('x.jsonl', '{"a": 1}\r{"a": 2}\r', r'x.jsonl:1: .*old Mac line ends'),
    ('x.jsonl', '{"a": 1}\n{"a": NaN}\n', r'x.jsonl:2: NaN is no JSON; expected a number'),
    ('x.jsonl', '{"a": -Infinity}\n', r'x.jsonl:1: -Infinity is no JSON'),
    ('x.jsonl', '{"a": 1, "b": {"c": 1, "c": 2}}', r"x.jsonl:1: .*name 'c' more than once; expect"),
    ('x.jsonl', '{"a": ' + '[' * 101 + ']' * 101 + '}', r'x.jsonl:1: .*deeper than 100 levels'),
    ('x.jsonl', '{"a":' * 10**5, r'x.jsonl:1: .*deeper than 100 levels'),
    ('x.jsonl', '{"a": ' + '9' * 5000 + '}', r'x.jsonl:1: a number of thousands of digits'),
    ('x.jsonl', '{"a": "\\ud800"}\n', r'x.jsonl:1: .*surrogate'),
    ('x.jsonl', '{"\\uDFFF": 1}\n', r'x.jsonl:1: .*surrogate'),
    # no text
    ('x.jsonl', b'{"a": 1}\n{"a": "\xe9"}\n', r'x.jsonl:2: byte 0xe9 at position 7 is not UTF-8'),
    ('x.tsv', b'a\tb\n1\t2\xc3', r'x.tsv:2: byte 0xc3 at position 3 is not UTF-8'),
    ('x.jsonl', b'{"a": 1}\n{"a": "x\0"}\n', r'x.jsonl:2: a NUL at position 8 is no text.*UTF-8'),
    ('x.csv', 'a,b\r\n1,2\r\n'.encode('utf-16'), r'x.csv:1: byte 0xff .*like UTF-16'),
    ('x.csv', 'a,b\r\n1,2\r\n'.encode('utf-16-be'), r'x.csv:1: a NUL at position 0'),
    ('x.jsonl', PACKED, r'x.jsonl:1: byte 0x8b at position 1 .*gzip file: let its name end in .gz'),
    ('x.csv', b'PK\x03\x04\x00\x00', r'x.csv:1: a NUL .*spreadsheet: save its table as CSV'),
    # JSON lists
    ('x.json', '[{"a": 1},\n{]', r'x.json:2:2: not valid JSON: Expecting property name'),
    ('x.json', '[{"a": 1},\n {"a": 1, "a": 2}]', r"x.json:2:2: .*name 'a' more than once"),
    ('x.json', '[3]', r'x.json:1:2: expected a JSON object.*found \'3\]\''),
    ('x.json', '[{"a": 1},\n]', r"x.json:2:1: expected a JSON object"),
    ('x.json', '[{"a": 1}\n{"a": 1}]', r"x.json:2:1: expected , or \] of a JSON list, found '{"),
    ('x.json', '[{"a": 1}', r'x.json:1:10: expected , or \].*found the end of the file'),
    ('x.json', '[{"a": 1}]\n[', r"x.json:2:1: expected nothing after the list of rows, found '\["),
    # tables
    ('x.tsv', 'a\tb\n1\n', r"x.tsv:2: this row has fewer columns .*found 1, expected 2: 'a', 'b'"),
    ('x.tsv', 'a\tb\n1\t2\t3\n', r"x.tsv:2: .*more columns .*found 3, expected 2.*has no quoting"),
    ('x.tsv', 'a\ta\n1\t2\n', r"x.tsv:1: .*repeats 'a'"),
    ('x.tsv', 'text,label\na,b\n', r"x.tsv:1: .*one column, 'text,label'.*divided by a comma"),
    ('x.tsv', 'a\tb\r1\t2\r', r'x.tsv:1: a carriage return inside a line.*Expected line feeds'),
    ('x.csv', 'text;label\na;b\n', r"x.csv:1: .*divided by a semicolon"),
    ('x.csv', 'text\tlabel\na\tb\n', r"x.csv:1: .*divided by a tab"),
    ('x.csv', 'a,b\n1,2\n"1,2\n3,4\n', r'x.csv:3: .*a quote that opens in this row is never clos'),
    ('x.csv', 'a,b\n"1"2,3\n', r"x.csv:2: .*not valid CSV.*expected after"),
    ('x.csv', 'a,b\r1,2\r', r'x.csv:1: .*old Mac line ends'),
    ('x.csv', 'a,b\n1,2,3\n', r'x.csv:2: this row has more columns .*found 3, expected 2'),
    ('x.csv', 'a,b\n1\n', r'x.csv:2: this row has fewer columns'),
    # nothing
    ('x.csv', 'a,b\n', 'expected rows, found nothing after the line of column names'),
    ('x.tsv', '', 'holds no rows'),
    ('x.jsonl', '', 'holds no rows'),
    ('x.jsonl', '\n \n', 'holds no rows'),
    ('x.json', ' \n', 'holds no rows'),
    ('x.json', b'\xef\xbb\xbf', 'holds no rows'),
    ('x.jsonl', b'\xef\xbb\xbf', 'holds no rows'),
    ('x.csv', b'\xef\xbb\xbf', 'holds no rows'),
    ('x.jsonl.gz', '', 'holds no rows'),
    ('x.parquet', 'x', r'suffix, which has to be one of .jsonl'),
    # gzip
    ('x.jsonl.gz', 'no gzip', r'x.jsonl.gz:1: the gzip file is broken from here on'),
    ('y.jsonl.gz', PACKED[:-20], r'y.jsonl.gz:\d+: the gzip file is broken from here on'),
    ('y.jsonl.gz', PACKED[:-5], r'y.jsonl.gz:100: the gzip file is broken from here'),
    ('y.jsonl.gz', PACKED[:-8] + b'\0' * 8, r'y.jsonl.gz:100: the gzip .*CRC check failed'),
    ('y.jsonl.gz', PACKED + b'rubbish', r'y.jsonl.gz:100: the gzip .*Not a gzipped file'),
])
def test_broken_files(tmp_path, name, content, match):
  with pytest.raises(UserError, match=match) as caught:
    rows(tmp_path / name, content)
  message = str(caught.value)
  assert message.isprintable() and len(message) < 600, message


def test_wide_tables_give_short_messages(tmp_path):
  columns = [f'column{i}' for i in range(20_000)]
  for broken in (columns + columns[:9000], columns + ['\n1']):
    with pytest.raises(UserError, match='and [0-9]+ more') as caught:
      rows(tmp_path / 'x.csv', ','.join(broken) + '\n')
    assert len(str(caught.value)) < 1200


@pytest.mark.parametrize('name', ['x.jsonl', 'x.json', 'x.tsv', 'x.csv', 'list.json'])
@pytest.mark.parametrize('byte', [b' ', b'"'])
def test_a_file_that_unpacks_without_end_takes_little_memory(tmp_path, name, byte):
  """300 MB of one byte in 300 KB of gzip."""
  path = tmp_path / f'{name}.gz'
  start = {'list.json': b'[{"a": "', 'x.csv': b'a,b\n"', 'x.json': b''}.get(name, b'a\t')
  with gzip.open(path, 'wb', compresslevel=1) as file:
    file.write(start)
    for _ in range(3):
      file.write(byte * 10**8)
  tracemalloc.start()
  with pytest.raises(UserError, match=re.escape(name)):
    list(files.read_rows(path))
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 2**28


@pytest.mark.parametrize('name', ['x.jsonl', 'x.json', 'x.tsv', 'x.csv', 'x.csv.gz'])
def test_a_large_file_is_not_kept(tmp_path, name):
  path = tmp_path / name
  row = {'text': 'fine ' * 200, 'label': 'yes'}
  if 'json' in name:
    text = (json.dumps(row) + '\n') * 10_000 if name == 'x.jsonl' else json.dumps([row] * 10_000)
  else:
    out = io.StringIO(newline='')
    writer = csv.writer(out, delimiter='\t' if 'tsv' in name else ',')
    writer.writerows([list(row)] + [list(row.values())] * 10_000)
    text = out.getvalue()
  path.write_bytes(gzip.compress(text.encode(), 1) if name.endswith('.gz') else text.encode())
  size = len(text)
  del text
  tracemalloc.start()
  count = sum(found == row for _, found in files.read_rows(path))
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert count == 10_000
  assert peak < 2**23 < size


def test_missing_files(tmp_path):
  (tmp_path / 'train.jsonl').write_text('{}')
  with pytest.raises(UserError, match='no file.*Did you mean train.jsonl'):
    list(files.read_rows(tmp_path / 'trian.jsonl'))
  with pytest.raises(UserError, match='its folder does not exist'):
    list(files.read_rows(tmp_path / 'absent' / 'x.jsonl'))
  with pytest.raises(UserError, match='is a folder'):
    list(files.read_rows(tmp_path))
  os.mkfifo(tmp_path / 'pipe.jsonl')
  with pytest.raises(UserError, match='is a pipe or a device'):
    list(files.read_rows(tmp_path / 'pipe.jsonl'))


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_a_file_without_permission(tmp_path):
  path = tmp_path / 'x.jsonl'
  path.write_text('{}')
  path.chmod(0)
  with pytest.raises(UserError, match='cannot be read: Permission denied'):
    list(files.read_rows(path))
  with pytest.raises(UserError, match='cannot be read: Permission denied'):
    files.content_hash(path)


def test_content_hash(tmp_path):
  path = tmp_path / 'x.jsonl'
  path.write_text('{}')
  first = files.content_hash(path)
  path.write_text('{} ')
  assert files.content_hash(path) != first
