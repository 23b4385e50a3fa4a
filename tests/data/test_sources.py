"""Sources: stable ids, the held-out tenth, fingerprints."""

import dataclasses
import json
import tracemalloc

import numpy as np
import pytest

from prompt_tuning.data import published, sources
from prompt_tuning.errors import UserError


def jsonl(path, count):
  path.write_text(''.join(json.dumps({'text': f't{i}'}) + '\n' for i in range(count)))
  return str(path)


def test_file_rows_are_line_numbers(tmp_path):
  source = sources.FileSource({'train': jsonl(tmp_path / 'x.jsonl', 3)})
  assert source.splits == ('train',)
  assert list(source.read('train')) == [(str(i + 1), {'text': f't{i}'}) for i in range(3)]
  assert source.where('train', '2').endswith('x.jsonl:2')


@pytest.mark.parametrize('count, held_out', [(2, 1), (9, 1), (100, 10), (104, 10)])
def test_held_out_part(tmp_path, count, held_out):
  source = sources.HeldOutSource(sources.FileSource({'train': jsonl(tmp_path / 'x.jsonl', count)}))
  train, validation = ([i for i, _ in source.read(s)] for s in source.splits)
  assert len(validation) == held_out
  assert sorted(map(int, train + validation)) == list(range(1, count + 1))
  again = sources.HeldOutSource(source.source)
  assert [i for i, _ in again.read('validation')] == validation
  assert source.fingerprint('train') != source.fingerprint('validation')


def test_seed_changes_the_held_out_part(tmp_path):
  files = sources.FileSource({'train': jsonl(tmp_path / 'x.jsonl', 100)})
  a, b = (sources.HeldOutSource(files, seed=s) for s in (0, 1))
  assert list(a.read('validation')) != list(b.read('validation'))
  assert a.fingerprint('train') != b.fingerprint('train')


def test_one_example_cannot_be_divided(tmp_path):
  source = sources.HeldOutSource(sources.FileSource({'train': jsonl(tmp_path / 'x.jsonl', 1)}))
  with pytest.raises(UserError, match=r'x.jsonl:1 is the only example.*EVAL_FILE'):
    list(source.read('train'))


def test_the_division_is_the_one_of_earlier_runs(tmp_path):
  source = sources.HeldOutSource(sources.FileSource({'train': jsonl(tmp_path / 'x.jsonl', 20)}))
  order = np.random.default_rng(0).permutation(20)[:2] + 1
  assert [place for place, _ in source.read('validation')] == [str(i) for i in sorted(order)]


@pytest.mark.parametrize('count', [2, 19, 21, 40])
def test_a_file_that_changes_between_the_passes(tmp_path, count):
  path = tmp_path / 'x.jsonl'
  source = sources.HeldOutSource(sources.FileSource({'train': jsonl(path, 20)}))
  assert len(list(source.read('train'))) == 18
  jsonl(path, count)
  with pytest.raises(UserError, match=r'x.jsonl:\d+: the file has changed'):
    list(source.read('train'))


def test_dividing_keeps_no_rows(tmp_path):
  path = tmp_path / 'x.jsonl'
  path.write_text((json.dumps({'text': 'fine ' * 200}) + '\n') * 8000)
  source = sources.HeldOutSource(sources.FileSource({'train': str(path)}))
  tracemalloc.start()
  count = sum(1 for split in source.splits for _ in source.read(split))
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert count == 8000
  assert peak < path.stat().st_size / 2


LAYOUT = published.Layout(
    folders=('x',), collections=(), files={'train': ('train.tsv', 'train.jsonl')},
    columns={'sentence': ('sentence',), 'label': ('label',), 'idx': ('idx',)},
    labels=('no', 'yes'))


@pytest.mark.parametrize('row, expected', [
    ({'sentence': 'a', 'label': 'Yes', 'idx': '7'}, {'label': 1, 'idx': 7}),
    ({'sentence': 'a', 'label': -1, 'idx': '²'}, {'label': -1, 'idx': '²'}),
    ({'sentence': 'a', 'label': '²'}, "'²' is no label"),
    ({'sentence': 'a', 'label': '--1'}, "'--1' is no label"),
    ({'sentence': 'a', 'label': '9' * 9000}, "'999.*9...' is no label"),
    ({'sentence': 'a', 'label': 1.0}, '1.0 is no label'),
    ({'sentence': 'a', 'label': None}, 'None is no label'),
    ({'sentence': ['a'] * 999, 'label': 1}, "field 'sentence' has to be text, it is \\['a', .*"),
    ({'text': 'a', 'label': 1}, "there is no field 'sentence'; the first row has 'text', 'label'"),
])
def test_labels_and_fields_of_published_files(tmp_path, row, expected):
  (tmp_path / 'train.jsonl').write_text(json.dumps(row))
  source = published.FolderSource(LAYOUT, str(tmp_path))
  if isinstance(expected, str):
    with pytest.raises(UserError, match=f'train.jsonl(:1)?: {expected}') as caught:
      list(source.read('train'))
    assert len(str(caught.value)) < 400
  else:
    [(place, found)] = source.read('train')
    assert place == '1' and {name: found[name] for name in expected} == expected


def test_how_files_are_read_is_part_of_the_fingerprint(tmp_path):
  for folder in ('a', 'b'):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / 'train.jsonl').write_text('{"sentence": "a", "other": "b", "label": 0}')
  source = published.FolderSource(LAYOUT, str(tmp_path / 'a'))
  moved = published.FolderSource(LAYOUT, str(tmp_path / 'b'))
  assert source.fingerprint('train') == moved.fingerprint('train')
  for change in ({'columns': {**LAYOUT.columns, 'more': ('other',)}}, {'labels': ('x', 'y')},
                 {'flatten': lambda row: [row]}):
    other = published.FolderSource(dataclasses.replace(LAYOUT, **change), str(tmp_path / 'a'))
    assert other.fingerprint('train') != source.fingerprint('train')


def test_generated_and_listed():
  source = sources.GeneratedSource(lambda split: [{'s': split}] * 2, ('train',), 'v1')
  assert list(source.read('train')) == [('0', {'s': 'train'}), ('1', {'s': 'train'})]
  other = sources.GeneratedSource(source.generate, ('train',), 'v2')
  assert source.fingerprint('train') != other.fingerprint('train')
  listed = [sources.ListSource({'a': ({'x': i},)}) for i in (1, 2)]
  assert listed[0].fingerprint('a') != listed[1].fingerprint('a')


def test_plain_values_of_tfds():
  value = {'a': b'x\xc3\xa9', 'b': np.int64(3), 'c': np.asarray([b'p', b'q'], object),
           'd': {'e': np.asarray(2.5)}}
  assert sources.plain(value) == {'a': 'xé', 'b': 3, 'c': ['p', 'q'], 'd': {'e': 2.5}}
