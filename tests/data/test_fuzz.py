"""Readers on any records and on damaged files: rows as they were written, or one clear message.

FUZZ=50000 python -m pytest tests/data/test_fuzz.py  mutates more files of each format.
"""

import csv
import gzip
import io
import json
import os
import random
import re
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prompt_tuning.data import files, preprocessors, sources, task
from prompt_tuning.errors import UserError

COUNT = int(os.environ.get('FUZZ', 2000))  # mutations of each format
MEMORY = 2**26  # bytes; the files have some hundred

# What readers of lines trip over: separators that are no line ends, controls, quotes, a mark.
ODD = '\u2028\u2029\x85\x0b\x0c\x1c\x1e\ufeff"\'\\,;\u00a0 é😀{}[]:'
TEXT = st.text(st.one_of(st.sampled_from(ODD), st.characters(exclude_categories=['Cs'],
                                                             exclude_characters='\0')), max_size=12)


def read(path, content: bytes):
  with open(path, 'wb') as f:
    f.write(content)
  return [row for _, row in files.read_rows(path)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('fuzz')


JSON_VALUES = st.recursive(
    st.one_of(TEXT, st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False,
                                                                       allow_infinity=False)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6)


@settings(deadline=None, max_examples=150)
@given(rows=st.lists(st.dictionaries(TEXT, JSON_VALUES, max_size=4), min_size=1, max_size=5),
       ascii_only=st.booleans(), end=st.sampled_from(['\n', '\r\n']),
       indent=st.sampled_from([None, 1]))
@example(rows=[{'a': '\u2028\x85\0'}], ascii_only=False, end='\n', indent=None)
def test_any_records_come_back_from_json(folder, rows, ascii_only, end, indent):
  lines = end.join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
  assert read(folder / 'x.jsonl', lines.encode()) == rows
  whole = json.dumps(rows, ensure_ascii=ascii_only, indent=indent)
  assert read(folder / 'x.json', whole.encode()) == rows


@st.composite
def tables(draw, text):
  columns = draw(st.lists(text, min_size=2, max_size=4, unique=True))
  return columns, draw(st.lists(st.tuples(*[text] * len(columns)), min_size=1, max_size=5))


@settings(deadline=None, max_examples=200)
@given(table=tables(TEXT), end=st.sampled_from(['\n', '\r\n']))
@example(table=(['a', 'b'], [('x\r', '"'), ('\n', '\r\n')]), end='\n')
def test_any_table_comes_back_from_csv(folder, table, end):
  columns, rows = table
  out = io.StringIO(newline='')
  # Python's writer leaves a lone carriage return without quotes, which no reader can undo.
  texts = ''.join(text for row in [columns, *rows] for text in row)
  quoting = csv.QUOTE_ALL if '\r' in texts else csv.QUOTE_MINIMAL
  csv.writer(out, lineterminator=end, quoting=quoting).writerows([columns, *rows])
  found = read(folder / 'x.csv', b'\xef\xbb\xbf' + out.getvalue().encode())
  assert found == [dict(zip(columns, row, strict=True)) for row in rows]


@settings(deadline=None, max_examples=200)
@given(table=tables(TEXT.filter(lambda text: '\n' not in text)),
       end=st.sampled_from(['\n', '\r\n']))
@example(table=(['a', 'b'], [('a "quote', "'"), ('"', '"')]), end='\n')
@example(table=(['a', 'b'], [('a\tb', '')]), end='\n')
@example(table=(['a', 'b'], [('', 'a\rb')]), end='\n')
def test_any_table_comes_back_from_tsv_or_is_refused(folder, table, end):
  """A tab or a carriage return in a text, which TSV cannot write, is not read as something else."""
  columns, rows = table
  lines = ['\t'.join(row) for row in [columns, *rows]]
  content = b'\xef\xbb\xbf' + ''.join(line.removesuffix('\r') + end for line in lines).encode()
  tabs = len(columns) - 1
  header = lines[0].removesuffix('\r').split('\t')
  if len(set(header)) < len(header) or any(
      line.count('\t') != tabs or '\r' in line.removesuffix('\r') for line in lines):
    with pytest.raises(UserError, match=r'x\.tsv:\d+: '):
      read(folder / 'x.tsv', content)
  else:
    rows = [line.removesuffix('\r').split('\t') for line in lines[1:]]
    assert read(folder / 'x.tsv', content) == [
        dict(zip(header, row, strict=True)) for row in rows]


def content_of(name: str) -> bytes:
  rows = [{'text': text, 'label': label, 'n': n} for n, (text, label) in enumerate(
      [('fine, "so" fine', 'yes'), ('naïve \u2028 中文', 'no'), ('', 'yes'), ('it\'s 😀', 'no')])]
  if '.json' in name:
    whole = json.dumps(rows, indent=1) if name.startswith('list') else (
        '\n'.join(json.dumps(row, ensure_ascii=i % 2 > 0) for i, row in enumerate(rows)) + '\n')
  else:
    out = io.StringIO(newline='')
    if '.tsv' in name:
      table = [rows[0], *(row.values() for row in rows)]
      out.write(''.join('\t'.join(map(str, row)) + '\n' for row in table))
    else:
      csv.writer(out).writerows([list(rows[0]), *(row.values() for row in rows)])
    whole = out.getvalue()
  return gzip.compress(whole.encode(), mtime=0) if name.endswith('.gz') else whole.encode()


PARTS = [part.encode('utf-8', 'surrogatepass') for part in (
    '"', '""', '\\', '\0', '\r', '\n', '\r\n', '\t', ',', ';', ':', '{', '}', '[', ']', '{}', 'NaN',
    '-Infinity', '1e999', '9' * 5000, '9' * 400, '\\ud800', '\ud800', '\\u0000', '\ufeff',
    '\u2028', '\x85', '[' * 3000, '{"a":' * 3000, '"text": 1,', 'null', 'true', '\x1a',
    ' ' * 3000)] + [
    b'\xff', b'\xc3', b'\xed\xa0\x80', b'\xf8\x88\x80\x80', b'\x1f\x8b\x08', b'\xff\xfe']


def mutated(content: bytes, rng: random.Random) -> bytes:
  data = bytearray(content)
  for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.choice((0, 1, 1, 2, 10, 60)))
    kind = rng.randrange(6)
    if kind == 0 and data:
      data[at % len(data)] ^= 1 << rng.randrange(8)
    elif kind == 1:
      del data[at:end]
    elif kind == 2:
      data[at:end] = rng.choice(PARTS)
    elif kind == 3:
      data[at:at] = rng.choice(PARTS)
    elif kind == 4:
      data[at:at] = data[at:end] * rng.choice((1, 2, 50))
    elif kind == 5 and not rng.randrange(4):
      del data[at:]
  return bytes(data)


@pytest.mark.parametrize('name', ['x.jsonl', 'list.json', 'lines.json', 'x.tsv', 'x.csv',
                                  'x.jsonl.gz', 'x.csv.gz'])
def test_damaged_files(name, folder):
  path = folder / name
  template = preprocessors.Template('{text}', 'label', (('yes', 'yes'), ('no', 'no')))
  the_task = task.Task(name='x', source=sources.FileSource({'train': str(path)}),
                       preprocess=template)
  content, rng = content_of(name), random.Random(name)
  whole = read(path, content)
  assert len(whole) == 4 and whole[1]['text'] == 'naïve \u2028 中文'
  outcomes = {'rows': 0, 'refused': 0, 'unusable': 0}
  tracemalloc.start()
  for _ in range(COUNT):
    path.write_bytes(mutated(content, rng))
    outcomes[outcome_of(the_task, str(path))] += 1
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < MEMORY
  assert min(outcomes.values()) > 0 or name.endswith('.gz'), outcomes


def outcome_of(the_task, path: str) -> str:
  """Reads a file; anything that is neither rows nor a good message fails."""
  try:
    rows = list(the_task.source.read('train'))
  except UserError as error:
    check_message(str(error), path)
    return 'refused'
  places = [place for place, _ in rows]
  assert places and len(set(places)) == len(places)
  for _, row in rows:
    json.dumps(row, ensure_ascii=False).encode('utf-8')  # what the cache does
  try:
    list(the_task.examples('train'))
    return 'rows'
  except UserError as error:
    check_message(str(error), path)
    return 'unusable'


def check_message(message: str, path: str):
  assert len(message.splitlines()) == 1, message
  assert len(message) < 900, message
  assert message.isprintable(), message
  assert re.match(rf'{re.escape(path)}:\d+(:\d+)?: .', message) or (
      message.startswith(f'{path}: expected rows, found nothing')), message
