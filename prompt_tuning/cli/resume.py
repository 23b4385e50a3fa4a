"""What a run's checkpoint holds beside the arrays, and when another start may go on from it."""

import dataclasses
import json
import logging
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax

from prompt_tuning import processes
from prompt_tuning.atomic_file import write_atomically
from prompt_tuning.checkpoints import run as run_lib
from prompt_tuning.checkpoints.run_lock import RunLock
from prompt_tuning.cli import config as config_lib
from prompt_tuning.cli import past_run
from prompt_tuning.data import plan as plan_lib
from prompt_tuning.errors import UserError
from prompt_tuning.training import loop

log = logging.getLogger(__name__)

NONFINITE_FILE = 'nonfinite.jsonl'

# Parameters that may be given anew. A macro may be where it is used for nothing but these.
FREE = frozenset((
    # how long, how often, what is kept
    'train_steps', 'train_steps_relative', 'eval_period', 'eval_steps', 'eval_at_start',
    'save_period', 'write_period', 'patience', 'keep_last', 'keep_best', 'keep_every',
    'skip_nonfinite_steps', 'eval_batch_size', 'eval_packing', 'doctor',
    # on what: the same numbers up to the order of sums
    'num_partitions', 'model_parallel_submesh', 'mesh', 'parameter_partitioning_dims',
    'activation_partitioning_dims', 'device_memory', 'remat_policy',
    # where: the content is compared by fingerprints
    'model_dir', 'cache_dir', 'use_cached_tasks', 'checkpoint', 'vocabulary', 'train_file',
    'eval_file', 'data_dir'))

_PLAN_NAMES = {
    'cache': 'training data (task, files, template, TASK_FEATURE_LENGTHS, vocabulary, few-shot '
             'examples)',
    'eval_cache': 'evaluation data (task, files, template, TASK_FEATURE_LENGTHS, vocabulary)',
    'draws': 'rates of the mixture', 'batch_size': 'BATCH_SIZE', 'seed': 'RANDOM_SEED',
    'shapes': 'shapes (MAX_BUCKETS, PACKING)', 'remainder': 'remainder of an epoch'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
  """Where a start of a run begins.

  Attributes:
    state: TrainState.
    rng: the run's key.
    data_index: number of the next batch.
    history: evaluations so far, as of loop.train.
    totals: metrics that were not written yet, as of loop.train.
  """

  state: Any
  rng: Any
  data_index: int = 0
  history: list = dataclasses.field(default_factory=list)
  totals: dict = dataclasses.field(default_factory=dict)

  @property
  def step(self) -> int:
    """The step it begins at."""
    return int(self.state.step)

  @property
  def evaluated(self) -> bool:
    """Whether the history has that step."""
    return any(evaluation['step'] == self.step for evaluation in self.history)


def check_config(folder: pathlib.Path):
  """Refuses a configuration that would train another run than the one in MODEL_DIR.

  Raises:
    UserError: with the bindings that differ.
  """
  directory = folder / past_run.CHECKPOINTS
  if not directory.is_dir():
    return
  with run_lib.RunCheckpoints(directory, create=False) as checkpoints:
    theirs = checkpoints.info().get('config')
  if theirs is None:
    return
  wrong = config_changes(theirs, config_lib.bindings())
  if wrong:
    raise UserError(
        f'{directory} was trained with another configuration: {"; ".join(wrong)}. Continue with '
        'the same settings, or choose another MODEL_DIR; to train on from its result, give '
        f'PROMPT_FILE={folder / past_run.PROMPT} there.')


def config_changes(theirs: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
  """'NAME: value there, value here' of each parameter that differs and is not free.

  One that a side does not bind has its default: a newer version may bind it to just that.

  Args:
    theirs: of the run, from config.bindings.
    ours: of this start.
  """
  changes = {}
  for name in sorted({*theirs, *ours}):
    there, here = (
        _resolved(side, name) if name in side else config_lib.default(name) or 'absent'
        for side in (theirs, ours))
    if '.' in name and there != here and name.rpartition('.')[2] not in FREE:
      same = theirs.get(name) == ours.get(name)  # then the macro is what was given anew
      changes[theirs[name].lstrip('%') if same else name] = f'{there} there, {here} here'
  return [f'{name}: {change}' for name, change in changes.items()]


def _resolved(bindings: Mapping[str, str], name: str) -> str:
  """The value of a binding, with the values of macros in place of their names."""
  return re.sub(r'%(\w+)', lambda macro: _resolved(bindings, macro[1])
                if macro[1] in bindings else macro[0], bindings[name])


def plan(loader, eval_cache, seed: int) -> dict:
  """All that decides which examples batch n holds and what is evaluated, as JSON values.

  Args:
    loader: data.loader.TrainLoader.
    eval_cache: what is evaluated on, one or several caches.
    seed: of the order of the data.
  """
  batches = loader.plan
  draws = None if batches.draws is None else list(batches.draws.counts)
  return {'cache': loader.cache.name, 'eval_cache': eval_cache.name, 'draws': draws,
          'batch_size': batches.batch_size, 'seed': seed,
          'shapes': [list(shape) for shape in batches.buckets], 'remainder': batches.remainder}


def restore(checkpoints: run_lib.RunCheckpoints, fresh: Start, loader, model,
            ours: Mapping) -> Start:
  """Where to begin: at the latest checkpoint, or as given in a new MODEL_DIR.

  Args:
    checkpoints: of the run.
    fresh: the start of a new run; its arrays are gone where there is a checkpoint.
    loader: data.loader.TrainLoader; it is put at its place.
    model: cli.model.Model.
    ours: from `plan`.

  Raises:
    UserError: another base, other data, other arrays.
  """
  if checkpoints.latest_step() is None:
    return fresh
  restored = checkpoints.restore(_make_room(_arrays(fresh.state, fresh.rng)))
  info, directory = restored.info, checkpoints.directory
  model.check_base(info['base_fingerprint'], directory,
                   'Give the same INITIAL_CHECKPOINT_PATH, or another MODEL_DIR.')
  _check_plan(info.get('plan', {}), ours, directory)
  _warn_of_versions(restored.versions)
  loader.index = info['data_index']
  log.info('Continuing from step %d of %s.', restored.step, directory)
  arrays = restored.arrays
  state = fresh.state.replace(
      step=arrays['step'], trainable=arrays['trainable'], opt_state=arrays['opt_state'],
      nonfinite=jax.device_put(fresh.state.nonfinite + info.get('nonfinite_steps', 0),
                               fresh.state.nonfinite.sharding))
  return Start(state=state, rng=arrays['rng'], data_index=info['data_index'],
               history=info['history'], totals=info.get('totals', {}))


def _check_plan(theirs: Mapping, ours: Mapping, directory):
  """Refuses to go on at the old position of other batches; a run without a plan is believed."""
  wrong = [f'{_PLAN_NAMES[name]}: {theirs[name]} there, {value} here'
           for name, value in ours.items() if theirs.get(name, value) != value]
  if wrong:
    raise UserError(f'{directory} was trained on other batches: {"; ".join(wrong)}. Continue with '
                    'the same settings, or choose another MODEL_DIR.')


def _warn_of_versions(theirs: Mapping):
  changed = [f'{name} {theirs[name]} there, {version} here'
             for name, version in run_lib.versions().items()
             if theirs.get(name, version) != version]
  if changed:
    log.warning('The checkpoint was written by other versions: %s. Numbers may differ in their '
                'last digits from a run that was not stopped.', '; '.join(changed))


def _arrays(state, rng) -> dict:
  return {'trainable': state.trainable, 'opt_state': state.opt_state, 'step': state.step,
          'rng': rng}


def _make_room(arrays) -> dict:
  """Shapes and shardings of arrays, which are freed: a model trained whole fits but once."""
  like = arrays | jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
      {name: tree for name, tree in arrays.items() if name != 'rng'})
  jax.tree.map(lambda leaf: leaf.delete(), (arrays['trainable'], arrays['opt_state']))
  return like


class Saver:
  """Saves the run: what loop.train calls.

  Args:
    checkpoints: RunCheckpoints.
    lock: RunLock, or None where another process holds it for all.
    start: where this start began.
    loop_config: LoopConfig, for the metric that decides.
    write_prompt: (trainable, metrics) -> None, writes the prompt file of the best evaluation.
    max_nonfinite: SKIP_NONFINITE_STEPS.
    facts: JSON values that every checkpoint of the run holds, such as base_fingerprint.
  """

  def __init__(self, checkpoints: run_lib.RunCheckpoints, lock: RunLock | None, start: Start,
               loop_config: loop.LoopConfig, write_prompt, max_nonfinite: int, facts: Mapping):
    self._checkpoints, self._lock, self._start = checkpoints, lock, start
    self._begun = start.step  # now: the state is donated to the first step
    self._loop_config, self._write_prompt = loop_config, write_prompt
    self._max_nonfinite = max_nonfinite
    self._facts = dict(facts, config=config_lib.bindings(),
                       operative_config=config_lib.operative_text())

  def __call__(self, state, history, is_best, totals):
    """Starts writing a checkpoint; the best one's leaves also become the prompt file."""
    if self._lock is not None:
      self._lock.check()
    step = int(state.step)
    evaluated = history[-1]['metrics'] if history and history[-1]['step'] == step else {}
    if is_best:
      # Before the checkpoint: a run that is killed in between writes both again.
      self._write_prompt(state.trainable, evaluated)
    info = self._facts | {
        'data_index': self.batch_of(step + 1), 'history': history, 'totals': totals,
        'best': loop.best_evaluation(history, self._loop_config),
        # The one that ended the run is tried again by the next start.
        'nonfinite_steps': min(int(state.nonfinite), self._max_nonfinite)}
    self._checkpoints.save(step, _arrays(state, self._start.rng), info, replace=True,
                           score=evaluated.get(self._loop_config.best_metric))

  def batch_of(self, step: int) -> int:
    """The number of the batch that leads to this step: every step takes one."""
    return self._start.data_index + step - 1 - self._begun


def report_nonfinite(folder: pathlib.Path, loader, batch_of, steps):
  """Writes steps that were not applied, with the ids of their examples, to nonfinite.jsonl.

  Args:
    folder: MODEL_DIR.
    loader: data.loader.TrainLoader.
    batch_of: step -> number of its batch.
    steps: as loop.train's on_nonfinite gets them.
  """
  if not processes.is_first():
    return
  path = folder / NONFINITE_FILE
  lines = path.read_text(encoding='utf-8').splitlines() if path.exists() else []
  # An earlier start went through the same steps.
  lines = [line for line in lines if json.loads(line)['step'] < steps[0]['step']]
  for bad in steps:
    batch = batch_of(bad['step'])
    rows = plan_lib.whole(loader.plan)[batch].rows
    ids = ['/'.join(filter(None, (record.get('task'), record['id'])))
           for record in loader.cache.records(rows[rows >= 0])]
    numbers = {name: value if isinstance(value, int) else str(value)  # JSON has no NaN
               for name, value in bad.items()}
    lines.append(json.dumps(numbers | {'batch': batch, 'examples': ids}))
    log.warning('Step %d was not applied: loss %s, gradient norm %s. Its examples are named in %s.',
                bad['step'], bad.get('loss'), bad.get('grad_norm'), path)
  write_atomically(path, lambda file: file.write(''.join(f'{line}\n' for line in lines).encode()))
