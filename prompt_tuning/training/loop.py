"""The training loop: a fixed order of calls, and what the history of evaluations says.

The loop owns no file, no data, no signal and no mesh: it is given callables. Steps are dispatched
a few ahead of the device; it waits for all of them only where it writes, evaluates or saves.
"""

import dataclasses
import math
from typing import Any

import jax

from prompt_tuning import errors
from prompt_tuning.training import metrics as metrics_lib

# Why a run ended.
FINISHED = 'finished'  # the last step is done
PATIENCE = 'patience'  # evaluations did not get better
STOPPED = 'stopped'  # it was asked to; the next start goes on
NONFINITE = 'nonfinite'  # more steps with a NaN or infinite loss or gradient than are left out


class Stopped(Exception):
  """What `evaluate` raises where the run is asked to stop in the middle of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
  """When things happen; all steps are absolute.

  Attributes:
    eval_period: steps between evaluations, or None for only the one at the end.
    checkpoint_period: steps between saves, or None for saves at the end and of better evaluations.
    write_period: steps between writes of the training metrics.
    best_metric: the evaluation metric that decides which checkpoint is best, or None.
    best_mode: 'max' or 'min'.
    patience: the run ends after this many evaluations in a row without a better best_metric.
    evaluate_at_start: evaluate before the first step too.
  """
  eval_period: int | None = 1000
  checkpoint_period: int | None = 1000
  write_period: int = 100
  best_metric: str | None = None
  best_mode: str = 'max'
  patience: int | None = None
  evaluate_at_start: bool = False

  def __post_init__(self):
    for name in ('eval_period', 'checkpoint_period', 'write_period', 'patience'):
      value = getattr(self, name)
      if (value is None and name == 'write_period') or (value is not None and value < 1):
        raise errors.UserError(f'{name} is {value}: give a whole number from 1 on.')
    if self.best_mode not in ('max', 'min'):
      raise errors.UserError(f"best_mode is {self.best_mode!r}: give 'max' or 'min'.")
    if self.patience is not None and self.best_metric is None:
      raise errors.UserError(f'patience is {self.patience} but no best_metric is given: name the '
                             'evaluation metric that has to get better.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """What a run ends with.

  Attributes:
    state: the last TrainState.
    history: every evaluation, [{'step': int, 'metrics': {name: float}}].
    best: (step, value) of the best evaluation, or None.
    reason: why it ended, FINISHED, PATIENCE, STOPPED or NONFINITE.
  """
  state: Any
  history: list
  best: tuple[int, float] | None
  reason: str


def last_step(first_step, train_steps=None, train_steps_relative=None):
  """The absolute step that a run ends at.

  Args:
    first_step: the step that the run (not its resumption) started at.
    train_steps: TRAIN_STEPS, absolute; it wins over the relative number.
    train_steps_relative: TRAIN_STEPS_RELATIVE, counted from first_step.

  Raises:
    UserError: neither is given, or train_steps lies before the start.
  """
  if train_steps is None and train_steps_relative is None:
    raise errors.UserError('Neither TRAIN_STEPS (absolute) nor TRAIN_STEPS_RELATIVE (from the '
                           'start) is given: give one.')
  if train_steps is None:
    return first_step + train_steps_relative
  if train_steps < first_step:
    raise errors.UserError(
        f'TRAIN_STEPS is {train_steps}, but the run starts at step {first_step}, the step stored '
        'in the base checkpoint: give a larger number, or TRAIN_STEPS_RELATIVE, which counts from '
        'the start.')
  return train_steps


def best_evaluation(history, config):
  """(step, value) of the best evaluation, the earliest of equals; None without one."""
  best = None
  for evaluation in history:
    value = _watched(evaluation, config)
    if value is not None and (best is None or _better(value, best[1], config.best_mode)):
      best = (evaluation['step'], value)
  return best


def evaluations_since_best(history, config):
  """How many evaluations came after the best one."""
  best = best_evaluation(history, config)
  if best is None:
    return len(history)
  return sum(evaluation['step'] > best[0] for evaluation in history)


def _watched(evaluation, config):
  """The deciding value of an evaluation; None where there is none, or it is no number."""
  if config.best_metric is None:
    return None
  values = evaluation['metrics']
  if config.best_metric not in values:
    raise errors.UserError(f'The evaluation has no metric {config.best_metric!r}: give one of '
                           f'{", ".join(sorted(values))} as best_metric.')
  value = float(values[config.best_metric])
  return None if math.isnan(value) else value


def _better(value, than, mode):
  return value > than if mode == 'max' else value < than


def _due(step, period):
  return period is not None and step % period == 0


def train(state, *, step_fn, next_batch, last_step, config, evaluate=None, save=None, write=None,
          tick=None, should_stop=None, on_nonfinite=None, history=(), totals=None, first_step=None,
          prompt_start=None):
  """Trains until `last_step`, until patience runs out, or until it is asked to stop.

  Args:
    state: TrainState, fresh or restored. It is donated.
    step_fn: (state, batch) -> (state, metrics), as made by step.make_train_step with the frozen
      parameters and the run's rng filled in.
    next_batch: () -> batch, on the devices.
    last_step: int, absolute.
    config: LoopConfig.
    evaluate: (state) -> {name: float}, or None. It may raise Stopped.
    save: (state, history, is_best, totals) -> None, or None. It must have copied the state when it
      returns; totals are the metrics that were not written yet, as JSON values.
    write: (step, {name: float}) -> None, or None; names start with 'train/' or 'eval/'.
    tick: (step) -> None after each step was dispatched, for a progress bar; or None.
    should_stop: (step) -> bool, asked before each step; True ends the run with a save and no
      evaluation, so that it takes seconds. None: never.
    on_nonfinite: ([{'step':, 'loss':, 'grad_norm':}]) -> None, hears of steps that were not
      applied, a write period later at most; or None.
    history: the restored run's evaluations.
    totals: what `save` got beside them.
    first_step: the step that the run began at before it was ever resumed; None: the state's.
    prompt_start: {path: array} as from metrics.copy_prompts, where distances are measured from;
      None: the given state.

  Returns:
    Result.
  """
  run = _Run(config, evaluate, save, write, on_nonfinite, history, totals, state, prompt_start)
  step = begun = int(state.step)
  first_step = begun if first_step is None else first_step
  while True:
    # 1. Stop where that is asked for: what follows is a save and nothing else.
    if should_stop is not None and should_stop(step):
      run.reason = run.reason or STOPPED

    # 2. Evaluate the old state, so that what is saved next carries its own result.
    is_best = False
    due = _due(step, config.eval_period) if step > first_step else config.evaluate_at_start
    if due or step >= last_step or run.patience_is_gone():
      is_best = run.evaluate(state, step)
    if not run.reason and (step >= last_step or run.patience_is_gone()):
      run.reason = FINISHED if step >= last_step else PATIENCE
      run.write(state, step)

    # 3. Save it: state, data position and history belong to the same step. The step that the run
    # goes on from is there already, unless its evaluation was still due.
    news = step > begun or (step > first_step and len(run.history) > len(history))
    if is_best or (news and (run.reason or _due(step, config.checkpoint_period))):
      run.save(state, step, is_best)
    if run.reason:
      return Result(state=state, history=run.history, reason=run.reason,
                    best=best_evaluation(run.history, config))

    # 4. The next batch, made on the host while the device still works on earlier steps.
    batch = next_batch()

    # 5. One step; it returns at once.
    state, step_metrics = step_fn(state, batch)
    step += 1
    run.add(step, step_metrics)
    if tick is not None:
      tick(step)

    # 6. Write: the only regular place that waits for the device.
    if _due(step, config.write_period) or step == last_step:
      run.write(state, step)


class _Run:
  """What the loop remembers between its calls.

  Attributes:
    reason: why the run ends; None while it goes on.
    history: every evaluation.
  """

  def __init__(self, config, evaluate, save, write, on_nonfinite, history, totals, state,
               prompt_start):
    self._config, self._evaluate, self._save, self._write = config, evaluate, save, write
    self._on_nonfinite = on_nonfinite
    self.reason = None
    self.history = list(history)
    self._steps = metrics_lib.Accumulator(totals=totals)
    self._compiled = False
    self._prompt_start = (
        metrics_lib.copy_prompts(state.trainable) if prompt_start is None else prompt_start)

  def patience_is_gone(self):
    patience = self._config.patience
    return patience is not None and evaluations_since_best(self.history, self._config) >= patience

  def evaluate(self, state, step):
    """Evaluates unless the history has this step; returns whether it is the best so far."""
    if self._evaluate is None or any(old['step'] == step for old in self.history):
      return False
    self._settle(state, step)  # the steps before it are training time, not evaluation
    if self.reason:
      return False
    try:
      with self._steps.paused():
        values = {name: float(value) for name, value in self._evaluate(state).items()}
    except Stopped:
      self.reason = STOPPED
      return False
    self.history.append({'step': step, 'metrics': values})
    if self._write is not None:
      self._write(step, {f'eval/{name}': value for name, value in values.items()})
    best = best_evaluation(self.history, self._config)
    return best is not None and best[0] == step

  def save(self, state, step, is_best):
    if self._save is not None:
      self._settle(state, step)
      with self._steps.paused():
        self._save(state, list(self.history), is_best, self._steps.totals())

  def add(self, step, step_metrics):
    self._steps.add(step, step_metrics)
    if not self._compiled:
      self._compiled = True
      self._steps.restart_clock()  # the first call compiled

  def write(self, state, step):
    """Writes what was added since the last write, if anything."""
    self._settle(state, step)
    if self._write is None or self.reason == NONFINITE or not self._steps:
      return
    prompts = metrics_lib.prompt_metrics(
        metrics_lib.prompts(state.trainable), self._prompt_start)
    values = self._steps.read() | {
        name: float(value) for name, value in jax.device_get(prompts).items()}
    if state.nonfinite:
      values['nonfinite_steps'] = float(state.nonfinite)
    self._write(step, {f'train/{name}': value for name, value in values.items()})

  def _settle(self, state, step):
    """Waits for the device, and ends the run where the state has stayed behind its steps."""
    now = int(state.step)
    # What came after the step at which the state was frozen is no news.
    skipped = [bad for bad in self._steps.take_nonfinite() if bad['step'] <= now + 1]
    if skipped and self._on_nonfinite is not None:
      self._on_nonfinite(skipped)
    if now < step:
      self.reason = NONFINITE
