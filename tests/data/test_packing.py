"""Laws of packing: the batches of the plan, every example whole and once, few shapes."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_tuning import vocabulary
from prompt_tuning.data import cache, loader, packing, plan, sources, task
from prompt_tuning.errors import UserError
from prompt_tuning.models.t5 import T5, T5Config

GOLDEN = pathlib.Path(__file__).parent.parent / 'golden' / 'data' / 'text' / 'preprocess.json'
SETTINGS = settings(deadline=None, max_examples=25)
COST = packing.row_cost(T5Config())


def random_lengths(count, seed):
  rng = np.random.default_rng(seed)
  return np.stack([rng.integers(1, 101, count), rng.integers(1, 13, count)], 1)


@st.composite
def cases(draw):
  lengths = random_lengths(draw(st.integers(1, 80)), draw(st.integers(0, 999)))
  chosen = packing.choose_packing(
      lengths, draw(st.integers(1, 17)), COST, prompt_length=draw(st.sampled_from([0, 20])),
      max_shapes=draw(st.integers(1, 4)), row_multiple=draw(st.integers(1, 4)))
  return lengths, chosen


@SETTINGS
@given(cases(), st.integers(0, 99))
def test_any_batch_fits(case, seed):
  lengths, chosen = case
  batch_size = chosen.shapes[-1][0]
  examples = np.random.default_rng(seed).permutation(len(lengths))[:batch_size]
  batch = chosen.pack(lengths, np.concatenate([examples, [plan.PADDING_ROW]]))
  assert (len(batch.rows), *batch.shape) in chosen.shapes
  assert sorted(batch.rows[batch.rows >= 0]) == sorted(examples)
  for row in batch.rows:
    used = lengths[row[row >= 0]] + [chosen.prompt_length, 0]
    assert (used.sum(axis=0) <= batch.shape).all()
  again = chosen.pack(lengths, examples)
  assert again.shape == batch.shape and (again.rows == batch.rows).all()


def test_batches_are_those_of_one_bucket():
  lengths = random_lengths(70, 0)
  options = dict(lengths=lengths, batch_size=8, seed=3)
  chosen = packing.choose_packing(lengths, 8, COST, prompt_length=5)
  packed = packing.packed_plan(chosen, **options)
  single = plan.TrainPlan(buckets=((100, 12),), **options)
  assert packed.epoch_length == single.epoch_length == 9
  for n in (17, 0, 5, 12):
    want, rows = single[n].rows, packed[n].rows
    assert sorted(rows[rows >= 0]) == sorted(want[want >= 0])


def test_shapes():
  lengths = random_lengths(500, 1)
  chosen = packing.choose_packing(lengths, 32, COST, prompt_length=20, max_shapes=4, row_multiple=2)
  prices = [rows * COST(*slots) for rows, *slots in chosen.shapes]
  assert prices == sorted(prices) and 3 <= len(prices) <= 6
  assert chosen.shapes[-1] == (32, 120, 12)
  assert all(r % 2 == 0 and t % 8 == 0 and l % 2 == 0 for r, t, l in chosen.shapes)
  batches = [packing.packed_plan(chosen, lengths=lengths, batch_size=32)[n] for n in range(60)]
  assert sum(len(b.rows) == 32 for b in batches) < 3
  with pytest.raises(UserError, match='cannot be divided among 4 processes'):
    packing.packed_plan(chosen, lengths=lengths, batch_size=32, process_count=4)


def test_best_fit():
  sizes = np.asarray([[3, 1], [6, 1], [4, 1], [7, 1]])
  assert packing.fill_rows(sizes, 10, 9) == [[3, 0], [1, 2]]
  assert packing.fill_rows(sizes, 10, 1) == [[0], [1], [2], [3]]
  assert packing.fill_rows(sizes[:0], 10, 9) == []


def test_wasted_flops():
  lengths = np.asarray([[4, 1], [8, 1]])
  batches = [plan.Batch(np.asarray([0, 1]), (8, 1))]
  linear = lambda inputs, targets: inputs  # noqa: E731
  assert packing.wasted_flops(lengths, batches, linear) == pytest.approx(1 - 12 / 16)
  assert packing.wasted_flops(lengths, batches, linear, 2) == pytest.approx(1 - 16 / 20)
  packed = packing.Packing(shapes=((1, 20, 2),), prompt_length=2).pack(lengths, np.arange(2))
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
  arrays = packing.assemble(pairs, packing.PackedBatch(rows, (8, 7), packing.Packing(shapes=())))
  assert arrays.keys() == golden.keys()
  for name, array in arrays.items():
    assert array[0].tolist() == golden[name] and not array[1].any()
    assert array.dtype == (np.float32 if 'weights' in name else np.int32)


@pytest.mark.parametrize('placement, tokens', [
    ('prefix', [0, 0, 7, 8, 1]), ('after_first', [7, 0, 0, 8, 1]), ('suffix', [7, 8, 1, 0, 0]),
    ('suffix_before_eos', [7, 8, 0, 0, 1])])
def test_slots_of_the_prompt(placement, tokens):
  layout = packing.Packing(shapes=((1, 12, 4),), prompt_length=2, placement=placement)
  batch = layout.pack(np.asarray([[3, 1]] * 2), np.arange(2))
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
  make = lambda **options: loader.for_training(  # noqa: E731
      built, 8, seed=3, packing=chosen, **options)
  whole = make()
  expected = [next(whole) for _ in range(13)]
  assert whole.shapes == chosen.shapes
  seen = sum(batch['decoder_segment_ids'].max(axis=1).sum() for batch in expected[:6])
  assert seen == 45 and whole.plan.epoch_length == 6
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
