"""Shards: the same bytes whoever writes them, and damage that is found."""

import dataclasses
import functools
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap

import pytest

from prompt_tuning import vocabulary
from prompt_tuning.data import cache, cache_processes, cache_shards, sources, task
from prompt_tuning.errors import UserError

VOCAB = vocabulary.ByteVocabulary(100)
LENGTHS = {'inputs': 8, 'targets': 4}
ROWS = 20
COUNT = 2 * ROWS + 5


def rows(split):
  for i in range({'train': COUNT, 'broken': COUNT}[split]):
    yield {'n': i}


def preprocess(ex):
  """Nothing of some rows, several examples of others; the last row of `broken` is refused."""
  n = ex['n']
  if n == COUNT - 1:
    return [{'inputs': 'last', 'targets': ''}]
  return [{'inputs': f'{n} {k}', 'targets': str(n % 7)} for k in range(n % 3 if n < 5 else 1)]


def refuse(ex):
  if ex['n'] == ROWS + 1:
    raise UserError('row without a label')
  return preprocess(ex)


def a_task(preprocess=preprocess, **kwargs):
  return task.Task(**{
      'name': 'many', 'source': sources.GeneratedSource(rows, ('train', 'broken'), '1'),
      'preprocess': preprocess, 'metric_fns': (lambda targets, predictions: {},), **kwargs})


def build(folder, write=cache_shards.write_part, preprocess=preprocess, **options):
  """Builds a cache of shards of ROWS rows."""
  return cache.build(a_task(preprocess), 'train', VOCAB, LENGTHS, folder, **options,
                     write=lambda job: write(dataclasses.replace(job, rows=ROWS)))


def in_processes(job, **options):
  cache_processes.write_in_processes(job, processes=2, **options)


def digests(folder):
  return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
          for path in pathlib.Path(folder).iterdir()}


@pytest.fixture(scope='module')
def one(tmp_path_factory):
  """Written by this process."""
  return build(tmp_path_factory.mktemp('one'))


def test_shards_and_what_was_counted(one):
  assert sorted(path.name for path in pathlib.Path(one.path).iterdir()) == [
      'info.json', 'lengths.npy',
      *(f'{kind}-0000{k}.array_record' for kind in ('texts', 'tokens') for k in range(3))]
  assert one.info['shards'] == [ROWS - 1, ROWS, 5]
  assert len(one) == COUNT - 1
  at = [0, 1, ROWS - 2, ROWS - 1, COUNT - 2]
  assert [record['id'] for record in one.records(at)] == [
      '1', '2.0', str(ROWS - 1), str(ROWS), str(COUNT - 1)]
  assert [VOCAB.decode(ids) for ids, _ in one.tokens(at)] == [
      '1 0', '2 0', '19 0', '20 0', 'last']
  assert one.info['empty'] == {'targets': [1, f'train example {COUNT - 1}']}
  assert one.info['truncated']['inputs'] == {'examples': 0, 'tokens': 0, 'longest': 5}


@pytest.mark.parametrize('parts', [2, 3, 7])
def test_parts_write_the_same_bytes_in_any_order(one, parts, tmp_path):
  def write(job):
    for part in reversed(range(parts)):
      cache_shards.write_part(job, part, parts)
      cache_shards.write_part(job, part, parts)  # as a runner that tries again
  built = build(tmp_path, write)
  assert os.path.basename(built.path) == os.path.basename(one.path)
  assert digests(built.path) == digests(one.path)


def test_processes_write_the_same_bytes(one, tmp_path):
  seen = []
  built = build(tmp_path, functools.partial(in_processes, on_shards=seen.append))
  assert digests(built.path) == digests(one.path)
  assert seen[-1] == 3


def test_a_mistake_in_another_process_is_the_same_line(tmp_path):
  for write in (cache_shards.write_part, in_processes):
    with pytest.raises(UserError, match='train example 21: row without a label'):
      build(tmp_path, write, refuse)
  assert list(tmp_path.iterdir()) == []


def test_functions_that_no_other_process_finds(tmp_path):
  with pytest.raises(UserError, match="Task 'many' cannot be sent to other processes.*top level"):
    build(tmp_path, in_processes, lambda ex: [ex])


def damaged(one, tmp_path, name, change):
  folder = tmp_path / 'cache'
  shutil.copytree(one.path, folder)
  file = folder / name
  content = change(file.read_bytes())
  file.unlink()
  if content is not None:
    file.write_bytes(content)
  return folder


def flipped(content):
  return content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]


DAMAGE = {'missing': (lambda content: None, 'is missing'),
          'truncated': (lambda content: content[:-1], 'has [0-9,]+ bytes, [0-9,]+ were written'),
          'flipped': (flipped, 'is not what was written')}


@pytest.mark.parametrize('kind', DAMAGE)
@pytest.mark.parametrize('name', [
    'tokens-00001.array_record', 'texts-00002.array_record', 'lengths.npy'])
def test_damage_names_the_file_and_what_to_do(one, tmp_path, name, kind):
  change, words = DAMAGE[kind]
  folder = damaged(one, tmp_path, name, change)
  with pytest.raises(UserError, match=f'{folder / name} {words}.*USE_CACHED_TASKS=False'):
    cache.load(folder)


def test_a_damaged_info_file(one, tmp_path):
  folder = damaged(one, tmp_path, 'info.json', lambda content: content[:50])
  with pytest.raises(UserError, match='info.json is not what was written'):
    cache.load(folder)
  with pytest.raises(UserError, match='holds no cache'):
    cache.load(tmp_path)


def test_damage_of_a_large_cache_is_found_while_reading(one, tmp_path, monkeypatch):
  def flip(content):
    return content[:400] + bytes([content[400] ^ 1]) + content[401:]
  folder = damaged(one, tmp_path, 'tokens-00001.array_record', flip)
  monkeypatch.setattr(cache, '_CHECKED_BYTES', 0)
  opened = cache.load(folder)
  with pytest.raises(UserError, match='tokens-00001.array_record is not what was written'):
    opened.tokens(range(len(opened)))


def test_a_damaged_cache_is_replaced_when_asked(one, tmp_path):
  folder = damaged(one, tmp_path, 'lengths.npy', flipped)
  home = tmp_path / os.path.basename(one.path)
  os.replace(folder, home)
  with pytest.raises(UserError, match='lengths.npy'):
    build(tmp_path)
  build(tmp_path, rebuild=True)
  assert digests(home) == digests(one.path)


LIMITED = textwrap.dedent('''
    import pathlib, resource, signal, sys
    from data import test_cache_shards as t
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
    try:
      t.build(sys.argv[1])
    except t.UserError as error:
      print(error)
''')


@pytest.mark.parametrize('limit', [0, 70_000])
def test_files_that_may_not_grow(tmp_path, limit):
  here = pathlib.Path(__file__).parent.parent
  path = os.pathsep.join((str(here), str(here.parent)))
  done = subprocess.run([sys.executable, '-c', LIMITED, str(tmp_path), str(limit)],
                        env={**os.environ, 'PYTHONPATH': path}, capture_output=True, text=True,
                        check=True)
  assert done.stdout.startswith(f'Cannot write to {tmp_path}: ') and 'large' in done.stdout
  assert 'has room' in done.stdout and len(done.stdout.splitlines()) == 1
  assert list(tmp_path.iterdir()) == []


def test_beam_writes_the_same_bytes(one, tmp_path):
  pytest.importorskip('apache_beam', reason='Apache Beam is an extra')
  write = functools.partial(
      cache_processes.write_on_beam, parts=2, options='--runner=FnApiRunner')
  assert digests(build(tmp_path, write).path) == digests(one.path)
  with pytest.raises(UserError, match='train example 21: row without a label'):
    build(tmp_path, write, refuse)


def test_without_beam(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'apache_beam', None)
  job = cache_shards.Job(task=a_task(), split='train', vocabulary=VOCAB,
                         lengths=LENGTHS, folder=str(tmp_path))
  with pytest.raises(UserError, match=r"pip install 'prompt-tuning\[beam\]'"):
    cache_processes.write_on_beam(job, parts=1, options='')
