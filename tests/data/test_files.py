"""File formats and the messages about broken ones."""

import gzip

import pytest

from prompt_tuning.data import files
from prompt_tuning.errors import UserError


def rows(path, content, **kwargs):
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return list(files.read_rows(path, **kwargs))


def test_jsonl_with_bom_crlf_and_blank_lines(tmp_path):
  content = b'\xef\xbb\xbf{"a": "\xc3\xa9"}\r\n\r\n{"a": "line\\nend"}'
  assert rows(tmp_path / 'x.jsonl', content) == [(1, {'a': 'é'}), (3, {'a': 'line\nend'})]


def test_unicode_line_separators_do_not_end_a_row(tmp_path):
  assert rows(tmp_path / 'x.jsonl', '{"a": "x\u2028y\x85z"}\n') == [(1, {'a': 'x\u2028y\x85z'})]
  assert rows(tmp_path / 'x.tsv', 'a\tb\nx\u2028y\t\x0b\n') == [(2, {'a': 'x\u2028y', 'b': '\x0b'})]


def test_json_list_and_gzip(tmp_path):
  assert rows(tmp_path / 'x.json', '[{"a": 1}, {"a": 2}]') == [(1, {'a': 1}), (2, {'a': 2})]
  assert rows(tmp_path / 'y.json', '{"a": 1}\n') == [(1, {'a': 1})]
  packed = gzip.compress(b'a\tb\n1\t2\n')
  assert rows(tmp_path / 'x.tsv.gz', packed) == [(2, {'a': '1', 'b': '2'})]


def test_tsv_has_no_quoting(tmp_path):
  assert rows(tmp_path / 'x.tsv', '\ufeffa\tb\r\n"x\ty"\r\n') == [(2, {'a': '"x', 'b': 'y"'})]


def test_csv_has_standard_quoting(tmp_path):
  content = 'a,b\r\n"x, ""y""\nz",1\r\n\r\nplain,2\r\n'
  assert rows(tmp_path / 'x.csv', content) == [
      (3, {'a': 'x, "y"\nz', 'b': '1'}), (5, {'a': 'plain', 'b': '2'})]
  long = 'x' * 200_000
  assert rows(tmp_path / 'x.csv', f'a\n{long}\n') == [(2, {'a': long})]


def test_format_may_be_given(tmp_path):
  assert rows(tmp_path / 'x.data', 'a,b\n1,2\n', file_format='csv') == [(2, {'a': '1', 'b': '2'})]


@pytest.mark.parametrize('name, content, match', [
    ('x.jsonl', '{"a": 1}\n{"a": \n', r'x.jsonl:2: not valid JSON.*one JSON object on each line'),
    ('x.jsonl', '{"a": 1}\n[1]\n', r'x.jsonl:2: expected a JSON object.*found'),
    ('x.jsonl', b'{"a": 1}\n{"a": "\xe9"}\n', r'x.jsonl:2: byte 0xe9 at position 7 is not UTF-8'),
    ('x.jsonl', '{"a": "\\ud800"}\n', r'x.jsonl:1: .*surrogate'),
    ('x.json', '[{"a": 1},\n{]', r'x.json:2: not valid JSON'),
    ('x.json', '[3]', r'x.json:1: expected a JSON object'),
    ('x.tsv', 'a\tb\n1\n', r'x.tsv:2: this row has fewer columns'),
    ('x.tsv', 'a\tb\n1\t2\t3\n', r'x.tsv:2: this row has 3 columns, the first line names 2: a, b'),
    ('x.tsv', 'a\ta\n1\t2\n', r"x.tsv:1: .*repeats 'a'"),
    ('x.csv', 'a,b\n"1,2\n', r'x.csv:2: not valid CSV'),
    ('x.csv', 'a,b\n1,2,3\n', r'x.csv:2: this row has 3 columns'),
    ('x.csv', 'a,b\n', 'holds no rows'),
    ('x.jsonl', '', 'holds no rows'),
    ('x.jsonl', '\n \n', 'holds no rows'),
    ('x.parquet', 'x', r'suffix, which has to be one of .jsonl'),
    ('x.jsonl.gz', 'no gzip', 'gzip file is broken'),
    ('y.jsonl.gz', gzip.compress(b'{"a": 1}\n' * 99)[:-20], 'gzip file is broken'),
])
def test_broken_files(tmp_path, name, content, match):
  with pytest.raises(UserError, match=match):
    rows(tmp_path / name, content)


def test_missing_files(tmp_path):
  (tmp_path / 'train.jsonl').write_text('{}')
  with pytest.raises(UserError, match='no file.*Did you mean train.jsonl'):
    list(files.read_rows(tmp_path / 'trian.jsonl'))
  with pytest.raises(UserError, match='its folder does not exist'):
    list(files.read_rows(tmp_path / 'absent' / 'x.jsonl'))
  with pytest.raises(UserError, match='is a folder'):
    list(files.read_rows(tmp_path))


def test_content_hash(tmp_path):
  path = tmp_path / 'x.jsonl'
  path.write_text('{}')
  first = files.content_hash(path)
  path.write_text('{} ')
  assert files.content_hash(path) != first
