"""The training step: what moves, micro-batches, dropout, metrics, sharded batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from prompt_tuning import errors, losses, partitioning
from prompt_tuning import params as params_lib
from prompt_tuning.models import t5
from prompt_tuning.peft import model as peft_model
from prompt_tuning.peft import prompt_init, soft_prompt
from prompt_tuning.training import optimizer as optimizer_lib
from prompt_tuning.training import state as state_lib
from prompt_tuning.training import step as step_lib

MODEL = peft_model.PeftModel(
    backbone=t5.T5(t5.T5Config(vocab_size=32, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=12,
                               num_encoder_layers=1, num_decoder_layers=1, dropout_rate=0.3)),
    methods=(soft_prompt.SoftPrompt(length=3, init=prompt_init.Uniform()),))
RNG = jax.random.key(7)


@pytest.fixture(scope='module')
def split():
  params = jax.jit(MODEL.init)(jax.random.key(0), *[jnp.ones((1, 4), jnp.int32)] * 3)['params']
  return params_lib.split(params, MODEL.trainable)


def _batch(rows=8):
  """Rows of different length; the second half of them is much shorter than the first."""
  rng = np.random.default_rng(0)
  inputs = rng.integers(2, 32, (rows, 6)).astype(np.int32)
  targets = rng.integers(2, 32, (rows, 4)).astype(np.int32)
  inputs[rows // 2:, 2:] = 0
  targets[rows // 2:, 1:] = 0
  shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  return {'encoder_input_tokens': inputs, 'decoder_input_tokens': shifted,
          'decoder_target_tokens': targets,
          'decoder_loss_weights': (targets != 0).astype(np.float32)}


_KEEP_GRADIENT = optax.trace(decay=0.0)  # its state is the gradient
_ADAFACTOR = optimizer_lib.adafactor()


@functools.cache
def _step(optimizer, **options):
  """Steps are shared between tests: compiling is what takes the time."""
  return step_lib.make_train_step(MODEL, optimizer, **options)


def _start(split, optimizer):
  return state_lib.create(jax.tree.map(jnp.copy, split[0]), optimizer)


def _gradient(split, batch, **options):
  """(gradient of the prompt, metrics) of one step."""
  step = _step(_KEEP_GRADIENT, **{'enable_dropout': False, **options})
  state, metrics = step(_start(split, _KEEP_GRADIENT), split[1], batch, RNG)
  gradient, = jax.tree.leaves(state.opt_state.trace)
  return gradient, metrics


def _train(split, steps, *, rng=RNG, start=None, **options):
  step = _step(_ADAFACTOR, **options)
  state = start or _start(split, _ADAFACTOR)
  for _ in range(steps):
    state, metrics = step(state, split[1], _batch(), rng)
  return state, metrics


def _assert_equal(left, right):
  leaves = list(zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))
  assert len(leaves) > 0
  for a, b in leaves:
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('factor', [None, 'AVERAGE_PER_SEQUENCE'])
def test_micro_batches_equal_the_large_batch(split, factor):
  config = losses.LossConfig(loss_normalizing_factor=factor)
  whole, metrics = _gradient(split, _batch(), loss=config)
  parts, part_metrics = _gradient(split, _batch(), loss=config, num_microbatches=4)
  np.testing.assert_allclose(parts, whole, atol=2e-6 * np.abs(whole).max())
  assert np.abs(whole).max() > 1e-4
  assert metrics.keys() == part_metrics.keys()
  for name, pair in metrics.items():
    np.testing.assert_allclose(part_metrics[name], pair, rtol=1e-5, err_msg=name)


def test_micro_batches_that_do_not_divide_are_refused(split):
  with pytest.raises(errors.UserError, match='8 rows .* 3 micro-batches: .* divides 8'):
    _gradient(split, _batch(), num_microbatches=3)


def test_micro_batches_draw_their_own_dropout():
  def draw(trainable, frozen, batch, factor, rng):
    value = jax.random.uniform(rng)
    return (value, {'drawn': value}), value
  sums, _ = jax.jit(
      lambda batch: step_lib._accumulate(draw, 4, {}, {}, batch, 1.0, RNG))(_batch())
  draws = [float(jax.random.uniform(jax.random.fold_in(RNG, part))) for part in range(4)]
  assert len(set(draws)) == 4
  np.testing.assert_allclose(sums['drawn'], sum(draws), rtol=1e-6)


def test_a_run_repeats_bit_for_bit(split):
  first, metrics = _train(split, 3)
  second, again = _train(split, 3)
  _assert_equal((first, metrics), (second, again))


def test_a_run_continued_from_its_state_is_the_same_run(split):
  whole, _ = _train(split, 4)
  half, _ = _train(split, 2)
  restored = jax.tree.map(jnp.asarray, jax.device_get(half))
  continued, _ = _train(split, 2, start=restored)
  _assert_equal(whole, continued)


def test_dropout_depends_on_rng_and_step(split):
  _, metrics = _train(split, 1)
  _, other = _train(split, 1, rng=jax.random.key(8))
  assert float(metrics['loss'][0]) != float(other['loss'][0])
  later = _start(split, _ADAFACTOR).replace(step=jnp.int32(5))  # nothing else is different
  _, other = _train(split, 1, start=later)
  assert float(metrics['loss'][0]) != float(other['loss'][0])
  _, without = _train(split, 1, enable_dropout=False)
  _, other = _train(split, 1, rng=jax.random.key(8), enable_dropout=False)
  assert float(without['loss'][0]) == float(other['loss'][0])


@pytest.mark.parametrize('weight', [np.nan, np.inf])
def test_steps_without_a_finite_loss_are_left_out(split, weight):
  """Good, bad, good, bad, good, with one bad step allowed: the second one freezes the state."""
  step = _step(_ADAFACTOR, max_nonfinite=1, enable_dropout=False)
  good = _batch()
  bad = dict(good, decoder_loss_weights=np.full_like(good['decoder_loss_weights'], weight))
  state, states, left_out = _start(split, _ADAFACTOR), [], []
  for batch in (good, bad, good, bad, good):
    state, metrics = step(state, split[1], batch, RNG)
    states.append(jax.device_get(state))
    left_out.append(float(metrics['nonfinite'][0]))
  assert left_out == [0, 1, 0, 1, 1]
  assert [int(s.step) for s in states] == [1, 2, 3, 3, 3]
  assert [int(s.nonfinite) for s in states] == [0, 1, 1, 2, 2]
  _assert_equal((states[0].trainable, states[0].opt_state),
                (states[1].trainable, states[1].opt_state))
  _assert_equal(states[2], states[3].replace(nonfinite=states[2].nonfinite))
  _assert_equal(states[3], states[4])
  moved, = [np.abs(a - b).max() for a, b in zip(
      jax.tree.leaves(states[0].trainable), jax.tree.leaves(states[2].trainable), strict=True)]
  assert moved > 0 and np.isfinite(moved)


def test_an_infinite_gradient_of_a_finite_loss_is_left_out(split):
  """As half precision gives it: the loss alone would not tell."""
  infinite = optax.GradientTransformation(
      lambda params: (), lambda updates, state, params: (updates, state))

  class Steep:
    def apply(self, variables, *args, **kwargs):
      prompt, = jax.tree.leaves(variables['params'])
      flat = jnp.sum(jnp.sqrt(jnp.abs(prompt - prompt)))  # 0, of infinite slope
      return jnp.zeros((8, 4, 32)) + flat

  step = step_lib.make_train_step(Steep(), infinite, enable_dropout=False)
  start = state_lib.create({'prompt': jnp.ones(3)}, infinite)
  state, metrics = step(start, {}, _batch(), RNG)
  assert np.isfinite(metrics['loss'][0]) and not np.isfinite(metrics['grad_norm'][0])
  assert int(state.step) == 0 and int(state.nonfinite) == 1
  np.testing.assert_array_equal(state.trainable['prompt'], np.ones(3))


def test_only_the_trainable_part_moves(split):
  before = params_lib.fingerprint(split[1])
  state, _ = _train(split, 2)
  assert state.step == 2
  prompt, = jax.tree.leaves(state.trainable)
  start, = jax.tree.leaves(split[0])
  assert prompt.shape == start.shape == (3, 8)
  assert np.min(np.abs(prompt - start)) > 1e-3
  assert params_lib.fingerprint(split[1]) == before


def test_the_state_is_donated_and_nothing_else(split):
  state = _start(split, _ADAFACTOR)
  old, = jax.tree.leaves(state.trainable)
  _step(_ADAFACTOR)(state, split[1], _batch(), RNG)
  assert old.is_deleted()
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(split[1]))


def test_metrics(split):
  batch = _batch()
  gradient, metrics = _gradient(split, batch)
  values = {name: float(total) / float(weight) for name, (total, weight) in metrics.items()}
  logits = jax.jit(MODEL.apply)(
      {'params': params_lib.merge(*split)}, batch['encoder_input_tokens'],
      batch['decoder_input_tokens'], batch['decoder_target_tokens'])
  real = batch['decoder_target_tokens'] != 0
  hits = (np.argmax(logits, -1) == batch['decoder_target_tokens'])[real]
  loss, z_loss, weight = losses.token_cross_entropy(
      logits, batch['decoder_target_tokens'], batch['decoder_loss_weights'], z_loss=1e-4)
  expected = {'loss': loss, 'z_loss': z_loss, 'loss_per_token': loss / weight,
              'accuracy': hits.mean(), 'grad_norm': np.linalg.norm(gradient), 'examples': 8,
              'tokens': 4 * 6 + 4 * 2 + 4 * 4 + 4, 'padding_share': 28 / 80, 'nonfinite': 0}
  assert values.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(values[name], value, rtol=1e-5, err_msg=name)


def test_packed_rows_count_their_segments(split):
  batch = _batch(2)
  batch['decoder_segment_ids'] = np.array([[1, 1, 2, 2], [1, 0, 0, 0]], np.int32)
  metrics = step_lib._metrics(dict.fromkeys(
      ('loss', 'z_loss', 'loss_sum', 'weight_sum', 'correct', 'counted'), 0.0), batch)
  assert metrics['examples'][0] == 3


def test_missing_loss_weights_mean_every_target(split):
  batch = _batch()
  with_weights, _ = _gradient(split, batch)
  del batch['decoder_loss_weights']
  without, _ = _gradient(split, batch)
  np.testing.assert_array_equal(without, with_weights)


def test_evaluation_is_the_step_without_dropout_and_gradient(split):
  _, trained = _gradient(split, _batch())
  evaluated = step_lib.make_eval_step(MODEL)(*split, _batch())
  assert evaluated.keys() == trained.keys() - {'grad_norm', 'nonfinite'}
  for name, pair in evaluated.items():
    np.testing.assert_allclose(pair, trained[name], rtol=1e-6)


def test_sharded_batch_and_parameters(split):
  expected, metrics = _gradient(split, _batch())
  mesh = partitioning.make_mesh(num_partitions=2)
  frozen = partitioning.shard_params(split[1], mesh)
  trainable = jax.device_put(split[0], NamedSharding(mesh, PartitionSpec()))
  gradient, sharded = _gradient((trainable, frozen), partitioning.shard_batch(_batch(), mesh),
                                num_microbatches=2)
  np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max())
  np.testing.assert_allclose(sharded['loss'], metrics['loss'], rtol=1e-6)
