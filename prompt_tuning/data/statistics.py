"""What there is in the splits of a task: counts, lengths, labels, repetitions."""

import collections
import dataclasses
import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.data.sources import NO_LABEL
from prompt_tuning.data.task import Task
from prompt_tuning.data.tokenizing import FEATURES, ended, tokenize
from prompt_tuning.vocabulary import Vocabulary

TOKENS, WORDS = 'tokens', 'words'
_RENDERED = 3
_MOST_TEXTS = 1000  # different targets that are counted where a task names no labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rendered:
  """One example as the model is to see it.

  Attributes:
    example_id: of the example.
    inputs: text.
    targets: text.
  """
  example_id: str
  inputs: str
  targets: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitStatistics:
  """What there is in one split.

  Attributes:
    split: its name.
    first: where its first row stands.
    rows: of the source.
    lengths: [N, 2] int32, length of the inputs and of the targets of each example, before anything
      is cut; in tokens with their end of sequence, or in words.
    unit: 'tokens' or 'words'.
    empty: feature -> number of examples without any token of it.
    targets: how often each target occurs; of free text only the first thousand different ones.
    inputs: hash of an input -> how often it occurs.
    unlabelled: number of examples whose label is not published.
    rendered: a few examples, drawn with a fixed seed.
  """
  split: str
  first: str
  rows: int
  lengths: np.ndarray
  unit: str
  empty: Mapping[str, int]
  targets: collections.Counter[str]
  inputs: collections.Counter[int]
  unlabelled: int
  rendered: Sequence[Rendered]

  def __len__(self) -> int:
    return len(self.lengths)

  @property
  def repeated(self) -> int:
    """Examples whose input an earlier example of the split has."""
    return len(self) - len(self.inputs)

  def truncated(self, limits: Mapping[str, int | None]) -> dict[str, dict[str, int]]:
    """What TASK_FEATURE_LENGTHS would cut, as a cache's info tells it; {} for words.

    Args:
      limits: TASK_FEATURE_LENGTHS.
    """
    if self.unit != TOKENS:
      return {}
    cut = {}
    for i, feature in enumerate(FEATURES):
      if limits.get(feature) is not None:
        over = (self.lengths[:, i].astype(np.int64) - limits[feature]).clip(0)
        cut[feature] = {'examples': int((over > 0).sum()), 'tokens': int(over.sum()),
                        'longest': int(self.lengths[:, i].max(initial=0))}
    return cut


def gather(task: Task, split: str, vocabulary: Vocabulary | None = None,
           lengths: Mapping[str, int | None] | None = None) -> SplitStatistics:
  """Reads one split to its end.

  Args:
    task: the task.
    split: name of the split.
    vocabulary: that lengths are measured with; None counts words.
    lengths: TASK_FEATURE_LENGTHS, which a task with an objective cuts its text by.

  Raises:
    UserError: a row that the task cannot use, or no such split.
  """
  task.check_split(split)
  rows = _Counted(task.source.read(split))
  counted = collections.Counter()
  sizes, targets, inputs = [], collections.Counter(), collections.Counter()
  draw, drawn, first = random.Random(0), [], None
  for number, (example_id, example, pair, size) in enumerate(
      _measured(task, split, vocabulary, lengths or {}, rows)):
    first = first or example_id
    sizes.append(size)
    counted['unlabelled'] += example.get('label') == NO_LABEL
    counted.update(feature for feature, part in zip(FEATURES, pair, strict=True) if not len(part))
    inputs[hash(_text_of(example, 'inputs') or _bytes(pair[0]))] += 1
    target = _text_of(example, 'targets')
    if target is not None and (task.labels or target in targets or len(targets) < _MOST_TEXTS):
      targets[target] += 1
    place = number if number < _RENDERED else draw.randrange(number + 1)
    if place < _RENDERED:  # every example is drawn with the same probability
      drawn[place:place + 1] = [(example_id, example, pair)]
  return SplitStatistics(
      split=split, first=task.source.where(split, first) if first else '', rows=rows.count,
      lengths=np.asarray(sizes, np.int32).reshape(-1, 2), unit=TOKENS if vocabulary else WORDS,
      empty={feature: counted[feature] for feature in FEATURES if counted[feature]},
      targets=targets, inputs=inputs, unlabelled=counted['unlabelled'],
      rendered=[_render(*example, vocabulary) for example in drawn])


def summary(lengths: np.ndarray) -> dict[str, float]:
  """mean, p50, p95 and max of lengths [N]; {} of none."""
  if not len(lengths):
    return {}
  return {'mean': float(lengths.mean()), 'p50': float(np.quantile(lengths, 0.5)),
          'p95': float(np.quantile(lengths, 0.95)), 'max': int(lengths.max())}


def shared(splits: Sequence[SplitStatistics]) -> dict[tuple[str, str], int]:
  """(split, later split) -> examples of the later one whose input the other has too, if any."""
  found = {}
  for one, other in itertools.combinations(splits, 2):
    count = sum(other.inputs[key] for key in one.inputs.keys() & other.inputs.keys())
    if count:
      found[one.split, other.split] = count
  return found


class _Counted:
  """An iterator that knows how much it has given."""

  def __init__(self, rows: Iterable):
    self._rows = iter(rows)
    self.count = 0

  def __iter__(self) -> Iterator:
    return self

  def __next__(self):
    row = next(self._rows)
    self.count += 1
    return row


def _measured(task, split, vocabulary, lengths, rows):
  """Yields (example id, example, pair of ids or words, pair of their lengths)."""
  if vocabulary is not None:
    for example_id, example, *pair in tokenize(task, split, vocabulary, lengths, rows):
      yield example_id, example, pair, tuple(map(len, ended(example, pair)))
    return
  for example_id, example in task.examples(split, rows):
    pair = [_words(example.get(feature, example.get('text', ''))) for feature in FEATURES]
    yield example_id, example, pair, tuple(map(len, pair))


def _words(value: Any) -> Sequence:
  return value.split() if isinstance(value, str) else value


def _text_of(example: Mapping[str, Any], feature: str) -> str | None:
  value = example.get(feature, example.get(f'{feature}_pretokenized'))
  return value if isinstance(value, str) else None


def _bytes(part: Any) -> bytes:
  return np.asarray(part).tobytes()


def _render(example_id, example, pair, vocabulary) -> Rendered:
  texts = {}
  for feature, part in zip(FEATURES, pair, strict=True):
    text = _text_of(example, feature)
    if text is None:
      text = vocabulary.decode(part) if vocabulary else ' '.join(map(str, part))
    texts[feature] = text
  return Rendered(example_id=example_id, **texts)
