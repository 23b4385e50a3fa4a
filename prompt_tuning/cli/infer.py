"""`prompt-tuning infer`: lines in, answers as JSONL out.

A line is a text or a JSON object. For a local_text task the text is the field of INPUT_TEMPLATE;
for others it is the input as the model is to read it. An object holds `inputs`, such a whole input,
or the fields that the task makes its input from. An answer is {"inputs", "prediction", "scores"},
scores being log-probabilities by answer.
"""

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Iterator

import jax

from prompt_tuning import partitioning, processes
from prompt_tuning.cli import config as config_lib
from prompt_tuning.cli import data as data_lib
from prompt_tuning.cli import dry_run, evaluation, past_run, process
from prompt_tuning.cli import model as model_lib
from prompt_tuning.data import json_rows
from prompt_tuning.data import lines as lines_lib
from prompt_tuning.data.mixture import Mixture
from prompt_tuning.data.preprocessors import Template
from prompt_tuning.data.sources import NO_LABEL
from prompt_tuning.data.task import Task
from prompt_tuning.data.tasks import local_text
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
  seed: int = 0

  def __post_init__(self):
    config_lib.check_range('EVAL_BATCH_SIZE', self.batch_size, 1)


def main(flags):
  """Runs the verb."""
  process.start(None if flags.dry_run else flags)
  past_run.parse(flags, reads_examples=False)
  config = config_lib.build(InferConfig, flags.run_file)
  if flags.dry_run:
    dry_run.print_model(config)
  else:
    with _reading(flags.input) as lines, _writing(flags.output) as out:
      run(config, flags.input, lines, out)


def run(config: InferConfig, name: str, lines: Iterator[str], out) -> int:
  """Answers all lines; returns their number."""
  task = _one_task(config.data.task)
  data_lib.check_labels(task, config.rank_labels)
  texts = _texts(task, name, lines)
  first = next(texts, None)  # a mistake in the file shows before the model is loaded
  if first is None:
    raise UserError(f'--input={name} is empty: give at least one line.')
  model, params = past_run.load(config)
  rng = evaluation.sampling_rng(config.decode, config.seed)
  answer = functools.partial(
      predict.predict, model=model.peft, params=params, vocabulary=model.vocabulary,
      config=evaluation.with_length(config.decode, config.data),
      labels=task.labels if config.rank_labels else None, task=task,
      inputs_length=config.data.feature_lengths['inputs'], batch_size=config.batch_size,
      share=partitioning.data_share(model.mesh),
      place_batch=functools.partial(partitioning.shard_batch, mesh=model.mesh))
  count = 0
  texts = itertools.chain([first], texts)
  for number in itertools.count():
    chunk = list(itertools.islice(texts, _CHUNK * config.batch_size))
    if not chunk:
      return count
    for row in answer(chunk, rng=None if rng is None else jax.random.fold_in(rng, number)):
      out.write(json.dumps(row, ensure_ascii=False) + '\n')
    out.flush()
    count += len(chunk)


def _one_task(task: Task | Mixture) -> Task:
  """The task, or that of a mixture of one: of several it is not known whose inputs are given."""
  if len(task.members) > 1:
    raise UserError(
        f'{task.name!r} is a mixture, and an input is one task\'s. Name its task with '
        f'--gin.MIXTURE_OR_TASK_NAME=... (for tasks/mixture.gin: --gin.MIXTURE_TASKS="[...]"): one '
        f'of {", ".join(member.name for member in task.members)}.')
  return task.members[0]


def _texts(task, name: str, lines: Iterator[str]) -> Iterator[str]:
  """The input texts of all lines that are not empty."""
  for number, line in enumerate(lines, 1):
    line = line.rstrip('\r\n')
    if not line.strip():
      continue
    row = json_rows.parse(line, name, number) if line.lstrip().startswith('{') else None
    try:
      text = _inputs_of_text(task, line) if row is None else _inputs_of(task, row)
    except UserError as error:
      raise UserError(f'{name}:{number}: {error}') from None
    yield text


def _inputs_of_text(task, text: str) -> str:
  """The input of a plain line: the template's one field, or the input itself."""
  if not isinstance(task.preprocess, Template) or task.name != local_text.NAME:
    return text
  fields = sorted(set(task.preprocess.fields))
  if len(fields) > 1:
    raise UserError(f'INPUT_TEMPLATE has the fields {", ".join(fields)}, and a plain line can only '
                    'fill one. Give JSON objects with these fields, or with the whole "inputs".')
  return _inputs_of(task, {fields[0]: text})


def _is_field(task, name: str) -> bool:
  return isinstance(task.preprocess, Template) and name in task.preprocess.fields


def _inputs_of(task, row: dict) -> str:
  """The input of a JSON object: given whole, or made by the task from its fields."""
  if isinstance(row.get('inputs'), str) and not _is_field(task, 'inputs'):
    return row['inputs']
  preprocess, unlabelled = task.preprocess, {'label': NO_LABEL}
  if isinstance(preprocess, Template):
    preprocess, unlabelled = dataclasses.replace(preprocess, required_target=False), {}
    row = {name: row[name] for name in row if name != preprocess.target_field}
  try:
    # An answer is asked for: a label that the row has, in whatever form, is not looked at.
    return preprocess({**row, **unlabelled})[0]['inputs']
  except (KeyError, IndexError, TypeError) as error:
    raise UserError(f'task {task.name} cannot make an input of the fields {", ".join(row)}: '
                    f'{type(error).__name__} {error}. Give its fields, or "inputs".') from None


@contextlib.contextmanager
def _reading(path: str):
  """The lines of a file, or of stdin for '-', as UTF-8 whatever the locale says."""
  if path == '-':
    if jax.process_count() > 1:
      raise UserError('--input=- is read by one process, and there are several: give a file that '
                      'all of them can read.')
    yield lines_lib.split(lines_lib.pieces(sys.stdin.buffer, '--input=-'), '--input=-')
    return
  if not os.path.exists(path):
    raise UserError(f'--input={path}: there is no such file. Give an existing file, or - for the '
                    'standard input.')
  with lines_lib.opened(path) as file:
    yield lines_lib.split(lines_lib.pieces(file, path), path)


@contextlib.contextmanager
def _writing(path: str):
  """The standard output for '-', else a file that takes its place once all is answered."""
  if path == '-' or not processes.is_first():  # whose stdout leads nowhere
    if isinstance(sys.stdout, io.TextIOWrapper):
      sys.stdout.reconfigure(encoding='utf-8')
    yield sys.stdout
    return
  if os.path.exists(path) and not os.path.isfile(path):  # a pipe or a device; a folder is refused
    temporary = pathlib.Path(path)
  else:
    whole = pathlib.Path(path).resolve()  # a link stays one
    temporary = whole.with_name(f'.{whole.name}.{os.getpid()}.tmp')
  try:
    file = temporary.open('w', encoding='utf-8')
  except OSError as error:
    raise UserError(f'--output={path} cannot be written: {error.strerror}. Give a file in a '
                    'folder that can be written.') from None
  if temporary == pathlib.Path(path):
    with file:
      yield file
    return
  try:
    with file:
      yield file
    os.replace(temporary, whole)
  finally:
    temporary.unlink(missing_ok=True)  # nothing is left of it where it was renamed
