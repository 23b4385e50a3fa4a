"""Checks of a task's labels, lengths and examples, read from its caches."""

import collections
import dataclasses
import functools
import logging
from collections.abc import Sequence

import numpy as np

from prompt_tuning.data.cache import Cache
from prompt_tuning.data.task import Task
from prompt_tuning.diagnosis.findings import Finding, note, percent, problem, warning
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation import evaluator
from prompt_tuning.vocabulary import UNK_ID, Vocabulary

log = logging.getLogger(__name__)

MOST_EXAMPLES = 2000  # of a split that are looked at, evenly spaced
MANY_UNKNOWN = 0.05
UNBALANCED = 0.95
CUT_INPUTS = 0.05  # below this share a note is enough


@dataclasses.dataclass(frozen=True)
class Sample:
  """Examples of a split, at most MOST_EXAMPLES, evenly spaced.

  Attributes:
    cache: the split.
  """

  cache: Cache

  @property
  def split(self) -> str:
    """Name of the split."""
    return self.cache.info['split']

  @functools.cached_property
  def rows(self) -> list[int]:
    """Which rows of the cache."""
    count = len(self.cache)
    return np.unique(np.linspace(0, count - 1, min(count, MOST_EXAMPLES)).astype(int)).tolist()

  @functools.cached_property
  def examples(self) -> list[dict]:
    """Raw examples with `inputs` and `targets` texts."""
    return [evaluator.as_example(record) for record in self.cache.records(self.rows)]

  @functools.cached_property
  def tokens(self) -> list[tuple[np.ndarray, np.ndarray]]:
    """(input ids, target ids)."""
    return self.cache.tokens(self.rows)

  @functools.cached_property
  def targets(self) -> collections.Counter:
    """How often each target text occurs."""
    return collections.Counter(example['targets'] for example in self.examples)


def check_data(task: Task, vocabulary: Vocabulary, train: Cache, dev: Cache) -> list[Finding]:
  """Everything that the examples and labels of a task tell.

  Args:
    task: the task.
    vocabulary: that the caches were made with.
    train: the training split.
    dev: the evaluation split.
  """
  samples = [Sample(train), Sample(dev)]
  findings = []
  for sample in samples:
    findings += check_cuts(sample.cache)
    findings += check_unknown_tokens(sample)
  if task.objective is not None:
    return findings  # token ids were never a text of somebody's
  if not task.labels:
    return findings + check_texts(samples[0], vocabulary)
  findings += check_labels(task.labels, vocabulary)
  findings += check_targets(task.labels, *samples)
  return findings + score_to_beat(task, samples[1])


def check_cuts(cache: Cache) -> list[Finding]:
  """Shares of the examples whose inputs or targets did not fit TASK_FEATURE_LENGTHS."""
  return describe_cuts(cache.info['split'], len(cache), cache.info['truncated'],
                       cache.info['key']['lengths'])


def describe_cuts(split: str, count: int, truncated, lengths) -> list[Finding]:
  """What is cut of a split.

  Args:
    split: its name.
    count: number of its examples.
    truncated: feature -> number of `examples` that are cut, and how many tokens the `longest` has.
    lengths: TASK_FEATURE_LENGTHS.
  """
  findings = []
  for feature, cut in truncated.items():
    if not cut['examples']:
      continue
    share = cut['examples'] / count
    text = (f'{percent(cut["examples"], count)} of the {feature} of {split} are cut to '
            f'{lengths[feature]} tokens; the longest has {cut["longest"]}.')
    if feature == 'targets':
      kind = problem if share > 0.5 else warning
    else:
      kind = warning if share > CUT_INPUTS else note
    findings.append(kind(f'{feature} are cut', text))
  return findings


def check_duplicates(shared: int, dev: Cache) -> list[Finding]:
  """Says how many examples of the evaluation split the training split has too.

  Args:
    shared: from data.overlap.check_examples.
    dev: the evaluation split.
  """
  if not shared:
    return []
  return [warning('duplicates', f'{shared} of {len(dev)} examples of {dev.info["split"]} have the '
                  'input of a training example.')]


def check_unknown_tokens(sample: Sample) -> list[Finding]:
  """Whether the vocabulary has pieces for the text of the inputs."""
  ids = np.concatenate([inputs for inputs, _ in sample.tokens])
  unknown = int((ids == UNK_ID).sum())
  if unknown <= MANY_UNKNOWN * len(ids):
    return []
  return [problem('unknown tokens', f'{percent(unknown, len(ids))} of the input tokens of '
                  f'{sample.split} are unknown to the vocabulary.')]


def check_texts(sample: Sample, vocabulary: Vocabulary) -> list[Finding]:
  """Whether free-text targets read back as they were written."""
  changed = [text for text in sample.targets if not survives(text, vocabulary)]
  if len(changed) <= 0.01 * len(sample.targets):
    return []
  return [warning('text does not survive', f'{percent(len(changed), len(sample.targets))} of the '
                  f'targets read back differently, such as {_shorten(changed[0])}.')]


def survives(text: str, vocabulary: Vocabulary) -> bool:
  """Whether a text is the same after tokenising and detokenising."""
  return vocabulary.decode(vocabulary.encode(text)) == text


def check_labels(labels: Sequence[str], vocabulary: Vocabulary) -> list[Finding]:
  """Whether an answer can equal each label; cut and equal ones are refused by the cache."""
  changed = [label for label in labels if not survives(label, vocabulary)]
  if not changed:
    return []
  back = vocabulary.decode(vocabulary.encode(changed[0]))
  return [problem('text does not survive', f'{len(changed)} of {len(labels)} labels read back '
                  f'differently: {changed[0]!r} becomes {back!r}.')]


def check_targets(labels: Sequence[str], train: Sample, dev: Sample) -> list[Finding]:
  """Whether the examples' targets are the labels, all of them, and of more than one class."""
  findings = []
  for sample in (train, dev):
    findings += check_answers(labels, sample.split, sample.targets, _looked_at(sample))
  return findings + check_missing(labels, train.targets, _looked_at(train))


def check_missing(labels: Sequence[str], targets, looked_at: str = '') -> list[Finding]:
  """Labels that no training example has; arguments as of `check_answers`."""
  missing = [label for label in labels if label not in targets]
  if not missing or len(targets) == 1:
    return []
  return [warning('missing classes', f'{len(missing)} of {len(labels)} labels have no training '
                  f'example{looked_at}: {", ".join(map(repr, missing[:5]))}.')]


def check_answers(labels: Sequence[str], split: str, targets, looked_at: str = '') -> list[Finding]:
  """Whether the targets of one split are labels, and of more than one class.

  Args:
    labels: of the task.
    split: its name.
    targets: how often each target occurs.
    looked_at: said where that is a part of the examples.
  """
  return _unknown_labels(labels, split, targets) + _balance(split, targets, looked_at)


def _unknown_labels(labels, split, targets):
  unknown = {text: count for text, count in targets.items() if text not in labels}
  if not unknown:
    return []
  total = sum(targets.values())
  most = sorted(unknown, key=unknown.get, reverse=True)[:5]
  return [problem('unknown labels', f'{percent(sum(unknown.values()), total)} of the targets of '
                  f'{split} are no labels: {", ".join(map(_shorten, most))}; the labels '
                  f'are {", ".join(map(repr, labels[:10]))}.')]


def _balance(split, targets, looked_at):
  """A word on the distribution of the classes."""
  total = sum(targets.values())
  label, count = targets.most_common(1)[0]
  if len(targets) == 1:
    return [problem('one class', f'All {total} examples of {split} that were looked at are '
                    f'{label!r}.')]
  shares = ', '.join(f'{text!r} {percent(n, total)}' for text, n in targets.most_common(5))
  kind = warning if count > UNBALANCED * total else note
  return [kind('class balance', f'{split}{looked_at}: {shares}.')]


def score_to_beat(task: Task, dev: Sample) -> list[Finding]:
  """The metrics of a constant answer."""
  scores = majority_scores(task, dev)
  if not scores:
    return []
  label = dev.targets.most_common(1)[0][0]
  text = ', '.join(f'{name} {value:.1f}' for name, value in scores.items())
  return [note('score to beat', f'Answering {label!r} each time gives {text} on {dev.split}'
               f'{_looked_at(dev)}.')]


def majority_scores(task: Task, dev: Sample) -> dict[str, float]:
  """The task's metrics where every answer is the most common label; {} where they have none."""
  if not task.labels or not task.metric_fns:
    return {}
  label = dev.targets.most_common(1)[0][0]
  try:
    targets = [task.postprocess_fn(example['targets'], example=example, is_target=True)
               for example in dev.examples]
    answers = [task.postprocess_fn(label, example=example, is_target=False)
               for example in dev.examples]
    return task.metrics(targets, answers)
  except UserError:
    raise
  except Exception:  # a user's functions: that they fail on a constant answer is no mistake
    log.info('Metrics of %s for a constant answer:', task.name, exc_info=True)
    return {}


def _looked_at(sample: Sample) -> str:
  """Says that only a part was looked at."""
  looked, total = len(sample.rows), len(sample.cache)
  return '' if looked == total else f' ({looked} of {total} examples looked at)'


def _shorten(text: str) -> str:
  return repr(text if len(text) <= 60 else f'{text[:57]}...')
