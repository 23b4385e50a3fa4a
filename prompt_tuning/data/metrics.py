"""Metrics of postprocessed targets and predictions, in percent as T5 reports them.

Each is called as `(targets, predictions) -> {name: number}`; the numbers are those of T5's
metrics (t5.evaluation.metrics) for the same lists.
"""

import dataclasses
import re
import string
from collections.abc import Callable, Sequence

import numpy as np

from prompt_tuning.errors import UserError

Metric = Callable[[Sequence, Sequence], dict[str, float]]


def accuracy(targets: Sequence, predictions: Sequence) -> dict[str, float]:
  """Share of predictions equal to their target."""
  return {'accuracy': _percent_equal(targets, predictions)}


def sequence_accuracy(targets: Sequence, predictions: Sequence) -> dict[str, float]:
  """Share of sequences that are equal as a whole, white space and case included."""
  return {'sequence_accuracy': _percent_equal(targets, predictions)}


def exact_match(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
  """Share of texts equal after dropping case, punctuation, articles and extra white space."""
  return {'exact_match': _percent_equal(
      [normalize_answer(t) for t in targets], [normalize_answer(p) for p in predictions])}


def f1(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
  """F1 of class 1 of two; a prediction that is neither class counts as the wrong one."""
  t, p = np.asarray(targets), np.asarray(predictions)
  p = np.where((p == 0) | (p == 1), p, 1 - t)
  return {'f1': 100.0 * _f1_of_class(t, p, 1)}


@dataclasses.dataclass(frozen=True)
class MeanMulticlassF1:
  """Unweighted mean of the F1 of each class; an invalid prediction belongs to no class.

  Attributes:
    num_classes: number of classes; one that occurs nowhere counts as 0.
  """
  num_classes: int

  def __call__(self, targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    t, p = np.asarray(targets), np.asarray(predictions)
    scores = [_f1_of_class(t, p, c) for c in range(self.num_classes)]
    return {f'mean_{self.num_classes}class_f1': 100.0 * float(np.mean(scores))}


@dataclasses.dataclass(frozen=True)
class Matthews:
  """Matthews correlation of two classes; one constant side gives 0."""

  def __call__(self, targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    t, p = np.asarray(targets), np.asarray(predictions)
    p = np.where((p == 0) | (p == 1), p, 1 - t)
    spread = t.std() * p.std()
    value = float(np.mean((t - t.mean()) * (p - p.mean())) / spread) if spread else 0.0
    return {'matthews_corrcoef': 100.0 * value}


def normalize_answer(text: str) -> str:
  """Lower case without ASCII punctuation, articles and repeated white space (SQuAD's rule)."""
  text = text.lower().translate(str.maketrans('', '', string.punctuation))
  return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', text).split())


def by_name(names: Sequence[str], labels: Sequence[str] | None) -> tuple[Metric, ...]:
  """Metrics that a configuration names.

  Args:
    names: from accuracy, sequence_accuracy, exact_match (free text alone), f1, matthews (two
      classes) and macro_f1 (two or more).
    labels: the task's labels; None for free text.

  Raises:
    UserError: an unknown name, or a metric that does not fit the labels.
  """
  known: dict[str, Metric] = {'accuracy': accuracy, 'sequence_accuracy': sequence_accuracy}
  if labels is None:
    known['exact_match'] = exact_match
  else:
    known['macro_f1'] = MeanMulticlassF1(len(labels))
    if len(labels) == 2:
      known |= {'f1': f1, 'matthews': Matthews()}
  names = [names] if isinstance(names, str) else list(names)
  for name in names:
    if name not in known:
      kind = 'free text' if labels is None else f'{len(labels)} classes'
      raise UserError(
          f'METRICS names {name!r}; for a task of {kind} choose from {", ".join(sorted(known))}.')
  return tuple(known[name] for name in names)


def _percent_equal(targets: Sequence, predictions: Sequence) -> float:
  if len(targets) != len(predictions):
    raise ValueError(f'{len(targets)} targets but {len(predictions)} predictions')
  equal = sum(t == p for t, p in zip(targets, predictions, strict=True))
  return 100.0 * equal / len(targets) if len(targets) else 0.0


def _f1_of_class(targets: np.ndarray, predictions: np.ndarray, wanted: int) -> float:
  found, there = predictions == wanted, targets == wanted
  total = int(found.sum()) + int(there.sum())
  return 2.0 * int((found & there).sum()) / total if total else 0.0
