"""The loop's order, periods, best checkpoint, patience and resumption, on a step of one number."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import errors
from prompt_tuning.training import loop
from prompt_tuning.training.state import TrainState


@jax.jit
def _step(state, batch):
  trainable = jax.tree.map(lambda x: x * jnp.float32(0.9) + batch, state.trainable)
  one = jnp.float32(1)
  metrics = {'loss': (batch, one), 'examples': (one, one), 'tokens': (one, one)}
  return state.replace(step=state.step + 1, trainable=trainable), metrics


@jax.jit
def _bad_step(state):
  one = jnp.float32(1)
  metrics = {'loss': (one * np.nan, one), 'nonfinite': (one, one)}
  return state.replace(nonfinite=state.nonfinite + 1), metrics


class World:
  """Callables that write down what was asked of them."""

  def __init__(self, first=0, scores=(), index=0):
    self.state = TrainState(step=jnp.int32(first), trainable={'prompt': jnp.ones((2, 3))},
                            opt_state=())
    self.scores = dict(scores)
    self.events, self.saved, self.written, self.index = [], {}, [], index
    self.nonfinite = []

  def run(self, last_step, *, history=(), totals=None, first_step=None, with_evaluation=True,
          should_stop=None, stop_evaluation_at=None, bad_after=None, **config):
    def next_batch():
      self.events.append('batch')
      self.index += 1
      return jnp.float32(self.index)

    def step_fn(state, batch):
      self.events.append(f'step {int(state.step)}')
      return _step(state, batch) if bad_after is None or int(state.step) < bad_after else (
          _bad_step(state))

    def evaluate(state):
      step = int(state.step)
      self.events.append(f'evaluate {step}')
      if step == stop_evaluation_at:
        raise loop.Stopped
      return {'accuracy': self.scores.get(step, 0.0), 'other': 1}

    def save(state, history, is_best, totals):
      self.events.append(f'save {int(state.step)}{" best" if is_best else ""}')
      self.saved[int(state.step)] = (jax.device_get(state), list(history), self.index, totals)

    def write(step, values):
      self.events.append(f'write {step} {next(iter(values)).split("/")[0]}')
      self.written.append((step, values))

    settings = {'eval_period': 2, 'checkpoint_period': 2, 'write_period': 2, **config}
    return loop.train(self.state, step_fn=step_fn, next_batch=next_batch, last_step=last_step,
                      config=loop.LoopConfig(**settings), history=history, write=write, save=save,
                      totals=totals, first_step=first_step, should_stop=should_stop,
                      on_nonfinite=self.nonfinite.extend,
                      evaluate=evaluate if with_evaluation else None,
                      tick=lambda step: self.events.append(f'tick {step}'))


def test_the_order():
  world = World()
  result = world.run(3)
  assert world.events == [
      'batch', 'step 0', 'tick 1',
      'batch', 'step 1', 'tick 2', 'write 2 train',
      'evaluate 2', 'write 2 eval', 'save 2',
      'batch', 'step 2', 'tick 3', 'write 3 train',
      'evaluate 3', 'write 3 eval', 'save 3']
  assert result.state.step == 3 and result.reason == loop.FINISHED and result.best is None
  assert result.history == [{'step': 2, 'metrics': {'accuracy': 0.0, 'other': 1.0}},
                            {'step': 3, 'metrics': {'accuracy': 0.0, 'other': 1.0}}]


def test_written_values():
  world = World()
  world.run(4, with_evaluation=False)
  (step, first), (last, second) = world.written
  assert (step, last) == (2, 4)
  assert first['train/loss'] == 1.5 and second['train/loss'] == 3.5
  assert first['train/examples'] == 2 and first['train/steps_per_second'] > 0
  # 1 -> 0.9 + 1 -> 0.9 * 1.9 + 2 = 3.71, in each of the three columns.
  np.testing.assert_allclose(first['train/prompt/distance'], 2.71 * 3**0.5, rtol=1e-6)
  assert second['train/prompt/distance'] > first['train/prompt/distance'] > 0
  assert all(isinstance(value, float) for value in first.values())


def test_periods_count_absolute_steps_and_the_end_is_always_saved():
  world = World(first=7)
  world.run(12, eval_period=5, checkpoint_period=4)
  assert [e for e in world.events if e.startswith(('save', 'evaluate'))] == [
      'save 8', 'evaluate 10', 'evaluate 12', 'save 12']


def test_without_periods_only_the_end():
  world = World()
  world.run(5, eval_period=None, checkpoint_period=None)
  assert [e for e in world.events if e.startswith(('save', 'evaluate'))] == ['evaluate 5', 'save 5']


def test_evaluation_at_the_start():
  world = World()
  world.run(2, evaluate_at_start=True)
  assert world.events[:3] == ['evaluate 0', 'write 0 eval', 'batch']
  assert 'save 0' not in world.events


def test_the_start_is_saved_where_it_is_the_best():
  world = World(scores={0: 0.9, 2: 0.5})
  result = world.run(2, evaluate_at_start=True, best_metric='accuracy')
  assert [e for e in world.events if e.startswith('save')] == ['save 0 best', 'save 2']
  assert result.best == (0, 0.9)


@pytest.mark.parametrize('mode, best, marked', [
    ('max', (4, 0.7), ['save 2 best', 'save 4 best']),
    ('min', (6, 0.1), ['save 2 best', 'save 6 best'])])
def test_the_best_evaluation_is_saved_at_once(mode, best, marked):
  world = World(scores={2: 0.5, 4: 0.7, 6: 0.1, 8: 0.7})
  result = world.run(8, checkpoint_period=None, best_metric='accuracy', best_mode=mode)
  assert result.best == best
  assert [e for e in world.events if e.endswith('best')] == marked
  assert [e for e in world.events if e.startswith('save')][-1] == 'save 8'


def test_patience():
  world = World(scores={2: 0.5, 4: 0.7, 6: 0.6, 8: 0.7, 10: 0.9})
  result = world.run(100, best_metric='accuracy', patience=2)
  assert result.state.step == 8 and result.reason == loop.PATIENCE and result.best == (4, 0.7)
  assert world.events[-1] == 'save 8'


def test_a_run_without_patience_left_does_not_go_on():
  world = World(scores={2: 0.5, 4: 0.4})
  result = world.run(100, best_metric='accuracy', patience=1)
  again = World(first=4)
  resumed = again.run(100, best_metric='accuracy', patience=1, history=result.history)
  assert resumed.state.step == 4 and resumed.reason == loop.PATIENCE
  assert again.events == []


def test_nan_is_never_the_best():
  world = World(scores={2: float('nan'), 4: 0.1})
  assert world.run(4, best_metric='accuracy').best == (4, 0.1)
  world = World(scores={2: float('nan'), 4: float('nan')})
  assert world.run(9, best_metric='accuracy', patience=2).state.step == 4


def test_what_remains_unwritten_is_written_when_patience_runs_out():
  world = World(scores={3: 0.5})
  world.run(100, eval_period=3, write_period=50, best_metric='accuracy', patience=1)
  assert world.events[-2:] == ['write 6 train', 'save 6']
  assert world.written[-1][1]['train/examples'] == 6


def test_a_resumed_run_is_the_same_run():
  whole = World(scores={2: 0.5, 4: 0.7, 6: 0.2})
  expected = whole.run(7, best_metric='accuracy')
  state, history, index, totals = whole.saved[4]
  resumed = World(scores=whole.scores, index=index)
  resumed.state = jax.tree.map(jnp.asarray, state)
  result = resumed.run(7, best_metric='accuracy', history=history, totals=totals)
  assert resumed.events[0] == 'batch'  # neither evaluated nor saved again
  np.testing.assert_array_equal(
      result.state.trainable['prompt'], expected.state.trainable['prompt'])
  assert result.history == expected.history and result.best == expected.best == (4, 0.7)


@pytest.mark.parametrize('stop', range(1, 7))
def test_a_run_that_is_asked_to_stop_goes_on_as_the_same_run(stop):
  """Stopped before any of its steps: written lines and evaluations are those of the whole run."""
  def numbers(written):
    return [(step, {name: value for name, value in values.items() if 'per_second' not in name})
            for step, values in written]
  whole = World(scores={2: 0.5, 4: 0.7, 6: 0.2})
  expected = whole.run(7, write_period=3, best_metric='accuracy')
  first = World(scores=whole.scores)
  stopped = first.run(7, write_period=3, best_metric='accuracy', should_stop=lambda s: s == stop)
  assert stopped.reason == loop.STOPPED and first.events[-1] == f'save {stop}'
  assert f'evaluate {stop}' not in first.events
  state, history, index, totals = first.saved[stop]
  second = World(scores=whole.scores, index=index)
  second.state = jax.tree.map(jnp.asarray, state)
  result = second.run(7, write_period=3, best_metric='accuracy', history=history, totals=totals,
                      first_step=0)
  assert result.history == expected.history and result.best == expected.best
  np.testing.assert_array_equal(
      result.state.trainable['prompt'], expected.state.trainable['prompt'])
  both, alone = numbers(first.written + second.written), numbers(whole.written)
  distance = 'train/prompt/distance'  # from the start, which the caller knows
  for _, values in (*both, *alone):
    values.pop(distance, None)
  assert both == alone and len(alone) == 7
  if stop in (2, 4, 6):  # the evaluation that was left is saved with the step it belongs to
    assert f'save {stop}{" best" if stop < 5 else ""}' in second.events


def test_stopped_before_the_last_evaluation():
  first = World(scores={4: 0.7})
  assert first.run(4, eval_period=None, should_stop=lambda s: s == 4).reason == loop.STOPPED
  assert [e for e in first.events if e.startswith(('save', 'evaluate'))] == ['save 2', 'save 4']
  second = World(first=4, scores={4: 0.7})
  assert second.run(4, first_step=0, eval_period=None).reason == loop.FINISHED
  assert second.events == ['evaluate 4', 'write 4 eval', 'save 4']


def test_stopped_in_the_middle_of_an_evaluation():
  world = World(scores={2: 0.5})
  result = world.run(100, stop_evaluation_at=4, best_metric='accuracy')
  assert result.reason == loop.STOPPED and result.state.step == 4
  assert world.events[-2:] == ['evaluate 4', 'save 4']
  assert [old['step'] for old in result.history] == [2]


def test_a_state_that_stays_behind_ends_the_run():
  """The last good state is saved, with the metrics up to it; later batches are no news."""
  world = World()
  result = world.run(100, eval_period=50, checkpoint_period=2, write_period=6, bad_after=3)
  assert result.reason == loop.NONFINITE and result.state.step == 3
  assert [bad['step'] for bad in world.nonfinite] == [4]
  assert list(world.saved) == [2, 3]
  assert world.saved[3][3]['examples'][0] == 3 and not world.written


def test_a_finished_run_does_nothing():
  world = World()
  history = world.run(4).history
  again = World(first=4)
  again.run(4, history=history)
  assert again.events == []


def test_an_unknown_best_metric_names_what_there_is():
  with pytest.raises(errors.UserError, match="'f1': give one of accuracy, other"):
    World().run(4, best_metric='f1')


@pytest.mark.parametrize('settings, message', [
    ({'eval_period': 0}, 'eval_period is 0'), ({'write_period': None}, 'write_period is None'),
    ({'best_mode': 'most'}, "'max' or 'min'"), ({'patience': 3}, 'no best_metric')])
def test_wrong_settings_are_refused(settings, message):
  with pytest.raises(errors.UserError, match=message):
    loop.LoopConfig(**settings)


def test_last_step():
  assert loop.last_step(0, None, 30) == 30
  assert loop.last_step(1_100_000, None, 30_000) == 1_130_000
  assert loop.last_step(1_100_000, 1_130_000, 5) == 1_130_000
  with pytest.raises(errors.UserError, match='TRAIN_STEPS is 30000, but the run starts at step 11'):
    loop.last_step(1_100_000, 30_000)
  with pytest.raises(errors.UserError, match='Neither'):
    loop.last_step(0)


def test_the_config_is_frozen():
  with pytest.raises(dataclasses.FrozenInstanceError):
    loop.LoopConfig().eval_period = 3
