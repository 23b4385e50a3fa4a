"""Checks of all splits of a task before there is a model or a cache."""

from collections.abc import Mapping, Sequence

from prompt_tuning.data import statistics
from prompt_tuning.data.statistics import SplitStatistics
from prompt_tuning.data.task import Task
from prompt_tuning.diagnosis import data_checks
from prompt_tuning.diagnosis.findings import Finding, note, percent, warning
from prompt_tuning.vocabulary import Vocabulary


def check_splits(task: Task, splits: Sequence[SplitStatistics],
                 limits: Mapping[str, int | None], vocabulary: Vocabulary | None) -> list[Finding]:
  """Everything that the splits tell.

  Args:
    task: the task.
    splits: what was found, the training split among them if there is one.
    limits: TASK_FEATURE_LENGTHS, as far as it is known.
    vocabulary: that lengths were measured with, or None.
  """
  findings = []
  if task.labels and vocabulary is not None:
    findings += data_checks.check_labels(task.labels, vocabulary)
  for split in splits:
    findings += data_checks.describe_cuts(
        split.split, len(split), split.truncated(limits), limits)
    findings += _check_empty(split)
    if task.labels:
      findings += _check_answers(task, split)
  return findings + _check_shared(task, splits)


def _check_empty(split: SplitStatistics) -> list[Finding]:
  return [warning('empty texts', f'{percent(count, len(split))} of the {feature} of {split.split} '
                  'give no tokens.') for feature, count in split.empty.items()]


def _check_answers(task: Task, split: SplitStatistics) -> list[Finding]:
  if split.unlabelled == len(split):
    return [note('class balance', f'{split.split}: the labels are not published.')]
  findings = data_checks.check_answers(_possible_targets(task), split.split, split.targets)
  if split.split == task.train_split:
    findings += data_checks.check_missing(task.labels, split.targets)
  return findings


def _possible_targets(task: Task) -> tuple[str, ...]:
  """The labels, and where these are another task's, what they mean here."""
  translate = getattr(task.postprocess_fn, 'translate', str)
  return tuple(dict.fromkeys((*task.labels, *map(translate, task.labels))))


def _check_shared(task: Task, splits: Sequence[SplitStatistics]) -> list[Finding]:
  """Inputs that two splits have; where one of them is trained on, the other's score suffers."""
  sizes = {split.split: len(split) for split in splits}
  return [
      (warning if task.train_split in pair else note)(
          'duplicates', f'{count} of {sizes[pair[1]]} examples of {pair[1]} have the input of an '
          f'example of {pair[0]}.')
      for pair, count in statistics.shared(splits).items()]
