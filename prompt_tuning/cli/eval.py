"""`prompt-tuning eval`: metrics and predictions of a run, or of a prompt file on a base."""

import dataclasses
import json
import logging
import pathlib

from prompt_tuning import processes
from prompt_tuning.atomic_file import write_atomically
from prompt_tuning.cli import config as config_lib
from prompt_tuning.cli import data as data_lib
from prompt_tuning.cli import dry_run, evaluation, past_run, process
from prompt_tuning.cli import model as model_lib
from prompt_tuning.decoding.generate import DecodeConfig

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
  """Everything of an evaluation; runs/eval.gin binds the fields and tells what they mean."""

  model: model_lib.ModelConfig
  data: data_lib.DataConfig
  decode: DecodeConfig = DecodeConfig()
  model_dir: str | None = None
  output_dir: str | None = None
  batch_size: int = 32
  eval_steps: int | None = None
  split: str | None = None
  rank_labels: bool = False
  seed: int = 0

  def __post_init__(self):
    config_lib.check_range('EVAL_BATCH_SIZE', self.batch_size, 1)
    config_lib.check_range('EVAL_STEPS', self.eval_steps, 1)


def main(flags):
  """Runs the verb; the metrics go to stdout as one JSON object."""
  process.start(None if flags.dry_run else flags)
  past_run.parse(flags, reads_examples=True)
  config = config_lib.build(EvalConfig, flags.run_file)
  if flags.dry_run:
    dry_run.print_model(config)
  else:
    print(json.dumps(run(config)))


def run(config: EvalConfig) -> dict[str, float]:
  """Evaluates once; writes predictions.jsonl and metrics.json where there is a place for them."""
  # A run that trained on a few examples is measured on a whole split.
  data = dataclasses.replace(config.data, few_shot_examples=None, few_shot_dev=False)
  for task in data.task.evaluated:
    split = config.split or task.eval_split
    data_lib.check_split(task, split)
    data_lib.check_examples(task, None, split)
  data_lib.check_labels(config.data.task, config.rank_labels)
  model, params = past_run.load(config)
  output = _output_folder(config)
  measure = evaluation.of(
      model, data, config.decode, config.batch_size, config.eval_steps,
      folder=config.model_dir, output=output, split=config.split, rank=config.rank_labels,
      seed=config.seed)
  values = measure(params, 'predictions')
  if output is None:
    log.info('Predictions are not kept: give EVAL_OUTPUT_DIR to write them.')
  elif processes.is_first():
    text = json.dumps(values, indent=2) + '\n'
    write_atomically(output / 'metrics.json', lambda file: file.write(text.encode()))
    log.info('%s: predictions, metrics.json.', output)
  return values


def _output_folder(config: EvalConfig) -> pathlib.Path | None:
  if config.output_dir is not None:
    return pathlib.Path(config.output_dir)
  return None if config.model_dir is None else pathlib.Path(config.model_dir) / 'eval'
