"""Adding up steps, rates, prompt norms."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.training import metrics as metrics_lib


def _step(loss, correct, counted, examples):
  pairs = {'loss': (loss, 1.0), 'accuracy': (correct, counted), 'examples': (examples, 1.0),
           'tokens': (10 * examples, 1.0)}
  return {name: tuple(map(jnp.float32, pair)) for name, pair in pairs.items()}


class Clock:
  now = 100.0

  def __call__(self):
    return self.now


def test_means_are_weighted_and_counts_are_summed():
  clock = Clock()
  steps = metrics_lib.Accumulator(clock)
  steps.add(1, _step(4.0, 1, 1, 2))
  steps.add(1, _step(2.0, 0, 3, 6))
  clock.now += 4
  values = steps.read()
  assert values == {
      'loss': 3.0, 'accuracy': 0.25, 'examples': 8.0, 'tokens': 80.0, 'examples_per_second': 2.0,
      'tokens_per_second': 20.0, 'steps_per_second': 0.5}


def test_a_resumed_run_adds_up_to_the_same_bits():
  """Pairs whose sum depends on the order, read at once or over a stop in between."""
  values = [_step(0.1, 1, 3, 2), _step(1e7, 2, 3, 6), _step(0.3, 1, 3, 2), _step(1e-5, 0, 1, 1)]
  whole, stopped = metrics_lib.Accumulator(Clock()), metrics_lib.Accumulator(Clock())
  for step, value in enumerate(values):
    whole.add(step, value)
    stopped.add(step, value)
    stopped = metrics_lib.Accumulator(Clock(), json.loads(json.dumps(stopped.totals())))
  expected, got = whole.read(), stopped.read()
  names = [name for name in expected if not name.endswith('_per_second')]
  assert len(names) == 4
  assert [got[name] for name in names] == [expected[name] for name in names]
  assert got['examples_per_second'] == 0  # rates are those of this process


def test_steps_that_were_left_out_count_nowhere():
  steps = metrics_lib.Accumulator(Clock())
  one = jnp.float32(1)
  steps.add(1, _step(4.0, 1, 1, 2) | {metrics_lib.NONFINITE: (one * 0, one)})
  steps.add(2, _step(np.nan, 0, 1, 2) | {metrics_lib.NONFINITE: (one, one)})
  skipped, = steps.take_nonfinite()
  assert skipped['step'] == 2 and np.isnan(skipped['loss'])
  assert steps.take_nonfinite() == []
  values = steps.read()
  assert values['loss'] == 4.0 and values['examples'] == 2.0 and 'nonfinite' not in values


def test_a_few_steps_are_in_flight():
  """The third step is only added when the first is done."""
  done = []

  class Slow:
    def block_until_ready(self):
      done.append(self)
  steps, pairs = metrics_lib.Accumulator(Clock()), [Slow() for _ in range(4)]
  for step, pair in enumerate(pairs):
    steps.add(step, {'loss': (pair, 1.0)})
    assert done == pairs[:max(step - 1, 0)]


def test_reading_starts_anew():
  clock = Clock()
  steps = metrics_lib.Accumulator(clock)
  steps.add(1, _step(4.0, 1, 1, 2))
  steps.read()
  assert not steps
  with pytest.raises(ValueError, match='no step'):
    steps.read()
  steps.add(1, _step(1.0, 1, 1, 3))
  clock.now += 1
  values = steps.read()
  assert values['loss'] == 1.0 and values['examples_per_second'] == 3.0


def test_pauses_do_not_count():
  clock = Clock()
  steps = metrics_lib.Accumulator(clock)
  clock.now += 50  # compilation
  steps.restart_clock()
  steps.add(1, _step(4.0, 1, 1, 2))
  clock.now += 1
  with steps.paused():
    clock.now += 1000
  clock.now += 1
  assert steps.read()['examples_per_second'] == 1.0


def test_nothing_counted_is_nan():
  values = metrics_lib.summarize([_step(1.0, 0, 0, 1)])
  assert np.isnan(values['accuracy'])


def test_sums_are_made_in_double_precision():
  big = [_step(1.0, 2.0**24, 2.0**24, 1), _step(1.0, 1, 1, 1)]
  assert metrics_lib.summarize(big)['accuracy'] == 1.0
  uneven = [_step(0, 2.0**24, 1, 1), _step(0, 1, 0, 1)]
  assert metrics_lib.summarize(uneven)['accuracy'] == 2**24 + 1


def test_prompt_norm_and_distance():
  start = {'encoder': {'prompt': {'prompt': {'prompt': jnp.array([[3.0, 4.0], [0.0, 0.0]])}}},
           'lora': {'a': jnp.ones((2, 2))}}
  kept = metrics_lib.copy_prompts(start)
  assert list(kept) == ['encoder/prompt/prompt/prompt']
  now = {path: leaf + 1 for path, leaf in metrics_lib.prompts(start).items()}
  values = metrics_lib.prompt_metrics(now, kept)
  np.testing.assert_allclose(values['prompt/distance'], 2**0.5, rtol=1e-6)
  np.testing.assert_allclose(values['prompt/norm'], (41**0.5 + 2**0.5) / 2, rtol=1e-6)
  assert metrics_lib.prompt_metrics({}, {}) == {}


def test_several_prompts_keep_their_paths():
  now = {'encoder/prompt/prompt/prompt': jnp.ones((2, 4)),
         'decoder/prompt/prompt/prompt': jnp.ones((3, 4))}
  values = metrics_lib.prompt_metrics(now, now)
  assert sorted(values) == [f'{side}/prompt/prompt/prompt/{what}' for side in ('decoder', 'encoder')
                            for what in ('distance', 'norm')]
