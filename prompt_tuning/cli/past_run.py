"""What the other verbs take from the MODEL_DIR of a run: its configuration, its trained leaves."""

import dataclasses
import logging
import pathlib
from typing import Any

from prompt_tuning import params as params_lib
from prompt_tuning.checkpoints.run import RunCheckpoints
from prompt_tuning.cli import config as config_lib
from prompt_tuning.cli import model as model_lib
from prompt_tuning.errors import UserError
from prompt_tuning.peft import model as peft_model

log = logging.getLogger(__name__)

CHECKPOINTS = 'checkpoints'
CONFIG = 'config.gin'
PROMPT = 'prompt.safetensors'


def parse(flags, *, reads_examples: bool) -> None:
  """Parses the configuration of the run in MODEL_DIR, if one is named, and the named gin files.

  A run's own configuration is read after the verb's gin file, so that what the run set wins, and
  before the gin files that are named; CHECKPOINT_PATH is then the base it was trained on.

  Args:
    flags: of the command line.
    reads_examples: whether the verb needs the task's files.

  Raises:
    UserError: neither gin files nor MODEL_DIR, or a MODEL_DIR without a run.
  """
  given = dict(flags.overrides)
  saved = pathlib.Path(config_lib.plain(given.get('MODEL_DIR', ''))) / CONFIG
  if flags.gin_file and not ('MODEL_DIR' in given and saved.is_file()):
    try:
      config_lib.parse(flags.gin_file, flags.overrides, flags.gin_search_paths)
    except UserError as error:
      if 'MODEL_DIR' not in given:
        raise
      raise UserError(f'{error} MODEL_DIR={saved.parent} holds no {CONFIG} to start from, so the '
                      'gin files have to configure everything.') from None
    return
  if 'MODEL_DIR' not in given:
    raise UserError('Nothing is configured: give --gin.MODEL_DIR=... of a run, or the gin files of '
                    f'a model, a method and a task with {flags.run_file}. See --help.')
  if not saved.is_file():
    raise UserError(f'MODEL_DIR={saved.parent} holds no run: there is no {CONFIG} in it. Give the '
                    'MODEL_DIR of a `prompt-tuning train`.')
  bindings = [('CHECKPOINT_PATH', '%INITIAL_CHECKPOINT_PATH'),
              ('model.ModelConfig.checkpoint', '%CHECKPOINT_PATH'),
              ('PROMPT_FILE', 'None')]  # where the run ended counts, not where it started
  if not reads_examples:
    bindings += [('TRAIN_FILE', 'None'), ('EVAL_FILE', 'None')]  # may be gone by now
  config_lib.parse([flags.run_file, str(saved)], flags.overrides, flags.gin_search_paths, bindings,
                   more_files=flags.gin_file)


def load(config) -> tuple[model_lib.Model, dict]:
  """The model of an EvalConfig or InferConfig and all its parameters, the trained ones in place.

  Raises:
    UserError: as model.load and trained, or the methods' leaves come from nowhere.
  """
  if config.model.methods and config.model_dir is None and config.model.prompt_file is None:
    _refuse_untrained(model_lib.module(config.model, config.data.task.labels))
  model = model_lib.load(config.model, config.data.task.labels)
  if config.model_dir is None or config.model.prompt_file is not None:
    return model, model.params
  return model, trained(model, config.model_dir).params


def _refuse_untrained(module: peft_model.PeftModel):
  """Refuses methods whose own leaves would stay at their first values."""
  base = params_lib.flatten(peft_model.abstract_params(module.backbone))
  added = [path for path in params_lib.flatten(peft_model.abstract_params(module))
           if path not in base]
  if added:
    raise UserError(
        f'Neither PROMPT_FILE nor MODEL_DIR is given, so {added[0]} would be untrained. Give '
        '--gin.PROMPT_FILE=... (a prompt file, or a T5X checkpoint that holds a prompt), '
        '--gin.MODEL_DIR=... of a run, or leave the peft/ gin file out to measure the base alone.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
  """What a checkpoint of a run holds, on its base.

  Attributes:
    step: of the checkpoint.
    params: all parameters, the trained ones in place.
    opt_state: of the optimizer that was asked for, else None.
  """

  step: int
  params: dict
  opt_state: Any = None


def trained(model, model_dir: str, optimizer=None) -> Trained:
  """The run's best checkpoint, or the latest where none was evaluated.

  Args:
    model: cli.model.Model, loaded with the run's configuration.
    model_dir: the run's folder.
    optimizer: optax.GradientTransformation of the run, for its state; None leaves it out.

  Raises:
    UserError: no checkpoint there, one of another base, or of other methods.
  """
  folder = pathlib.Path(model_dir) / CHECKPOINTS
  if not folder.is_dir():
    raise UserError(f'MODEL_DIR={model_dir} holds no checkpoint yet: there is no {folder}. Train '
                    'first, or give PROMPT_FILE.')
  trainable, frozen = model.split()
  like = {'trainable': trainable}
  if optimizer is not None:
    like['opt_state'] = optimizer.init(trainable)
  with RunCheckpoints(folder, create=False) as checkpoints:
    best = checkpoints.info().get('best')
    step = best[0] if best else None
    if best and step not in checkpoints.all_steps():
      log.warning('%s: the best evaluation was at step %d, which is no longer there: the latest '
                  'checkpoint, step %d, is taken.', folder, step, checkpoints.latest_step())
      step = None
    restored = checkpoints.restore(like, step, partial=True)
  model.check_base(restored.info['base_fingerprint'], folder, 'Give CHECKPOINT_PATH of that base.')
  log.info('%s: trained leaves of step %d.', folder, restored.step)
  return Trained(step=restored.step, opt_state=restored.arrays.get('opt_state'),
                 params=params_lib.merge(restored.arrays['trainable'], frozen))
