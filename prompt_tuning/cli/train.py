"""`prompt-tuning train`: from configuration to a trained prompt in MODEL_DIR.

MODEL_DIR holds config.gin (configures the same run again), operative_config.gin, checkpoints/,
cache/ (tokenised examples), metrics.jsonl, TensorBoard events, predictions/ (one file an
evaluation) and prompt.safetensors (the best evaluation's leaves).
"""

import contextlib
import dataclasses
import functools
import logging
import pathlib

import jax
import optax

from prompt_tuning import params as params_lib
from prompt_tuning import partitioning
from prompt_tuning.checkpoints import prompt_file
from prompt_tuning.checkpoints.run import RunCheckpoints
from prompt_tuning.cli import config as config_lib
from prompt_tuning.cli import data as data_lib
from prompt_tuning.cli import dry_run, evaluation, past_run, process
from prompt_tuning.cli import model as model_lib
from prompt_tuning.data import loader as loader_lib
from prompt_tuning.decoding.generate import DecodeConfig
from prompt_tuning.errors import UserError
from prompt_tuning.losses import LossConfig
from prompt_tuning.peft import description
from prompt_tuning.training import loop, metrics, step, writers
from prompt_tuning.training import state as state_lib

log = logging.getLogger(__name__)

_PLAN_NAMES = {
    'cache': 'training data (task, files, template, TASK_FEATURE_LENGTHS, vocabulary)',
    'batch_size': 'BATCH_SIZE', 'seed': 'RANDOM_SEED', 'shapes': 'shapes (MAX_BUCKETS)',
    'remainder': 'remainder of an epoch'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
  """Everything of a run; runs/train.gin binds the fields to macros and tells what they mean."""

  model_dir: str
  model: model_lib.ModelConfig
  data: data_lib.DataConfig
  optimizer: optax.GradientTransformation
  loss: LossConfig = LossConfig()
  decode: DecodeConfig = DecodeConfig()
  batch_size: int = 32
  eval_batch_size: int = 32
  num_microbatches: int = 1
  train_steps: int | None = None
  train_steps_relative: int | None = 30_000
  initial_step: int | None = None
  eval_period: int | None = 1000
  eval_steps: int | None = None
  eval_at_start: bool = False
  save_period: int | None = 1000
  write_period: int = 100
  best_metric: str | None = None
  best_mode: str | None = None
  patience: int | None = None
  seed: int = 0

  def __post_init__(self):
    if not self.model.methods:
      raise UserError('No method is configured, so nothing would be trained: add '
                      '--gin_file=peft/prompt.gin, or another of peft/.')
    for name in ('batch_size', 'eval_batch_size', 'num_microbatches', 'train_steps_relative',
                 'eval_period', 'eval_steps', 'save_period', 'write_period', 'patience'):
      config_lib.check_range(name.upper(), getattr(self, name), 1)
    for name in ('train_steps', 'initial_step'):
      config_lib.check_range(name.upper(), getattr(self, name), 0)
    rows, parts = self.batch_size, self.num_microbatches
    if isinstance(rows, int) and isinstance(parts, int) and rows % parts:
      raise UserError(f'NUM_MICROBATCHES is {parts}, which does not divide BATCH_SIZE, {rows}.')


def main(flags):
  """Runs the verb."""
  process.start()
  config_lib.parse(flags.gin_file, flags.overrides, flags.gin_search_paths)
  config = config_lib.build(TrainConfig, flags.run_file)
  if flags.dry_run:
    dry_run.print_training(config)
  else:
    run(config)


def run(config: TrainConfig) -> loop.Result:
  """Trains, or goes on with what MODEL_DIR holds."""
  for split in (config.data.task.train_split, config.data.task.eval_split):
    data_lib.check_split(config.data.task, split)
  folder = _make_folder(config.model_dir)
  model = model_lib.load(config.model, config.data.task.labels)
  cache = data_lib.cache(config.data, config.data.task.train_split, model.vocabulary, folder)
  loader = loader_lib.for_training(
      cache, config.batch_size, seed=config.data.seed, remainder=config.data.remainder,
      buckets=data_lib.buckets(config.data, cache, model.prompt_length))
  evaluate = evaluation.Evaluation(
      model, config.data, config.decode, config.eval_batch_size, config.eval_steps, folder=folder,
      output=folder / 'predictions', loss=config.loss, seed=config.seed)
  loop_config = _loop_config(config, evaluate.metric_names)
  first_step = config.initial_step if config.initial_step is not None else model.base_step
  last_step = loop.last_step(first_step, config.train_steps, config.train_steps_relative)
  trainable, frozen = model.split()
  rng = jax.random.fold_in(jax.random.key(config.seed), 1)  # the methods' values drew from fold 0
  state = state_lib.create(trainable, config.optimizer, first_step)
  # One placement for the whole state: another after the first step would compile a second time.
  state = state.replace(step=partitioning.replicate(state.step, model.mesh),
                        opt_state=partitioning.replicate(state.opt_state, model.mesh))
  start = metrics.copy_prompts(trainable)
  _log_plan(config, model, loader, trainable, frozen, first_step, last_step)

  with RunCheckpoints(folder / past_run.CHECKPOINTS,
                      maximize=loop_config.best_mode == 'max') as checkpoints:
    state, rng, history = _restore(checkpoints, state, rng, loader, model, config)
    # Only now: a start that is refused leaves the configuration of the run that is there.
    _write_config(folder)
    save = functools.partial(_save, checkpoints, model, config, loop_config, loader, rng, folder)
    step_fn = step.make_train_step(model.peft, config.optimizer, loss=config.loss,
                                   num_microbatches=config.num_microbatches)
    with writers.open_writers(folder, int(state.step), last_step) as writer:
      result = loop.train(
          state,
          step_fn=lambda state, batch: step_fn(state, frozen, batch, rng),
          next_batch=lambda: partitioning.shard_batch(next(loader), model.mesh),
          last_step=last_step, config=loop_config,
          evaluate=lambda state: evaluate(
              params_lib.merge(state.trainable, frozen), f'step_{int(state.step)}'),
          save=save, write=writer.write, tick=writer.tick, history=history, prompt_start=start)
  loader.close()
  if result.best is None:
    _write_prompt(folder, model, config, result.state.trainable, {})
  _log_end(folder, result)
  return result


def _make_folder(model_dir: str) -> pathlib.Path:
  """Makes MODEL_DIR, before anything takes time."""
  folder = pathlib.Path(model_dir)
  with _writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
  return folder


def _write_config(folder: pathlib.Path):
  """Keeps the configuration in MODEL_DIR."""
  with _writing(folder):
    (folder / past_run.CONFIG).write_text(config_lib.text(), encoding='utf-8')
    (folder / 'operative_config.gin').write_text(config_lib.operative_text(), encoding='utf-8')


@contextlib.contextmanager
def _writing(folder):
  try:
    yield
  except OSError as error:
    raise UserError(f'MODEL_DIR={folder} cannot be written: {error.strerror}. Give a folder that '
                    'can be made and written.') from None


def _loop_config(config: TrainConfig, metric_names) -> loop.LoopConfig:
  best = config.best_metric
  if metric_names is None:
    log.warning('The names of the metrics of %s are not known before its first evaluation: %s.',
                config.data.task.name,
                f'{best} is taken on trust' if best else 'give BEST_METRIC, or the latest '
                'checkpoint counts')
    metric_names = () if best is None else (best,)
  else:
    best = best or metric_names[0]
  if best is not None and best not in metric_names:
    raise UserError(f'BEST_METRIC is {best!r}; the task has {", ".join(metric_names)}.')
  return loop.LoopConfig(
      eval_period=config.eval_period, checkpoint_period=config.save_period,
      write_period=config.write_period, best_metric=best,
      best_mode=config.best_mode or ('min' if 'loss' in (best or '') else 'max'),
      patience=config.patience, evaluate_at_start=config.eval_at_start)


def _log_plan(config, model, loader, trainable, frozen, first_step, last_step):
  count = params_lib.count(trainable)
  total = count + params_lib.count(frozen)
  log.info('Trainable: %s of %s parameters (%.4f %%).', f'{count:,}', f'{total:,}',
           100 * count / total)
  log.info('Steps %d to %d, %d batches of %d an epoch, shapes %s.', first_step, last_step,
           loader.plan.epoch_length, config.batch_size,
           ', '.join(f'{t}x{l}' for t, l in loader.shapes))
  if first_step:
    log.info("Schedule and Adafactor's decay count from step %d (%s); ADAFACTOR_STEP_OFFSET "
             'restarts the decay.', first_step,
             'INITIAL_STEP' if config.initial_step is not None else 'that of the base')


def _restore(checkpoints, state, rng, loader, model, config):
  """(state, rng, history): of the latest checkpoint, or as given in a new MODEL_DIR."""
  if checkpoints.latest_step() is None:
    return state, rng, []
  restored = checkpoints.restore(_arrays(state, rng))
  model.check_base(restored.info['base_fingerprint'], checkpoints.directory,
                   'Give the same INITIAL_CHECKPOINT_PATH, or another MODEL_DIR.')
  _check_plan(restored.info.get('plan', {}), _plan(loader, config), checkpoints.directory)
  loader.index = restored.info['data_index']
  log.info('Continuing from step %d of %s.', restored.step, checkpoints.directory)
  arrays = restored.arrays
  state = state.replace(step=arrays['step'], trainable=arrays['trainable'],
                        opt_state=arrays['opt_state'])
  return state, arrays['rng'], restored.info['history']


def _plan(loader, config) -> dict:
  """All that decides which examples batch n holds, as JSON values."""
  plan = loader.plan
  return {'cache': pathlib.Path(loader.cache.path).name, 'batch_size': plan.batch_size,
          'seed': config.data.seed, 'shapes': [list(shape) for shape in plan.buckets],
          'remainder': plan.remainder}


def _check_plan(theirs: dict, ours: dict, directory):
  """Refuses to go on at the old position of other batches; a run without a plan is believed."""
  wrong = [f'{_PLAN_NAMES[name]}: {theirs[name]} there, {value} here'
           for name, value in ours.items() if theirs.get(name, value) != value]
  if wrong:
    raise UserError(f'{directory} was trained on other batches: {"; ".join(wrong)}. Continue with '
                    'the same settings, or choose another MODEL_DIR.')


def _arrays(state, rng) -> dict:
  return {'trainable': state.trainable, 'opt_state': state.opt_state, 'step': state.step,
          'rng': rng}


def _save(checkpoints, model, config, loop_config, loader, rng, folder, state, history, is_best):
  """Saves a checkpoint; the best one's leaves also become the prompt file."""
  now = int(state.step)
  evaluated = history[-1]['metrics'] if history and history[-1]['step'] == now else {}
  info = {'data_index': loader.index, 'plan': _plan(loader, config), 'history': history,
          'best': loop.best_evaluation(history, loop_config),
          'base_fingerprint': model.base_fingerprint}
  checkpoints.save(now, _arrays(state, rng), info, score=evaluated.get(loop_config.best_metric))
  if is_best:
    _write_prompt(folder, model, config, state.trainable, evaluated)


def _write_prompt(folder, model, config, trainable, evaluated):
  """Writes the trained leaves, unless they are the whole model."""
  if params_lib.count(trainable) == params_lib.count(model.params):
    return
  prompt_file.save_prompt(folder / past_run.PROMPT, trainable, {
      'method': ','.join(type(method).__name__ for method in model.peft.methods),
      'methods': description.describe(model.peft.methods),
      'base_fingerprint': model.base_fingerprint, 'vocabulary_hash': model.vocabulary.hash,
      'task': config.data.task.name, 'metric': evaluated, 'seed': config.seed})


def _log_end(folder, result):
  if result.stopped_early:
    log.info('Stopped early: PATIENCE evaluations without a better one.')
  if result.best is not None:
    log.info('Best evaluation at step %d: %g.', *result.best)
  prompt = folder / past_run.PROMPT
  if prompt.is_file():
    log.info('%s: %s bytes.', prompt, f'{prompt.stat().st_size:,}')
