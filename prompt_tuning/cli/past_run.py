"""What the other verbs take from the MODEL_DIR of a run: its configuration, its trained leaves."""

import logging
import pathlib

from prompt_tuning import params as params_lib
from prompt_tuning.checkpoints.run import RunCheckpoints
from prompt_tuning.cli import config as config_lib
from prompt_tuning.errors import UserError

log = logging.getLogger(__name__)

CHECKPOINTS = 'checkpoints'
CONFIG = 'config.gin'
PROMPT = 'prompt.safetensors'


def parse(flags, *, reads_examples: bool) -> None:
  """Parses the gin files that are named, else those of the run in MODEL_DIR.

  A run's own configuration is read after the verb's gin file, so that what the run set wins;
  CHECKPOINT_PATH is then the base it was trained on.

  Args:
    flags: of the command line.
    reads_examples: whether the verb needs the task's files.

  Raises:
    UserError: neither gin files nor MODEL_DIR, or a MODEL_DIR without a run.
  """
  given = dict(flags.overrides)
  if flags.gin_file:
    config_lib.parse(flags.gin_file, flags.overrides, flags.gin_search_paths)
    return
  if 'MODEL_DIR' not in given:
    raise UserError('Nothing is configured: give --gin.MODEL_DIR=... of a run, or the gin files of '
                    f'a model, a method and a task with {flags.run_file}. See --help.')
  saved = pathlib.Path(config_lib.plain(given['MODEL_DIR'])) / CONFIG
  if not saved.is_file():
    raise UserError(f'MODEL_DIR={saved.parent} holds no run: there is no {CONFIG} in it. Give the '
                    'MODEL_DIR of a `prompt-tuning train`.')
  bindings = [('CHECKPOINT_PATH', '%INITIAL_CHECKPOINT_PATH'),
              ('model.ModelConfig.checkpoint', '%CHECKPOINT_PATH'),
              ('PROMPT_FILE', 'None')]  # where the run ended counts, not where it started
  if not reads_examples:
    bindings += [('TRAIN_FILE', 'None'), ('EVAL_FILE', 'None')]  # may be gone by now
  config_lib.parse([flags.run_file, str(saved)], flags.overrides, flags.gin_search_paths, bindings)


def trained_params(model, model_dir: str) -> dict:
  """All parameters of a model, the trained ones from a run's best checkpoint.

  Args:
    model: cli.model.Model, loaded with the run's configuration.
    model_dir: the run's folder; its best checkpoint is taken, the latest where none was evaluated.

  Raises:
    UserError: no checkpoint there, one of another base, or of other methods.
  """
  folder = pathlib.Path(model_dir) / CHECKPOINTS
  if not folder.is_dir():
    raise UserError(f'MODEL_DIR={model_dir} holds no checkpoint yet: there is no {folder}. Train '
                    'first, or give PROMPT_FILE.')
  trainable, frozen = model.split()
  with RunCheckpoints(folder, create=False) as checkpoints:
    best = checkpoints.info().get('best')
    step = best[0] if best and best[0] in checkpoints.all_steps() else None
    restored = checkpoints.restore({'trainable': trainable}, step, partial=True)
  theirs = restored.info['base_fingerprint']
  if theirs != model.base_fingerprint:
    raise UserError(f'{folder} was trained on the base {theirs[:16]}... and this one is '
                    f'{model.base_fingerprint[:16]}.... Give CHECKPOINT_PATH of that base.')
  log.info('%s: trained leaves of step %d.', folder, restored.step)
  return params_lib.merge(restored.arrays['trainable'], frozen)
