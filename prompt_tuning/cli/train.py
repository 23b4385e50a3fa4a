"""`prompt-tuning train`: from configuration to a trained prompt in MODEL_DIR.

MODEL_DIR holds config.gin (configures the same run again), operative_config.gin, checkpoints/,
cache/ (tokenised examples), metrics.jsonl, TensorBoard events, predictions/ (one file an
evaluation; of a mixture in a folder for each task), prompt.safetensors (the best evaluation's
leaves) and few_shot.json (the ids of the examples that were chosen, where some were).
"""

import contextlib
import dataclasses
import functools
import json
import logging
import pathlib

import jax
import optax

from prompt_tuning import params as params_lib
from prompt_tuning import partitioning, processes
from prompt_tuning.atomic_file import write_atomically
from prompt_tuning.checkpoints import prompt_file
from prompt_tuning.checkpoints.run import RunCheckpoints
from prompt_tuning.checkpoints.run_lock import RunLock
from prompt_tuning.cli import (
    checkup,
    dry_run,
    evaluation,
    footprint,
    past_run,
    process,
    resume,
)
from prompt_tuning.cli import config as config_lib
from prompt_tuning.cli import data as data_lib
from prompt_tuning.cli import interruption as interruption_lib
from prompt_tuning.cli import model as model_lib
from prompt_tuning.data.metrics import lower_is_better
from prompt_tuning.decoding.generate import DecodeConfig
from prompt_tuning.errors import UserError
from prompt_tuning.losses import LossConfig
from prompt_tuning.peft import description
from prompt_tuning.training import loop, metrics, step, writers
from prompt_tuning.training import state as state_lib

log = logging.getLogger(__name__)

# What the command says about how a run ended.
_EXIT_CODES = {loop.STOPPED: interruption_lib.EXIT_CODE, loop.NONFINITE: 1}


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
  keep_last: int = 2
  keep_best: int = 1
  keep_every: int | None = None
  skip_nonfinite_steps: int = 0
  write_period: int = 100
  best_metric: str | None = None
  best_mode: str | None = None
  patience: int | None = None
  doctor: bool = True
  seed: int = 0
  device_memory: str | int | None = None

  def __post_init__(self):
    if not self.model.methods:
      raise UserError('No method is configured, so nothing would be trained: add '
                      '--gin_file=peft/prompt.gin, or another of peft/.')
    for name in ('batch_size', 'eval_batch_size', 'num_microbatches', 'train_steps_relative',
                 'eval_period', 'eval_steps', 'save_period', 'write_period', 'patience',
                 'keep_last', 'keep_every'):
      config_lib.check_range(name.upper(), getattr(self, name), 1)
    for name in ('train_steps', 'initial_step', 'keep_best', 'skip_nonfinite_steps'):
      config_lib.check_range(name.upper(), getattr(self, name), 0)
    if self.device_memory is not None:
      object.__setattr__(self, 'device_memory', footprint.memory_size(self.device_memory))
    rows, parts = self.batch_size, self.num_microbatches
    if isinstance(rows, int) and isinstance(parts, int) and rows % parts:
      raise UserError(f'NUM_MICROBATCHES is {parts}, which does not divide BATCH_SIZE, {rows}.')


def main(flags) -> int:
  """Runs the verb; returns the exit code."""
  process.start(None if flags.dry_run else flags)
  config_lib.parse(flags.gin_file, flags.overrides, flags.gin_search_paths)
  config = config_lib.build(TrainConfig, flags.run_file)
  if flags.dry_run:
    dry_run.print_training(config)
    return 0
  return _EXIT_CODES.get(run(config).reason, 0)


def run(config: TrainConfig) -> loop.Result:
  """Trains, or goes on with what MODEL_DIR holds."""
  data_lib.check_splits(config.data)
  for task, *splits in data_lib.splits_in_use(config.data).values():
    data_lib.check_examples(task, *splits)
  folder = _make_folder(config.model_dir)
  with _hold(folder) as lock, interruption_lib.Interruption() as interruption:
    resume.check_config(folder)
    return _train(config, folder, lock, interruption)


def _train(config: TrainConfig, folder: pathlib.Path, lock: RunLock | None,
           interruption: interruption_lib.Interruption) -> loop.Result:
  """`run`, in a MODEL_DIR that is ours."""
  stop = interruption.agreed()
  model = model_lib.load(config.model, config.data.task.labels)
  cache = data_lib.training_cache(config.data, model.vocabulary, folder)
  loader = data_lib.training_batches(
      config.data, cache, model, config.batch_size, config.loss, config.num_microbatches)
  evaluate = evaluation.of(
      model, config.data, config.decode, config.eval_batch_size, config.eval_steps, folder=folder,
      output=folder / 'predictions', loss=config.loss, seed=config.seed,
      before_batch=lambda: _stop_if(stop()))
  loop_config = _loop_config(config, evaluate.metric_names)
  first_step, last_step = step_range(config, model)
  trainable, frozen = model.split()
  rng = jax.random.fold_in(jax.random.key(config.seed), 1)  # the methods' values drew from fold 0
  state = new_state(config, model, trainable, first_step)
  prompt_start = metrics.copy_prompts(trainable)
  _log_plan(config, loader, trainable, frozen, first_step, last_step)
  if config.doctor:
    checkup.log_cheap(config, model, loader.cache, evaluate.cache, first_step, last_step)

  plan = resume.plan(loader, evaluate.cache, config.data.seed)
  chosen = data_lib.chosen_examples(config.data, cache, evaluate.cache)
  with RunCheckpoints(folder / past_run.CHECKPOINTS, keep_last=config.keep_last,
                      keep_best=config.keep_best, keep_every=config.keep_every,
                      maximize=loop_config.best_mode == 'max') as checkpoints:
    start = resume.restore(checkpoints, resume.Start(state=state, rng=rng), loader, model, plan)
    # Only now: a start that is refused leaves the configuration of the run that is there.
    _write_config(folder, chosen)
    write_prompt = functools.partial(_write_prompt, folder, model, config)
    save = resume.Saver(
        checkpoints, lock, start, loop_config, write_prompt, config.skip_nonfinite_steps,
        {'plan': plan, 'base_fingerprint': model.base_fingerprint, 'few_shot': chosen})
    step_fn = step.make_train_step(
        model.peft, config.optimizer, loss=config.loss, num_microbatches=config.num_microbatches,
        max_nonfinite=config.skip_nonfinite_steps,
        state_shardings=state_lib.shardings(state, config.optimizer, model.mesh))
    with _open_writers(folder, start, last_step) as writer:
      if config.doctor:
        writer = checkup.watched(writer, config, evaluate, prompt_start, first_step)

      def tick(step):
        interruption.begun = True  # there is something to save
        writer.tick(step)

      result = loop.train(
          start.state,
          step_fn=lambda state, batch: step_fn(state, frozen, batch, start.rng),
          next_batch=lambda: partitioning.shard_batch(next(loader), model.mesh),
          last_step=last_step, config=loop_config,
          evaluate=lambda state: evaluate(
              params_lib.merge(state.trainable, frozen), f'step_{int(state.step)}'),
          save=save, write=_writing(folder)(writer.write), tick=tick,
          should_stop=lambda step: stop(),
          on_nonfinite=functools.partial(resume.report_nonfinite, folder, loader, save.batch_of),
          history=start.history, totals=start.totals, first_step=first_step,
          prompt_start=prompt_start)
  loader.close()
  if result.best is None and result.reason in (loop.FINISHED, loop.PATIENCE):
    write_prompt(result.state.trainable, {})
  _log_end(folder, result)
  return result


def step_range(config: TrainConfig, model: model_lib.Model) -> tuple[int, int]:
  """The absolute steps that the run begins and ends at.

  Raises:
    UserError: see loop.last_step.
  """
  first_step = config.initial_step if config.initial_step is not None else model.base_step
  return first_step, loop.last_step(first_step, config.train_steps, config.train_steps_relative)


def new_state(config: TrainConfig, model: model_lib.Model, trainable, first_step: int):
  """The TrainState before the first step, on the mesh of the model.

  One placement for the whole state: another after the first step would compile a second time.
  """
  state = state_lib.create(trainable, config.optimizer, first_step)
  return jax.device_put(state, state_lib.shardings(state, config.optimizer, model.mesh))


def _hold(folder: pathlib.Path):
  """The lock of MODEL_DIR; of several processes of one run, the first holds it for all."""
  return RunLock(folder) if processes.is_first() else contextlib.nullcontext()


@contextlib.contextmanager
def _open_writers(folder: pathlib.Path, start: resume.Start, last_step: int):
  """The writers of a run; that they cannot be opened or closed is the user's to mend."""
  with _writing(folder):
    writer = writers.open_writers(folder, start.step, last_step, start.evaluated) if (
        processes.is_first()) else writers.Writers()
  try:
    yield writer
  finally:
    with _writing(folder):
      writer.close()


def _stop_if(requested: bool):
  """Ends an evaluation early; the next start does it again."""
  if requested:
    raise loop.Stopped


def _make_folder(model_dir: str) -> pathlib.Path:
  """Makes MODEL_DIR, before anything takes time."""
  folder = pathlib.Path(model_dir)
  with _writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
  return folder


def _write_config(folder: pathlib.Path, chosen: dict | None):
  """Keeps the configuration, and the examples that it chose, in MODEL_DIR."""
  if not processes.is_first():
    return
  texts = {past_run.CONFIG: config_lib.text(),
           'operative_config.gin': config_lib.operative_text()}
  if chosen is not None:
    texts['few_shot.json'] = json.dumps(chosen, indent=2) + '\n'
  with _writing(folder):
    for name, text in texts.items():
      write_atomically(folder / name, lambda file, text=text: file.write(text.encode()))


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
      best_mode=config.best_mode or ('min' if lower_is_better(best or '') else 'max'),
      patience=config.patience, evaluate_at_start=config.eval_at_start)


def _log_plan(config, loader, trainable, frozen, first_step, last_step):
  count = params_lib.count(trainable)
  total = count + params_lib.count(frozen)
  log.info('Trainable: %s of %s parameters (%.4f %%).', f'{count:,}', f'{total:,}',
           100 * count / total)
  log.info('Steps %d to %d, %d batches of %d an epoch, shapes %s.', first_step, last_step,
           loader.plan.epoch_length, config.batch_size,
           ', '.join('x'.join(map(str, shape)) for shape in loader.shapes))
  if first_step:
    log.info("Schedule and Adafactor's decay count from step %d (%s); ADAFACTOR_STEP_OFFSET "
             'restarts the decay.', first_step,
             'INITIAL_STEP' if config.initial_step is not None else 'that of the base')


def _write_prompt(folder, model, config, trainable, evaluated):
  """Writes the trained leaves, unless they are the whole model."""
  if params_lib.count(trainable) == params_lib.count(model.params):
    return
  trainable = processes.to_host(trainable)
  if not processes.is_first():
    return
  prompt_file.save_prompt(folder / past_run.PROMPT, trainable, {
      **description.metadata(model.peft.methods),
      'base_fingerprint': model.base_fingerprint, 'vocabulary_hash': model.vocabulary.hash,
      'task': config.data.task.name, 'metric': evaluated, 'seed': config.seed})


def _log_end(folder, result):
  step = int(result.state.step)
  if result.reason == loop.STOPPED:
    log.info('Stopped at step %d and saved; the same command goes on from there.', step)
    return
  if result.reason == loop.NONFINITE:
    log.error(
        'The run ends at step %d, the last with a finite loss and gradient, which is saved; %s '
        'names the examples of the step after it. Usual causes: LEARNING_RATE too high, a broken '
        'base, PARAM_DTYPE or ACTIVATION_DTYPE bfloat16. --gin.SKIP_NONFINITE_STEPS=N leaves up to '
        'N such steps out.', step, folder / resume.NONFINITE_FILE)
    return
  if result.reason == loop.PATIENCE:
    log.info('Stopped early: PATIENCE evaluations without a better one.')
  if result.best is not None:
    log.info('Best evaluation at step %d: %g.', *result.best)
  prompt = folder / past_run.PROMPT
  if prompt.is_file():
    log.info('%s: %s bytes.', prompt, f'{prompt.stat().st_size:,}')
