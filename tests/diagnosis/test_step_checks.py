"""Optimizers that do nothing, steps of the wrong size, gradients that are not there."""

import math

import jax
import jax.numpy as jnp
import optax
import pytest

from prompt_tuning.diagnosis import step_checks
from prompt_tuning.diagnosis.findings import NOTE, PROBLEM, WARNING
from prompt_tuning.training import optimizer as optimizer_lib
from prompt_tuning.training import schedules
from prompt_tuning.training import state as state_lib

PROMPT = {'prompt': jax.ShapeDtypeStruct((100, 512), jnp.float32)}


def sizes_of(optimizer, steps=(0, 1, 50), tree=None):
  return step_checks.step_sizes(optimizer, PROMPT if tree is None else tree, steps)


@pytest.mark.parametrize(('optimizer', 'size', 'decay'), [
    (optimizer_lib.adafactor(0.3), 0.3, 1e-5),
    (optimizer_lib.adamw(0.01, weight_decay=0.1), 0.01, 0.001),
    (optimizer_lib.sgd(0.2), 0.2, 0),
    (optimizer_lib.adafactor(0.3, weight_decay_rate=None), 0.3, 0)])
def test_the_rate_and_the_decay_are_told_apart(optimizer, size, decay):
  sizes = sizes_of(optimizer)
  assert list(sizes) == [0, 1, 50]
  for step in sizes.values():
    assert step.size == pytest.approx(size, rel=1e-3)
    assert step.decay == pytest.approx(decay, abs=1e-7)
  assert step_checks.check_rate(sizes) == []


@pytest.mark.parametrize('optimizer', [
    optimizer_lib.adafactor(0.0), optimizer_lib.adamw(0.0), optimizer_lib.sgd(0.0),
    optax.set_to_zero(),
    # A schedule that counts from 0, on a base that starts later.
    optimizer_lib.adafactor(schedules.linear_decay(0.3, 10, start_step=-100))])
def test_a_rate_of_zero(optimizer):
  [finding] = step_checks.check_rate(sizes_of(optimizer))
  assert (finding.severity, finding.topic) == (PROBLEM, 'learning rate')
  assert '0, 1, 50' in finding.found


def test_everything_frozen_by_the_optimizer():
  frozen = optax.masked(optax.set_to_zero(), lambda tree: jax.tree.map(lambda _: True, tree))
  [finding] = step_checks.check_rate(sizes_of(optax.chain(optimizer_lib.sgd(0.1), frozen)))
  assert 'freezes all' in finding.found


def test_a_schedule_that_starts_at_zero_is_fine_and_one_that_ends_early_is_not():
  warm = optimizer_lib.adafactor(schedules.linear_warmup(0.3, 10))
  assert sizes_of(warm)[0].size == 0
  assert step_checks.check_rate(sizes_of(warm)) == []
  short = optimizer_lib.adafactor(schedules.linear_decay(0.3, 20))
  [finding] = step_checks.check_rate(sizes_of(short))
  assert (finding.severity, finding.topic) == (WARNING, 'learning rate')
  assert 'at the steps 50 of 0, 1, 50' in finding.found


def test_the_first_layer_stands_for_all():
  leaf = jax.ShapeDtypeStruct((4, 4), jnp.float32)
  tree = {'encoder': {f'layers_{i}': {'wi': leaf} for i in range(12)}}
  seen = []
  def init(params):
    seen.append(sorted(params['encoder']))
    return optax.EmptyState()
  spy = optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))
  assert sizes_of(spy, (3,), tree)[3].size == pytest.approx(1)
  assert seen == [['layers_0']]
  one = {'encoder': {'layers_7': {'wi': leaf}}}
  assert sizes_of(spy, (3,), one)[3].size == pytest.approx(1)


def test_sampled_steps():
  assert step_checks.sampled_steps(0, 300) == (0, 1, 3, 30, 150, 270)
  assert step_checks.sampled_steps(1000, 1001) == (1000,)
  assert step_checks.sampled_steps(5, 5) == (5,)


def quadratic(rate, gradient=lambda x, frozen: x + 0 * frozen['scale'], optimizer=None):
  """(step_fn, state, frozen) of half of the sum of squares; `gradient` may be another."""
  optimizer = optimizer or optimizer_lib.sgd(rate)

  @jax.jit
  def step_fn(state, frozen, batch, rng):
    del batch, rng
    x = state.trainable['x']
    grads = {**jax.tree.map(jnp.zeros_like, state.trainable), 'x': gradient(x, frozen)}
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    metrics = {'loss_per_token': (jnp.sum(x * x) / 2, jnp.float32(1)),
               'grad_norm': (jnp.linalg.norm(grads['x']), jnp.float32(1))}
    return state.replace(step=state.step + 1, opt_state=opt_state,
                         trainable=optax.apply_updates(state.trainable, updates)), metrics

  def make(**more):
    trainable = {'x': jnp.ones((4, 4)), **more}
    return step_fn, state_lib.create(trainable, optimizer, 0), {'scale': jnp.ones(())}, optimizer
  return make


def findings_of(setup, length=100, steps=5):
  step_fn, state, frozen, optimizer = setup
  result = step_checks.probe(step_fn, state, frozen, None, None, steps)
  assert result.steps == tuple(range(steps))
  sizes = step_checks.step_sizes(
      optimizer, state.trainable, {*result.steps, *step_checks.sampled_steps(0, length)})
  return step_checks.check_probe(result, sizes, length), result


def test_a_good_probe():
  [finding], result = findings_of(quadratic(0.1)())
  assert (finding.severity, finding.topic) == (NOTE, 'gradient')
  assert '8, 6.48' in finding.found
  assert result.frozen_kept
  assert result.share_moved == pytest.approx((1 - 0.9**5) / 5)


def test_the_state_stays_usable():
  step_fn, state, frozen, _ = quadratic(0.1)()
  step_checks.probe(step_fn, state, frozen, None, None)
  assert float(state.trainable['x'][0, 0]) == 1


def test_no_gradient():
  [finding], _ = findings_of(quadratic(0.1, lambda x, frozen: 0 * x)())
  assert (finding.severity, finding.topic) == (PROBLEM, 'gradient')
  assert 'is 0' in finding.found


def test_a_gradient_that_is_no_number():
  [finding], _ = findings_of(quadratic(0.1, lambda x, frozen: x * jnp.float32(math.nan))())
  assert (finding.severity, finding.topic) == (PROBLEM, 'gradient')
  assert 'nan' in finding.found


def test_steps_that_are_too_small():
  [finding], _ = findings_of(quadratic(1e-5)())
  assert (finding.severity, finding.topic) == (WARNING, 'steps too small')
  assert '100 steps' in finding.found and '0.1 %' in finding.found


def test_weight_decay_is_no_movement():
  [finding], _ = findings_of(quadratic(
      0, optimizer=optimizer_lib.adafactor(1e-7, weight_decay_rate=1e-2))())
  assert finding.topic == 'steps too small'


def test_a_warm_up_is_no_small_step():
  rate = schedules.linear_warmup(0.1, 1000)
  [finding], result = findings_of(quadratic(rate)(), length=10_000)
  assert result.share_moved < 1e-3
  assert finding.severity == NOTE


def test_steps_that_are_too_large():
  [finding], _ = findings_of(quadratic(2.5)())
  assert (finding.severity, finding.topic) == (WARNING, 'steps too large')


def test_a_parameter_that_nothing_uses():
  [finding], _ = findings_of(quadratic(0.1)(unused=jnp.ones((2,))))
  assert (finding.severity, finding.topic) == (WARNING, 'parameters stand still')
  assert '1 of 2' in finding.found and 'unused' in finding.found


def test_a_rate_of_zero_is_said_once():
  assert findings_of(quadratic(0.0)())[0] == []


def test_frozen_parameters_that_change():
  result = step_checks.Probe(
      losses=(1.0, 0.5), gradient_norms=(1.0, 1.0), moved={'x': 0.1}, before={'x': 1.0},
      frozen_kept=False, steps=(0, 1))
  sizes = {0: step_checks.StepSize(0.1, 0.0)}
  assert [finding.topic for finding in step_checks.check_probe(result, sizes, 100)] == [
      'frozen parameters']
