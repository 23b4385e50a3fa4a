"""A task made of a user's own JSONL, TSV or CSV file."""

import logging
from collections.abc import Mapping, Sequence

from prompt_tuning.data import metrics as metrics_lib
from prompt_tuning.data import preprocessors
from prompt_tuning.data.postprocessors import LabelId, Text
from prompt_tuning.data.sources import FileSource, HeldOutSource
from prompt_tuning.data.task import Task
from prompt_tuning.errors import UserError

log = logging.getLogger(__name__)

NAME = 'local_text'
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
  files = {'train': train_file, 'validation': eval_file}
  source = FileSource({split: file for split, file in files.items() if file}, file_format)
  if source.splits == ('train',):
    log.info('No EVAL_FILE: a tenth of %s, chosen with seed %d, is held out for evaluation.',
             train_file, seed)
    source = HeldOutSource(source, HELD_OUT_FRACTION, seed)
  labels = template.labels
  default = ('accuracy',) if labels else ('exact_match',)
  task = Task(
      name=NAME, source=source, preprocess=template, labels=labels,
      postprocess_fn=LabelId(labels) if labels else Text(strip=True),
      metric_fns=metrics_lib.by_name(default if metrics is None else metrics, labels))
  for split in task.splits:
    next(task.examples(split))
  return task


def _label_pairs(class_labels: Sequence[str] | Mapping | None):
  """(value, label) pairs of CLASS_LABELS in either form."""
  if class_labels is None:
    return None
  if isinstance(class_labels, str):
    raise UserError(
        f"CLASS_LABELS={class_labels!r} is one text; give a list, for example "
        "['negative', 'positive'], or a mapping from the field's values to labels.")
  if isinstance(class_labels, Mapping):
    pairs = tuple((preprocessors.text_of(k, 'CLASS_LABELS'), v) for k, v in class_labels.items())
  else:
    pairs = tuple((label, label) for label in class_labels)
    if len(set(pairs)) < len(pairs):
      raise UserError(f'CLASS_LABELS={list(class_labels)!r} holds a label twice.')
  wrong = [label for _, label in pairs if not (isinstance(label, str) and label.strip())]
  if wrong or len({label for _, label in pairs}) < 2:
    raise UserError(
        f'CLASS_LABELS={class_labels!r}: at least two different labels are needed, each a text '
        'that is not empty.')
  return pairs
