"""Tasks made of a user's own files: rows of a table or JSON, or plain text."""

import collections
import dataclasses
import logging
from collections.abc import Mapping, Sequence

from prompt_tuning.data import metrics as metrics_lib
from prompt_tuning.data import objectives, preprocessors
from prompt_tuning.data.postprocessors import LabelId, Text
from prompt_tuning.data.sources import FileSource, HeldOutSource, Source
from prompt_tuning.data.task import Task
from prompt_tuning.errors import UserError, listed

log = logging.getLogger(__name__)

NAME = 'local_text'
CORPUS = 'local_corpus'
HELD_OUT_FRACTION = 0.1


def make(
    *,
    input_template: str,
    target_field: str,
    train_file: str | None = None,
    eval_file: str | None = None,
    class_labels: Sequence[str] | Mapping | None = None,
    metrics: Sequence[str] | None = None,
    seed: int = 0,
    file_format: str | None = None,
) -> Task:
  """Builds the task and looks at the first row of each file, so that a wrong name fails at once.

  Args:
    input_template: INPUT_TEMPLATE, for example 'review: {text}'.
    target_field: TARGET_FIELD.
    train_file: TRAIN_FILE; JSONL, JSON, TSV or CSV by suffix, also with .gz. None: the task has
      no split to train on, which inference does not need.
    eval_file: EVAL_FILE; None holds out a seeded tenth of the training file.
    class_labels: CLASS_LABELS, label texts, or a mapping from the field's value to them; None for
      free text.
    metrics: METRICS, see metrics.by_name; None is accuracy for classes and exact_match for text.
    seed: of the held-out part.
    file_format: 'jsonl', 'json', 'tsv' or 'csv' where the suffix does not say it.

  Returns:
    A task with the splits `train` and `validation`, as far as there are files.

  Raises:
    UserError: a missing or broken file, a field that is not there, labels or metrics that do not
      fit.
  """
  template = preprocessors.Template(input_template, target_field, _label_pairs(class_labels))
  source = _source({'train': train_file, 'validation': eval_file}, file_format, seed)
  labels = template.labels
  default = ('accuracy',) if labels else ('exact_match',)
  task = Task(
      name=NAME, source=source, preprocess=template, labels=labels,
      postprocess_fn=LabelId(labels) if labels else Text(strip=True),
      metric_fns=metrics_lib.by_name(default if metrics is None else metrics, labels))
  for split in task.splits:
    next(task.examples(split))
  return task


def corpus(
    *,
    objective: str,
    train_file: str | None = None,
    eval_file: str | None = None,
    text_field: str = 'text',
    seed: int = 0,
) -> Task:
  """Builds the task of an objective on the tokens of plain text.

  Args:
    objective: OBJECTIVE, see objectives.by_name.
    train_file: TRAIN_FILE; a .txt file (also with .gz) holds one text a line, JSONL, JSON, TSV and
      CSV have a field with the text. None: the task has no split to train on.
    eval_file: EVAL_FILE; None holds out a seeded tenth of the training file.
    text_field: TEXT_FIELD.
    seed: of the held-out part.

  Raises:
    UserError: no such objective, a missing or broken file, a field that is not there.
  """
  kinds = {_is_lines(file) for file in (train_file, eval_file) if file}
  if len(kinds) > 1:
    raise UserError(f'TRAIN_FILE={train_file!r} and EVAL_FILE={eval_file!r}: one of them is a text '
                    'file, the other a table or JSON. Give two of a kind.')
  source = _source({'train': train_file, 'validation': eval_file},
                   'lines' if True in kinds else None, seed)
  task = Task(name=CORPUS, source=source, preprocess=TextField(text_field),
              objective=objectives.by_name(objective))
  for split in task.splits:
    next(task.examples(split))
  return task


@dataclasses.dataclass(frozen=True)
class TextField:
  """A field of a row as the text for an objective.

  Attributes:
    field: its name.
  """
  field: str

  def __call__(self, example: Mapping) -> list[Mapping]:
    return [{'text': preprocessors.field_text(example, self.field, 'TEXT_FIELD')}]


def _is_lines(file: str) -> bool:
  return file.lower().removesuffix('.gz').endswith('.txt')


def _source(files: Mapping[str, str | None], file_format: str | None, seed: int) -> Source:
  """The files that are given; without an evaluation file, the training file in two parts."""
  files = {split: file for split, file in files.items() if file}
  source = FileSource(files, file_format)
  if source.splits == ('train',):
    log.info('No EVAL_FILE: a tenth of %s, chosen with seed %d, is held out for evaluation.',
             files['train'], seed)
    source = HeldOutSource(source, HELD_OUT_FRACTION, seed)
  return source


def _label_pairs(class_labels: Sequence[str] | Mapping | None):
  """(value, label) pairs of CLASS_LABELS in either form."""
  if class_labels is None:
    return None
  if not isinstance(class_labels, list | tuple | Mapping):
    kind = 'one text' if isinstance(class_labels, str) else 'no list'
    raise UserError(
        f"CLASS_LABELS={class_labels!r} is {kind}; give a list, for example "
        "['negative', 'positive'], or a mapping from the field's values to labels.")
  given = class_labels.items() if isinstance(class_labels, Mapping) else zip(
      class_labels, class_labels, strict=True)
  pairs = tuple(given)
  texts = [label for _, label in pairs if isinstance(label, str) and label.strip()]
  if len(texts) < len(pairs) or len(set(texts)) < 2:
    raise UserError(
        f'CLASS_LABELS={class_labels!r}: at least two different labels are needed, each a text '
        'that is not empty.')
  pairs = tuple((_value_text(value), label) for value, label in pairs)
  repeated = [value for value, n in collections.Counter(v for v, _ in pairs).items() if n > 1]
  if repeated:
    raise UserError(f'CLASS_LABELS={class_labels!r} holds {listed(repeated)} twice.')
  return pairs


def _value_text(value) -> str:
  """A value of the target field as Template compares it: 1.0 is the number 1."""
  text = preprocessors.text_of(value, 'CLASS_LABELS')
  return text if isinstance(value, str) else preprocessors.whole_number(value) or text
