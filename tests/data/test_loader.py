"""Loaders: arrays, exact resume from one number, evaluation that sees every example once."""

import numpy as np
import pytest
from data.batches import for_training

from prompt_tuning import vocabulary
from prompt_tuning.data import cache, loader, sources, task
from prompt_tuning.errors import UserError


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  rng = np.random.default_rng(0)
  rows = tuple({'inputs': 'i' * int(n), 'targets': 't' * int(n % 5)}
               for n in rng.integers(0, 60, 45))
  the_task = task.Task(name='lengths', source=sources.ListSource({'train': rows}))
  return cache.build(the_task, 'train', vocabulary.ByteVocabulary(), {'inputs': 64, 'targets': 8},
                     tmp_path_factory.mktemp('cache'))


def take(iterator, count):
  return [next(iterator) for _ in range(count)]


def assert_equal(a, b):
  assert a.keys() == b.keys() and a
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_arrays(built):
  batches = for_training(built, 8)
  for batch in take(batches, 6):
    shape = batch['encoder_input_tokens'].shape
    assert (shape[1], batch['decoder_target_tokens'].shape[1]) in batches.shapes
    assert {k: v.dtype for k, v in batch.items()} == {
        'encoder_input_tokens': np.int32, 'decoder_input_tokens': np.int32,
        'decoder_target_tokens': np.int32, 'decoder_loss_weights': np.float32}
    target, shifted = batch['decoder_target_tokens'], batch['decoder_input_tokens']
    assert (shifted[:, 0] == 0).all() and (shifted[:, 1:] == target[:, :-1]).all()
    assert (batch['decoder_loss_weights'] == (target > 0)).all()
  batches.close()


def test_an_epoch_holds_every_example(built):
  batches = for_training(built, 8)
  seen = []
  for batch in take(batches, batches.plan.epoch_length):
    lengths = (batch['encoder_input_tokens'] > 0).sum(1)
    seen += lengths[lengths > 0].tolist()
  assert sorted(seen) == sorted(built.lengths[:, 0].tolist())
  assert batches.epoch == 1.0
  batches.close()


@pytest.mark.parametrize('read_ahead', [0, 4])
def test_resume_is_exact(built, read_ahead):
  plan = for_training(built, 8, seed=3).plan
  straight = loader.TrainLoader(built, plan, read_ahead)
  expected = take(straight, 20)
  assert straight.index == 20
  for start in (0, 3, 6, 13):
    resumed = loader.TrainLoader(built, plan, read_ahead)
    take(resumed, 2)
    resumed.index = start
    assert resumed.index == start
    for a, b in zip(take(resumed, 20 - start), expected[start:], strict=True):
      assert_equal(a, b)
    resumed.close()
  straight.close()
  with pytest.raises(UserError, match='data index is -1'):
    loader.TrainLoader(built, plan, 0).index = -1


def test_hosts_read_disjoint_shares(built):
  whole = for_training(built, 8, seed=1)
  shares = [for_training(built, 8, seed=1, process_index=i, process_count=2)
            for i in range(2)]
  for _ in range(7):
    parts = [next(s) for s in shares]
    joined = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    assert_equal(joined, next(whole))
  for each in (whole, *shares):
    each.close()


def test_evaluation_gives_every_example_once(built):
  evaluation = loader.for_evaluation(built, 8)
  assert len(evaluation) == 6
  for _ in range(2):
    ids = []
    for batch in evaluation:
      weights = batch.arrays['decoder_loss_weights'].sum(1)
      for example_id, record, weight, row in zip(
          batch.ids, batch.records, weights, batch.arrays['encoder_input_tokens'], strict=True):
        assert (example_id is None) == (record is None) == (weight == 0) == (row.sum() == 0)
        if record is not None:
          assert (row > 0).sum() == len(record['inputs_pretokenized']) + 1
      ids += [i for i in batch.ids if i is not None]
    assert sorted(map(int, ids)) == list(range(45))


def test_hosts_evaluate_shares_and_know_all_records(built):
  whole = list(loader.for_evaluation(built, 8))
  shares = [list(loader.for_evaluation(built, 8, process_index=i, process_count=2))
            for i in range(2)]
  assert len(whole) == 6
  for batch, *parts in zip(whole, *shares, strict=True):
    assert parts[0].ids == parts[1].ids == batch.ids
    assert_equal({k: np.concatenate([p.arrays[k] for p in parts]) for k in batch.arrays},
                 batch.arrays)


def test_eval_steps(built):
  whole = list(loader.for_evaluation(built, 8))
  for _ in range(2):
    first = list(loader.for_evaluation(built, 8, max_batches=2))
    assert [b.ids for b in first] == [b.ids for b in whole[:2]]
  assert len(list(loader.for_evaluation(built, 100))) == 1
  for wrong in (0, -1):
    with pytest.raises(UserError, match=f'EVAL_STEPS is {wrong}'):
      loader.for_evaluation(built, 8, max_batches=wrong)


def test_fixed_shape(built):
  batches = for_training(built, 8, buckets=[(64, 8)])
  assert {b['encoder_input_tokens'].shape for b in take(batches, 8)} == {(8, 64)}
  batches.close()
