"""What is done to the token ids of an example after its texts are tokenised.

Frozen dataclasses, called as `(inputs, targets, vocabulary, lengths, rng)` with ids that have no
end of sequence; they give `(inputs, targets)`, or None to leave the example out.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from prompt_tuning.vocabulary import Vocabulary

Pair = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Sentinels:
  """Sentinels end the inputs and begin the targets, as if the targets had been masked.

  What a model that knows span corruption alone expects ("span corruption + sentinel" of
  https://arxiv.org/abs/2104.08691; tasks `..._1_sentinel` of T5). Inputs that are cut keep them.

  Attributes:
    count: number of sentinels.
  """
  count: int = 1

  def __call__(self, inputs: np.ndarray, targets: np.ndarray, vocabulary: Vocabulary,
               lengths: Mapping[str, int | None], rng: np.random.Generator) -> Pair:
    """See the module."""
    del rng
    ids = [vocabulary.sentinel(i) for i in range(self.count)]
    room = lengths.get('inputs')
    # Where the end will be after cutting, which counts what it cuts.
    end = len(inputs) if room is None else min(len(inputs), max(room - 1 - self.count, 0))
    return np.insert(inputs, end, ids), np.insert(targets, 0, ids)


@dataclasses.dataclass(frozen=True)
class KeepAnswer:
  """Cuts inputs that are too long to a random window that holds the targets (T5's TriviaQA).

  An example whose targets do not stand in its inputs token for token is left out where they have to
  be cut.
  """

  def __call__(self, inputs: np.ndarray, targets: np.ndarray, vocabulary: Vocabulary,
               lengths: Mapping[str, int | None], rng: np.random.Generator) -> Pair | None:
    """See the module."""
    del vocabulary
    room, size = lengths.get('inputs'), len(targets)
    if room is None or len(inputs) < room or not size:
      return inputs, targets
    room -= 1  # for the end of sequence
    start = next((i for i in range(len(inputs) - size + 1)
                  if np.array_equal(inputs[i:i + size], targets)), None)
    if start is None or size > room:
      return None
    low, high = max(0, start - (room - size)), min(start, len(inputs) - room)
    first = int(rng.integers(low, high + 1))
    return inputs[first:first + room], targets
