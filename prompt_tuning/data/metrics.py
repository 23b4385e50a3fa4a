"""Metrics of postprocessed targets and predictions, in percent as T5 reports them.

Each is called as `(targets, predictions) -> {name: number}`; the numbers are those of T5's
metrics (t5.evaluation.metrics) for the same lists.
"""

import collections
import dataclasses
import functools
import importlib
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.errors import UserError

Metric = Callable[[Sequence, Sequence], dict[str, float]]

_LOWER_IS_BETTER = frozenset({'ter'})


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
  """Matthews correlation; a constant side gives 0, an invalid prediction is a class of its own.

  https://doi.org/10.1016/j.compbiolchem.2004.09.006 for more than two classes.
  """

  def __call__(self, targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    t, p = np.asarray(targets), np.asarray(predictions)
    classes = np.union1d(t, p)
    there, found = (np.sum(side[:, None] == classes, axis=0).astype(float) for side in (t, p))
    count = float(len(t))
    spread = np.sqrt((count**2 - there @ there) * (count**2 - found @ found))
    value = (count * float(np.sum(t == p)) - there @ found) / spread if spread else 0.0
    return {'matthews_corrcoef': 100.0 * float(value)}


def pearson(targets: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
  """Pearson correlation; NaN where one side is constant."""
  return {'pearson_corrcoef': 100.0 * _correlation(np.asarray(targets, float),
                                                   np.asarray(predictions, float))}


def spearman(targets: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
  """Rank correlation; equal values share the mean of their ranks."""
  return {'spearman_corrcoef': 100.0 * _correlation(_ranks(targets), _ranks(predictions))}


def squad(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
  """Exact match and F1 of words after `normalize_answer`, best over the right answers.

  An example without any answer counts as wrong. https://arxiv.org/abs/1606.05250, section 6.1.
  """
  return _best_answers(targets, predictions, normalize_answer)


def trivia_qa(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
  """`squad` with TriviaQA's rule: punctuation, quotes of other kinds too, become spaces."""
  return _best_answers(targets, predictions, normalize_trivia_answer)


def span_squad(targets: Sequence[Mapping], predictions: Sequence[str]) -> dict[str, float]:
  """`squad` of the words of a passage that `start: 3 end: 5` names.

  Args:
    targets: `{'answers': [...], 'context': text}` of each example.
    predictions: one text for each example; one without two numbers is an empty answer.
  """
  answers = [target['answers'] for target in targets]
  return squad(answers, [_words_at(target['context'], text)
                         for target, text in zip(targets, predictions, strict=True)])


def exact_group(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
  """100 where all predictions of a group are right, else 0."""
  return {'exact_match': 100.0 * (list(targets) == list(predictions))}


@dataclasses.dataclass(frozen=True)
class OfValues:
  """A metric of the values of postprocessors.Grouped, all groups together.

  Attributes:
    metric: of the values.
  """
  metric: Metric

  def __call__(self, targets: Sequence[Mapping], predictions: Sequence[Mapping]):
    return self.metric(_values(targets), _values(predictions))


@dataclasses.dataclass(frozen=True)
class MeanOverGroups:
  """The mean over groups of a metric of each group's values (MultiRC's exact match).

  Attributes:
    metric: of one group's values.
  """
  metric: Metric

  def __call__(self, targets: Sequence[Mapping], predictions: Sequence[Mapping]):
    results = [self.metric(*zip(*pairs, strict=True)) for pairs in _groups(targets, predictions)]
    return {name: float(np.mean([r[name] for r in results])) for name in (results or [{}])[0]}


@dataclasses.dataclass(frozen=True)
class FirstOfGroup:
  """A metric that sees the first example of each group (ReCoRD repeats one for each answer).

  Attributes:
    metric: of the values that are left.
  """
  metric: Metric

  def __call__(self, targets: Sequence[Mapping], predictions: Sequence[Mapping]):
    firsts = [pairs[0] for pairs in _groups(targets, predictions)]
    return self.metric([t for t, _ in firsts], [p for _, p in firsts])


@dataclasses.dataclass(frozen=True)
class AllOfGroup:
  """A metric of one prediction for each group, against the group's targets as references.

  Attributes:
    metric: of lists of references and predictions.
  """
  metric: Metric

  def __call__(self, targets: Sequence[Mapping], predictions: Sequence[Mapping]):
    groups = _groups(targets, predictions)
    return self.metric([[t for t, _ in pairs] for pairs in groups],
                       [pairs[0][1] for pairs in groups])


def bleu(targets: Sequence[str | Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
  """Corpus BLEU of sacrebleu (international tokens, exponential smoothing).

  Args:
    targets: one reference for each example, or several; their number may differ.
    predictions: one text for each example.
  """
  score = _library('sacrebleu').corpus_bleu(
      list(predictions), _streams(targets), smooth_method='exp', tokenize='intl', lowercase=False,
      use_effective_order=False)
  return {'bleu': score.score}


def chrf(targets: Sequence[str | Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
  """Corpus chrF of sacrebleu (6 characters, beta 2, https://aclanthology.org/W15-3049)."""
  return {'chrf': _library('sacrebleu').corpus_chrf(list(predictions), _streams(targets)).score}


def ter(targets: Sequence[str | Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
  """Translation edit rate of sacrebleu in percent; less is better.

  Shifts, insertions, deletions and substitutions against the nearest reference, for each word of
  the references' mean length. https://aclanthology.org/2006.amta-papers.25
  """
  return {'ter': _library('sacrebleu').corpus_ter(list(predictions), _streams(targets)).score}


@dataclasses.dataclass(frozen=True)
class Rouge:
  """Mean F1 of ROUGE by the library rouge-score; of several references the best counts.

  T5 reports the median of a bootstrap, which is random; this is the mean that it scatters around.

  Attributes:
    kinds: of the library's names.
  """
  kinds: tuple[str, ...] = ('rouge1', 'rouge2', 'rougeLsum')

  def __call__(self, targets: Sequence[str | Sequence[str]],
               predictions: Sequence[str]) -> dict[str, float]:
    scorer = _library('rouge_score.rouge_scorer').RougeScorer(list(self.kinds))
    scores = []
    for target, prediction in zip(targets, predictions, strict=True):
      references = [_in_sentences(text) for text in _references(target)]
      score = scorer.score_multi(references, _in_sentences(prediction))
      scores.append([score[kind].fmeasure for kind in self.kinds])
    means = np.mean(scores, axis=0) if scores else np.zeros(len(self.kinds))
    return {kind: 100.0 * float(mean) for kind, mean in zip(self.kinds, means, strict=True)}


def average(results: Mapping[str, Mapping[str, float]]) -> float:
  """The score of a benchmark as GLUE and SuperGLUE define it.

  Args:
    results: task -> its metrics; a task with several counts as their mean. Those of which less is
      better are left out.

  Returns:
    The mean over tasks; nan where no metric counts.
  """
  counted = [[value for name, value in metrics.items() if not lower_is_better(name)]
             for metrics in results.values()]
  means = [np.mean(values) for values in counted if values]
  return float(np.mean(means)) if means else float('nan')


def lower_is_better(name: str) -> bool:
  """Whether less of a metric is better; in a mixture its name is TASK/METRIC."""
  metric = name.rpartition('/')[2]
  return metric in _LOWER_IS_BETTER or 'loss' in metric


def normalize_answer(text: str) -> str:
  """Lower case without ASCII punctuation, articles and repeated white space (SQuAD's rule)."""
  text = text.lower().translate(str.maketrans('', '', string.punctuation))
  return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', text).split())


def normalize_trivia_answer(text: str) -> str:
  """Lower case with spaces for punctuation, without articles (TriviaQA's rule)."""
  marks = dict.fromkeys(map(ord, f'{string.punctuation}\u2018\u2019\u00b4'), ' ')
  return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', text.lower().translate(marks)).split())


def by_name(names: Sequence[str], labels: Sequence[str] | None) -> tuple[Metric, ...]:
  """Metrics that a configuration names.

  Args:
    names: from accuracy, sequence_accuracy, exact_match, bleu, chrf, rouge, ter (free text alone),
      f1, matthews (two classes) and macro_f1 (two or more).
    labels: the task's labels; None for free text.

  Raises:
    UserError: an unknown name, or a metric that does not fit the labels.
  """
  known: dict[str, Metric] = {'accuracy': accuracy, 'sequence_accuracy': sequence_accuracy}
  if labels is None:
    known |= {'exact_match': exact_match, 'bleu': bleu, 'chrf': chrf, 'rouge': Rouge(),
              'ter': ter}
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


def _mean_percent(values: Sequence[float]) -> float:
  return 100.0 * float(np.mean(values)) if len(values) else 0.0


def _best_answers(targets: Sequence[Sequence[str]], predictions: Sequence[str],
                  normalize: Callable[[str], str]) -> dict[str, float]:
  exact, overlap = [], []
  for answers, prediction in zip(targets, predictions, strict=True):
    found = normalize(prediction)
    wanted = [normalize(answer) for answer in answers]
    exact.append(found in wanted)
    overlap.append(max((_word_f1(answer, found) for answer in wanted), default=0.0))
  return {'em': _mean_percent(exact), 'f1': _mean_percent(overlap)}


def _words_at(context: str, prediction: str) -> str:
  """Words of a passage between two places, both included; '' where there are none."""
  words, parts = (re.sub(r'\W', ' ', text).split() for text in (context, prediction))
  try:
    return ' '.join(words[int(parts[1]):int(parts[3]) + 1])
  except (IndexError, ValueError):
    return ''


def _word_f1(wanted: str, found: str) -> float:
  wanted_words, found_words = wanted.split(), found.split()
  same = sum((collections.Counter(wanted_words) & collections.Counter(found_words)).values())
  return 2.0 * same / (len(wanted_words) + len(found_words)) if same else 0.0


def _references(target: str | Sequence[str]) -> list[str]:
  """The texts that a prediction is compared with; without any it is wrong."""
  return [target] if isinstance(target, str) else list(target) or ['']


def _streams(targets: Sequence[str | Sequence[str]]) -> list[list[str | None]]:
  """The first reference of every example, the second (None where there is none), and so on."""
  given = list(map(_references, targets))
  most = max(map(len, given), default=1)
  return [[t[k] if k < len(t) else None for t in given] for k in range(most)]


def _values(grouped: Sequence[Mapping]) -> list:
  return [item['value'] for item in grouped]


def _groups(targets: Sequence[Mapping], predictions: Sequence[Mapping]) -> list[list[tuple]]:
  """(target's value, prediction's value) of every example, those of a group together."""
  groups: dict[Any, list[tuple]] = {}
  for target, prediction in zip(targets, predictions, strict=True):
    name = target['group']
    key = tuple(name) if isinstance(name, list) else name
    groups.setdefault(key, []).append((target['value'], prediction['value']))
  return list(groups.values())


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
  x, y = x - x.mean(), y - y.mean()
  spread = float(np.sqrt(np.sum(x * x) * np.sum(y * y)))
  return float(np.sum(x * y)) / spread if spread else float('nan')


def _ranks(values: Sequence[float]) -> np.ndarray:
  _, inverse, counts = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
  return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _in_sentences(text: str) -> str:
  """One sentence a line, which rougeLsum asks for."""
  return text.replace(' . ', ' .\n')


@functools.lru_cache
def _library(name: str):
  """A library of the extra `metrics`.

  Raises:
    UserError: it cannot be imported.
  """
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise UserError(f'This metric needs {name.split(".")[0]}, which cannot be imported: {error}. '
                    "Install it with: pip install 'prompt-tuning[metrics]'.") from None
