"""A task that is known by its caches alone."""

import pytest

from prompt_tuning import vocabulary
from prompt_tuning.data import cache, cached, mixture, sources, task, tokenizing
from prompt_tuning.errors import UserError

VOCAB = vocabulary.ByteVocabulary()
LENGTHS = {'inputs': 16, 'targets': 16}


def write(folder, name='theirs', inputs='x', split='train', lengths=None):
  rows = tuple({'inputs': f'{inputs} {i}', 'targets': 'y', 'n': i} for i in range(3))
  the_task = task.Task(name=name, source=sources.ListSource({split: rows}))
  return cache.build(the_task, split, VOCAB, lengths or LENGTHS, folder)


def test_the_cache_is_found_by_name(tmp_path):
  whole = write(tmp_path)
  write(tmp_path, lengths={'inputs': 8, 'targets': 8})
  found = cached.make(name='theirs', cache_dir=tmp_path)
  assert found.splits == ('train',) and found.eval_split == 'validation'
  assert cache.build(found, 'train', VOCAB, LENGTHS, 'nowhere').path == whole.path
  assert dict(found.examples('train'))['1'] == {'inputs': 'x 1', 'targets': 'y', 'n': 1}
  assert found.metrics(['y'], ['y']) == {'exact_match': 100.0}
  with pytest.raises(UserError, match='cannot be written again'):
    cache.build(found, 'train', VOCAB, LENGTHS, 'nowhere', rebuild=True)


def test_a_built_in_task_keeps_its_metrics(tmp_path):
  write(tmp_path, name='super_glue_rte_v102', split='validation')
  found = cached.make(name='super_glue_rte_v102', cache_dir=tmp_path)
  assert found.labels == ('entailment', 'not_entailment')
  assert found.postprocess_fn('entailment') == 0
  assert found.splits == ('validation',) and found.train_split == 'train'
  assert cached.make(name='super_glue_rte_v102', cache_dir=tmp_path,
                     metrics=['accuracy']).metrics([1], [1]) == {'accuracy': 100.0}


def test_forms_of_tokens_stay(tmp_path):
  for name in ('super_glue_rte_v102_1_sentinel', 'task_index_super_glue_rte_v102'):
    found, theirs = cached.make(name=name, cache_dir=tmp_path), task.get(name)
    assert tokenizing.target_ids(found, 'entailment', VOCAB) == tokenizing.target_ids(
        theirs, 'entailment', VOCAB)
    assert found.task_index == theirs.task_index


def test_a_mixture_trains_on_what_is_cached(tmp_path, monkeypatch):
  for split in ('train', 'validation'):
    write(tmp_path, name='super_glue_rte_v102', split=split)
  for name in ('super_glue_cb_v102', 'super_glue_copa_v102'):
    write(tmp_path, name=name, split='validation')
  parts = tuple((task.get(f'super_glue_{name}_v102'), 1.0) for name in ('rte', 'cb', 'copa'))
  monkeypatch.setattr(task, '_REGISTRY', dict(task._REGISTRY))
  task.register(mixture.Mixture(name='cached_mixture_of_a_test', parts=parts))
  found = cached.make(name='cached_mixture_of_a_test', cache_dir=tmp_path)
  assert [member.name for member in found.trained] == ['super_glue_rte_v102']
  assert len(found.evaluated) == 3


def test_errors(tmp_path):
  with pytest.raises(UserError, match='give --gin.CACHE_DIR'):
    cached.make(name='theirs', cache_dir=None)
  write(tmp_path)
  with pytest.raises(UserError, match="no cache of a task 'mine'; it holds caches of theirs"):
    cached.make(name='mine', cache_dir=tmp_path).check_split('train')
  found = cached.make(name='theirs', cache_dir=tmp_path)
  with pytest.raises(UserError, match="holds train with {'inputs': 16, 'targets': 16}"):
    cache.build(found, 'train', VOCAB, {'inputs': 8}, tmp_path)
  with pytest.raises(UserError, match='another vocabulary'):
    cache.build(found, 'train', vocabulary.ByteVocabulary(7), LENGTHS, tmp_path)
  write(tmp_path, inputs='z')
  with pytest.raises(UserError, match='several caches of theirs train'):
    cache.build(found, 'train', VOCAB, LENGTHS, tmp_path)
