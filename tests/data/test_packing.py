"""Laws of packing: every example whole and once, full batches, few shapes, little waste."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data.batches import for_training, random_lengths
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_tuning import vocabulary
from prompt_tuning.data import cache, packing, plan, sources, task
from prompt_tuning.errors import UserError
from prompt_tuning.models.t5 import T5, T5Config

GOLDEN = pathlib.Path(__file__).parent.parent / 'golden' / 'data' / 'text' / 'preprocess.json'
SETTINGS = settings(deadline=None, max_examples=25)
COST = packing.row_cost(T5Config())


@st.composite
def cases(draw):
  lengths = random_lengths(draw(st.integers(1, 300)), draw(st.integers(0, 999)))
  rows = draw(st.integers(1, 3))
  chosen = packing.choose_packing(
      lengths, rows * draw(st.sampled_from([1, 2, 4, 8])), COST, row_multiple=rows,
      prompt_length=draw(st.sampled_from([0, 20])), max_shapes=draw(st.integers(1, 6)))
  return lengths, chosen, rows


def slots_of(batch, chosen):
  """(input slots T with the prompt's, target slots L) of the rows of a batch, [R, S] examples."""
  if isinstance(batch, packing.PackedBatch):
    return batch.shape, batch.rows
  return (batch.shape[0] + chosen.prompt_length, batch.shape[1]), batch.rows[:, None]


@SETTINGS
@given(cases(), st.integers(0, 99), st.booleans())
def test_every_example_once_in_rows_that_hold_it(case, epoch, shuffle):
  lengths, chosen, row_multiple = case
  batches = chosen.epoch(lengths, seed=1, epoch=epoch, shuffle=shuffle)
  assert len(chosen.groups) <= 6 and len(batches) == -(-len(lengths) // chosen.batch_size)
  seen = []
  for batch in batches:
    slots, rows = slots_of(batch, chosen)
    assert (len(rows), *slots) in chosen.shapes and len(rows) % row_multiple == 0
    for row in rows:
      used = lengths[row[row >= 0]] + [chosen.prompt_length, 0]
      assert (used.sum(axis=0) <= slots).all()
    seen.append(rows[rows >= 0])
  assert sorted(np.concatenate(seen)) == list(range(len(lengths)))
  # One batch is short, and in a few the last row of a group lacks an example.
  short = sorted(chosen.batch_size - len(part) for part in seen if len(part) < chosen.batch_size)
  assert len(short) < 8 and sum(short[:-1]) < 8


@pytest.mark.parametrize('count, epoch_length', [(70, 8), (64, 8), (7, 0)])
def test_drop_leaves_out_what_fills_no_batch(count, epoch_length):
  lengths = random_lengths(count, 0)
  chosen = packing.choose_packing(lengths, 8, COST, prompt_length=5)
  if not epoch_length:
    with pytest.raises(UserError, match='7 examples do not fill one batch of 8'):
      packing.PackedPlan(lengths=lengths, packing=chosen, remainder='drop')
    return
  batches = chosen.epoch(lengths, remainder='drop')
  assert len(batches) == epoch_length
  assert packing.PackedPlan(
      lengths=lengths, packing=chosen, remainder='drop').epoch_length == epoch_length


def test_epochs_are_shuffled():
  """Other batches every epoch, other neighbours where sizes are equal."""
  lengths = np.repeat(random_lengths(60, 2), 8, axis=0)
  chosen = packing.choose_packing(lengths, 16, COST, prompt_length=20)
  epochs = [chosen.epoch(lengths, seed=5, epoch=epoch) for epoch in (0, 1, 0)]
  batches = [[frozenset(batch.rows.ravel().tolist()) for batch in epoch] for epoch in epochs]
  assert batches[0] == batches[2]
  assert len(set(batches[0]) & set(batches[1])) <= 1  # that of the longest
  rows = [{tuple(sorted(row)) for batch in epoch if batch.rows.ndim == 2
           for row in batch.rows.tolist()} for epoch in epochs]
  assert len(rows[0]) > 20 and len(rows[0] & rows[1]) < len(rows[0]) / 2


def test_wide_targets_are_kept_apart():
  """A few long targets do not make every row long."""
  lengths = np.asarray([[56, 2]] * 90 + [[56, 60]] * 6)
  chosen = packing.choose_packing(lengths, 2, COST, max_shapes=2)
  assert [slots for _, *slots in chosen.shapes] == [[56, 2], [56, 60]]


@pytest.mark.parametrize('count, seed', [(2490, 0), (250, 3)])
def test_close_to_the_bound(count, seed):
  """Lengths spread as those of published tasks are: the median half of the 95th percentile."""
  rng = np.random.default_rng(seed)
  inputs = np.clip(rng.lognormal(4.3, 0.6, count), 8, 512).astype(int)
  lengths = np.stack([inputs, rng.integers(2, 6, count)], 1)
  for prompt in (20, 100):
    chosen = packing.choose_packing(lengths, 32, COST, prompt_length=prompt)
    wasted = packing.wasted_flops(lengths, chosen.epoch(lengths), COST, prompt)
    assert wasted < (0.1 if count > 1000 else 0.25)
    buckets = plan.choose_buckets(lengths, prompt_length=prompt)
    padded = plan.epoch_plan(lengths, buckets, 32)
    assert wasted < packing.wasted_flops(lengths, padded, COST, prompt)


def test_hosts_need_rows():
  lengths = random_lengths(64, 1)
  chosen = packing.choose_packing(lengths, 8, COST)
  with pytest.raises(UserError, match='cannot be divided among 3 processes'):
    packing.PackedPlan(lengths=lengths, packing=chosen, process_count=3)


def test_fold():
  sizes = np.asarray([[1, 9], [2, 1], [3, 1], [4, 1], [9, 1]])
  rows, totals = packing.fold(sizes, 2)
  assert rows.tolist() == [[4, -1], [3, 0], [2, 1]] and totals.tolist() == [[9, 1], [5, 10], [5, 2]]
  rows, totals = packing.fold(sizes, 4)
  assert sorted(rows.ravel()) == [-1, -1, -1, 0, 1, 2, 3, 4] and (totals[:, 0] <= 14).all()
  assert (rows[:, 0] >= 0).all()
  # Much with much by inputs alone; evened out among neighbours.
  sizes = np.asarray([[10, 1], [11, 9], [20, 9], [21, 1]])
  assert packing.fold(sizes, 2)[1].tolist() == [[31, 2], [31, 18]]
  assert packing.fold(sizes, 2, window=2)[1].tolist() == [[30, 10], [32, 10]]


def test_wasted_flops():
  lengths = np.asarray([[4, 1], [8, 1]])
  batches = [plan.Batch(np.asarray([0, 1]), (8, 1))]
  linear = lambda inputs, targets: inputs  # noqa: E731
  assert packing.wasted_flops(lengths, batches, linear) == pytest.approx(1 - 12 / 16)
  assert packing.wasted_flops(lengths, batches, linear, 2) == pytest.approx(1 - 16 / 20)
  packed = packing.PackedBatch(np.asarray([[0, 1]]), (20, 2), prompt_length=2)
  assert packing.wasted_flops(lengths, [packed], linear, 2) == pytest.approx(1 - 16 / 20)


@pytest.mark.parametrize('inputs, targets', [(64, 8), (512, 8), (64, 64)])
def test_row_cost_is_what_xla_counts(inputs, targets):
  config = T5Config(num_encoder_layers=2, num_decoder_layers=2, vocab_size=4096)
  rows = [jax.ShapeDtypeStruct((1, n), jnp.int32) for n in (inputs, targets, targets)]
  params = jax.eval_shape(lambda key: T5(config).init(key, *(jnp.ones(r.shape, r.dtype)
                                                             for r in rows)), jax.random.key(0))
  counted = jax.jit(T5(config).apply).lower(params, *rows).cost_analysis()['flops']
  # Softmax, norms and gelu are no products.
  assert 0.9 < packing.row_cost(config)(inputs, targets) / counted < 1


def test_arrays_are_those_of_t5x():
  golden = json.loads(GOLDEN.read_text())['preprocessors']['feature_converters']
  [golden] = golden['encdec_pack_true_len_8_7']
  pairs = [(np.asarray([7, 8, 5, 1]), np.asarray([9, 1])),
           (np.asarray([3, 9, 1]), np.asarray([4, 5, 6, 1]))]
  rows = np.asarray([[0, 1], [-1, -1]])
  arrays = packing.assemble(pairs, packing.PackedBatch(rows, (8, 7)))
  assert arrays.keys() == golden.keys()
  for name, array in arrays.items():
    assert array[0].tolist() == golden[name] and not array[1].any()
    assert array.dtype == (np.float32 if 'weights' in name else np.int32)


@pytest.mark.parametrize('placement, tokens', [
    ('prefix', [0, 0, 7, 8, 1]), ('after_first', [7, 0, 0, 8, 1]), ('suffix', [7, 8, 1, 0, 0]),
    ('suffix_before_eos', [7, 8, 0, 0, 1])])
def test_slots_of_the_prompt(placement, tokens):
  batch = packing.PackedBatch(np.asarray([[0, 1]]), (12, 4), 2, placement)
  arrays = packing.assemble([(np.asarray([7, 8, 1]), np.asarray([1]))] * 2, batch)
  assert arrays['encoder_input_tokens'][0].tolist() == tokens * 2 + [0, 0]
  assert arrays['encoder_segment_ids'][0].tolist() == [1] * 5 + [2] * 5 + [0] * 2
  assert arrays['encoder_positions'][0].tolist() == [0, 1, 2, 3, 4] * 2 + [0] * 2


def test_resume_and_hosts(tmp_path):
  rows = tuple({'inputs': 'i' * int(n), 'targets': 't' * int(n % 5)}
               for n in np.random.default_rng(0).integers(0, 60, 45))
  built = cache.build(task.Task(name='lengths', source=sources.ListSource({'train': rows})),
                      'train', vocabulary.ByteVocabulary(), {'inputs': 64, 'targets': 8}, tmp_path)
  chosen = packing.choose_packing(built.lengths, 8, COST, prompt_length=4, row_multiple=2)
  make = lambda **options: for_training(  # noqa: E731
      built, 8, seed=3, packing=chosen, **options)
  whole = make()
  expected = [next(whole) for _ in range(13)]
  assert whole.shapes == chosen.shapes
  # One end of sequence each; rows are shared in some batches, in the second epoch too.
  assert sum((batch['decoder_target_tokens'] == 1).sum() for batch in expected[:6]) == 45
  assert whole.plan.epoch_length == 6
  assert all(any('decoder_segment_ids' in batch for batch in part)
             for part in (expected[4:6], expected[6:]))
  whole.index = 4
  hosts = [make(process_index=i, process_count=2) for i in range(2)]
  for host in hosts:
    host.index = 4
  for want in expected[4:]:
    again, parts = next(whole), [next(host) for host in hosts]
    for name, array in want.items():
      np.testing.assert_array_equal(again[name], array, err_msg=name)
      joined = np.concatenate([part[name] for part in parts])
      np.testing.assert_array_equal(joined, array, err_msg=name)
  for each in (whole, *hosts):
    each.close()
