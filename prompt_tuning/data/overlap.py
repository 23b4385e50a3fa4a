"""A look at all examples of the splits before a model is loaded."""

import logging
import time

from prompt_tuning.data.task import Task
from prompt_tuning.errors import UserError, excerpt

log = logging.getLogger(__name__)


def check_examples(task: Task, train_split: str | None, eval_split: str | None) -> int:
  """Reads both splits to the end, and counts evaluation examples that training sees too.

  A broken row then costs the time to read the files, and not the time to load a model as well. The
  examples are not kept: of those that evaluate, a hash of the input is.

  Args:
    task: the task.
    train_split: None where nothing is trained.
    eval_split: None where nothing is evaluated.

  Returns:
    The number of evaluation examples whose input is that of a training example; they are warned of.

  Raises:
    UserError: a row that the task cannot use, a split without examples.
  """
  start = time.monotonic()
  inputs: dict[int, int] = {}
  evaluated = 0
  for key, _, _ in _keys(task, eval_split):
    inputs[key] = inputs.get(key, 0) + 1
    evaluated += 1
  first = None
  shared = trained = 0
  for key, row, text in _keys(task, train_split if train_split != eval_split else None):
    trained += 1
    if key in inputs:
      shared += inputs.pop(key)
      first = first or (row, text)
  log.info('%s: %d examples to train on and %d to evaluate on are well-formed (%.1f s).', task.name,
           evaluated if train_split == eval_split else trained, evaluated,
           time.monotonic() - start)
  if first is not None:
    row, text = first
    log.warning(
        '%s: %d of %d examples of %s have the input of an example of %s, as has %s: %s. Metrics on '
        'them measure what was learnt by heart: leave them out of one of the two.', task.name,
        shared, evaluated, eval_split, train_split, task.source.where(train_split, row),
        excerpt(text))
  return shared


def _keys(task: Task, split: str | None):
  """Yields (hash of the input, example id, input) of a split's examples; None has none."""
  if split is None:
    return
  row = None
  for row, example in task.examples(split):
    text = example.get('inputs', example.get('text'))
    if isinstance(text, str):
      yield hash(text), row, text
  if row is None:
    raise UserError(f'Split {split!r} of task {task.name!r} gives no examples; nothing can be done '
                    'with it.')
