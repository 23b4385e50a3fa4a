"""`prompt-tuning infer`: lines in, answers as JSONL out.

A line is the text of an input as the model is to read it, or a JSON object: with `inputs`, the
same, else with the fields that the task makes its input from. An answer is
{"inputs", "prediction", "scores"}, scores being log-probabilities by answer.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import sys
from collections.abc import Iterator

from prompt_tuning import partitioning
from prompt_tuning.cli import config as config_lib
from prompt_tuning.cli import data as data_lib
from prompt_tuning.cli import dry_run, evaluation, past_run, process
from prompt_tuning.cli import model as model_lib
from prompt_tuning.data.preprocessors import Template
from prompt_tuning.data.sources import NO_LABEL
from prompt_tuning.decoding.generate import DecodeConfig
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation import predict

_CHUNK = 64  # batches that are read before they are answered: sorted by length, kept in memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferConfig:
  """Everything of an inference; runs/infer.gin binds the fields and tells what they mean."""

  model: model_lib.ModelConfig
  data: data_lib.DataConfig
  decode: DecodeConfig = DecodeConfig()
  model_dir: str | None = None
  batch_size: int = 32
  rank_labels: bool = False


def main(flags):
  """Runs the verb."""
  process.start()
  past_run.parse(flags, reads_examples=False)
  config = config_lib.build(InferConfig, flags.run_file)
  if flags.dry_run:
    dry_run.print_model(config)
  else:
    with _open(flags.input, 'r', sys.stdin) as lines, _open(flags.output, 'w', sys.stdout) as out:
      run(config, flags.input, lines, out)


def run(config: InferConfig, name: str, lines: Iterator[str], out) -> int:
  """Answers all lines; returns their number."""
  texts = _texts(config.data.task, name, lines)
  first = next(texts, None)  # a mistake in the file shows before the model is loaded
  if first is None:
    raise UserError(f'--input={name} is empty: give at least one line.')
  model = model_lib.load(config.model, config.data.task.labels)
  params = model.params
  if config.model_dir is not None and config.model.prompt_file is None:
    params = past_run.trained_params(model, config.model_dir)
  answer = functools.partial(
      predict.predict, model=model.peft, params=params, vocabulary=model.vocabulary,
      config=evaluation.with_length(config.decode, config.data),
      labels=config.data.task.labels if config.rank_labels else None,
      inputs_length=config.data.feature_lengths['inputs'], batch_size=config.batch_size,
      place_batch=functools.partial(partitioning.shard_batch, mesh=model.mesh))
  count = 0
  texts = itertools.chain([first], texts)
  while chunk := list(itertools.islice(texts, _CHUNK * config.batch_size)):
    for row in answer(chunk):
      out.write(json.dumps(row, ensure_ascii=False) + '\n')
    out.flush()
    count += len(chunk)
  return count


def _texts(task, name: str, lines: Iterator[str]) -> Iterator[str]:
  """The input texts of all lines that are not empty."""
  for number, line in enumerate(lines, 1):
    line = line.rstrip('\r\n')
    if not line.strip():
      continue
    if not line.lstrip().startswith('{'):
      yield line
      continue
    try:
      yield _inputs_of(task, json.loads(line))
    except json.JSONDecodeError as error:
      raise UserError(f'{name}:{number}: not valid JSON: {error.msg} at column {error.colno}. A '
                      'line that begins with { has to be one JSON object.') from None
    except UserError as error:
      raise UserError(f'{name}:{number}: {error}') from None


def _inputs_of(task, row: dict) -> str:
  """The input of a JSON object: given whole, or made by the task from its fields."""
  if isinstance(row.get('inputs'), str):
    return row['inputs']
  preprocess, unlabelled = task.preprocess, {'label': NO_LABEL}
  if isinstance(preprocess, Template):
    preprocess, unlabelled = dataclasses.replace(preprocess, required_target=False), {}
    row = {name: row[name] for name in row if name != preprocess.target_field}
  try:
    return preprocess({**unlabelled, **row})[0]['inputs']
  except (KeyError, IndexError, TypeError) as error:
    raise UserError(f'task {task.name} cannot make an input of the fields {", ".join(row)}: '
                    f'{type(error).__name__} {error}. Give its fields, or "inputs".') from None


@contextlib.contextmanager
def _open(path: str, mode: str, standard):
  """The file, or the standard stream for '-'."""
  if path == '-':
    yield standard
    return
  try:
    with open(path, mode, encoding='utf-8') as file:
      yield file
  except FileNotFoundError:
    raise UserError(f'There is no {path}: give an existing file, or - for the standard '
                    'stream.') from None
  except UnicodeDecodeError as error:
    raise UserError(f'{path} is not UTF-8: {error.reason} at byte {error.start}.') from None
  except OSError as error:
    raise UserError(f'{path} cannot be used: {error.strerror}.') from None
