"""Sources: stable ids, the held-out tenth, fingerprints."""

import json

import numpy as np
import pytest

from prompt_tuning.data import sources
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
