"""A few training examples of each class, chosen with a seed.

As in the low-data experiments of prompt tuning (Gu et al. 2022, https://arxiv.org/abs/2109.04332):
K examples of each class to train on and, where wanted, as many others to choose the checkpoint by
(Perez et al. 2021, https://arxiv.org/abs/2105.11447, call this true few-shot learning).
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from prompt_tuning.data.cache import Cache
from prompt_tuning.data.views import Selected
from prompt_tuning.errors import UserError

_READ = 4096  # examples that are looked at in one go


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShot:
  """Which examples of a training split are used.

  An example is chosen by a hash of the seed and its id: the choice depends on no library's random
  numbers, and a larger K keeps the examples of a smaller one.

  Attributes:
    examples: of each class, K; of a task without labels, of all examples.
    seed: of the choice.
    dev: whether as many others are set aside for evaluation.
  """
  examples: int
  seed: int = 0
  dev: bool = False

  def select(self, cache: Cache, labels: Sequence[str] | None) -> tuple[Selected, Selected | None]:
    """The examples to train on, and those to evaluate on, where there are such.

    Args:
      cache: of the training split.
      labels: texts of the classes; None: there are no classes. Examples with another target text
        are passed over.

    Raises:
      UserError: a class has too few examples.
    """
    classes = {label: [] for label in labels or (None,)}
    for start in range(0, len(cache), _READ):
      rows = range(start, min(start + _READ, len(cache)))
      for row, record in zip(rows, cache.records(rows), strict=True):
        label = record['targets_pretokenized'] if labels else None
        if label in classes:
          classes[label].append((self._rank(record['id']), row))
    needed = self.examples * (2 if self.dev else 1)
    short = {label: len(found) for label, found in classes.items() if len(found) < needed}
    if short:
      self._refuse(cache, short)
    rows = np.asarray([[row for _, row in sorted(found)[:needed]] for found in classes.values()])
    train, dev = np.sort(rows[:, :self.examples], axis=None), rows[:, self.examples:]
    return Selected(cache, train), Selected(cache, np.sort(dev, axis=None)) if self.dev else None

  def _rank(self, example_id: str) -> bytes:
    return hashlib.sha256(f'{self.seed} {example_id}'.encode()).digest()

  def _refuse(self, cache, short):
    counts = ', '.join(f'{count} examples' if label is None else f'{count} examples of {label!r}'
                       for label, count in short.items())
    twice = ', and FEW_SHOT_DEV needs as many others' if self.dev else ''
    most = min(short.values()) // (2 if self.dev else 1)
    raise UserError(
        f'FEW_SHOT_EXAMPLES is {self.examples}{twice}: the {cache.info["split"]} split of '
        f'{cache.info["task"]} has {counts}. Give {f"at most {most}, or " if most else ""}another '
        'split or file.')
