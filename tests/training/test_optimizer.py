"""Where optimizers start counting, their defaults and their refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning import errors
from prompt_tuning.training import optimizer as optimizer_lib
from prompt_tuning.training import schedules, state

PROMPT = {'prompt': np.linspace(-0.4, 0.5, 12, dtype=np.float32).reshape(3, 4)}
GRADS = {'prompt': np.cos(np.arange(12, dtype=np.float32)).reshape(3, 4)}


def _by_hand(step, steps=3, learning_rate=0.3, decay=1e-5, offset=0):
  """The reference recipe's Adafactor, written out (golden README)."""
  p, v = PROMPT['prompt'].astype(np.float64), np.zeros((3, 4))
  for t in range(step - offset, step - offset + steps):
    g = GRADS['prompt'].astype(np.float64)
    beta = 1 - (t + 1.0) ** -0.8
    v = beta * v + (1 - beta) * (g ** 2 + 1e-30)
    y = g / np.sqrt(v)
    y /= max(1, np.sqrt(np.mean(y ** 2)))
    p = (1 - decay) * p - learning_rate * y
  return p, v


def _run(optimizer, step=0, steps=3):
  current = state.create(PROMPT, optimizer, step)
  trainable, opt_state = current.trainable, current.opt_state
  for _ in range(steps):
    updates, opt_state = optimizer.update(GRADS, opt_state, trainable)
    trainable = optax.apply_updates(trainable, updates)
  return trainable['prompt'], opt_state


@pytest.mark.parametrize('step', [0, 7, 1000])
def test_the_defaults_are_the_reference_recipe(step):
  prompt, _ = _run(optimizer_lib.adafactor(), step)
  np.testing.assert_allclose(prompt, _by_hand(step)[0], rtol=1e-4)


def test_a_t5x_base_gives_other_numerics_than_zero():
  at_base, opt_state = _run(optimizer_lib.adafactor(), 1_100_000)
  from_zero, _ = _run(optimizer_lib.adafactor())
  np.testing.assert_allclose(at_base, _by_hand(1_100_000)[0], rtol=1e-4)
  # At such a step almost nothing of the gradient enters v: its first moments are far apart.
  v = opt_state[0].v['prompt']
  np.testing.assert_allclose(v, _by_hand(1_100_000)[1], rtol=1e-2)
  assert np.max(np.asarray(v)) < 1e-3
  assert from_zero.shape == at_base.shape


def test_step_offset_restarts_the_decay():
  restarted, opt_state = _run(optimizer_lib.adafactor(step_offset=1000), 1000)
  from_zero, _ = _run(optimizer_lib.adafactor())
  np.testing.assert_array_equal(restarted, from_zero)
  assert opt_state[0].count == 3


def test_step_offset_beyond_the_first_step_is_refused():
  with pytest.raises(errors.UserError, match='ADAFACTOR_STEP_OFFSET is 8, .* from 0 to 7'):
    state.create(PROMPT, optimizer_lib.adafactor(step_offset=8), 7)


@pytest.mark.parametrize('make', [optimizer_lib.adafactor, optimizer_lib.adamw, optimizer_lib.sgd])
def test_schedules_see_the_absolute_step(make):
  seen = make(schedules.linear_decay(1.0, 10, start_step=100))
  fixed = make(1.0)
  moved = _run(seen, 100, steps=1)[0] - PROMPT['prompt']
  reference = _run(fixed, 100, steps=1)[0] - PROMPT['prompt']
  np.testing.assert_allclose(moved, reference, atol=1e-6)
  at_end = _run(seen, 110, steps=1)[0]
  # Adafactor's weight decay is not multiplied by the rate: 1e-5 of the value goes even here.
  np.testing.assert_allclose(at_end, PROMPT['prompt'], atol=1e-5)
  assert np.abs(moved).max() > 0.1


def test_adams_bias_correction_starts_at_zero_whatever_the_step():
  optimizer = optimizer_lib.adamw(schedules.constant(0.1))
  np.testing.assert_array_equal(_run(optimizer, 0)[0], _run(optimizer, 1_000_000)[0])


@pytest.mark.parametrize('make', [optimizer_lib.adamw, optimizer_lib.sgd])
def test_global_norm_is_clipped(make):
  clipped = make(1.0, global_norm_clip_threshold=0.5)
  plain = make(1.0)
  norm = np.linalg.norm(GRADS['prompt'])
  scaled = {'prompt': GRADS['prompt'] * np.float32(0.5 / norm)}
  opt_state = clipped.init(PROMPT)
  updates, _ = clipped.update(GRADS, opt_state, PROMPT)
  expected, _ = plain.update(scaled, plain.init(PROMPT), PROMPT)
  np.testing.assert_allclose(updates['prompt'], expected['prompt'], rtol=1e-6)


def test_the_state_can_be_made_abstractly():
  shape = jax.eval_shape(lambda p: state.create(p, optimizer_lib.adafactor(), 5), PROMPT)
  assert shape.opt_state[0].v['prompt'].shape == (3, 4)
  assert shape.step.dtype == jnp.int32


@pytest.mark.parametrize('make', [optimizer_lib.adafactor, optimizer_lib.adamw, optimizer_lib.sgd])
def test_bfloat16_parameters_stay_bfloat16(make):
  leaves = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), PROMPT)
  optimizer = make(schedules.constant(0.1))
  updates, _ = optimizer.update(leaves, optimizer.init(leaves), leaves)
  assert optax.apply_updates(leaves, updates)['prompt'].dtype == jnp.bfloat16
