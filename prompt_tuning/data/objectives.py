"""Further objectives on the tokens of plain text, beside those of preprocessors.py.

Each is called as `(ids, vocabulary, lengths, rng)` with the token ids of one text, without end of
sequence, and gives the [(inputs, targets)] of its windows, without it too. A window is as long as
both lengths allow.
"""

import abc
import dataclasses
from collections.abc import Mapping

import numpy as np

from prompt_tuning.data import preprocessors
from prompt_tuning.data.preprocessors import Pair
from prompt_tuning.errors import UserError
from prompt_tuning.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Windows(abc.ABC):
  """An objective on consecutive windows of a text.

  Attributes:
    seed: of what is random, together with the example id.
  """
  seed: int = 0

  def __call__(self, ids: np.ndarray, vocabulary: Vocabulary, lengths: Mapping[str, int],
               rng: np.random.Generator) -> list[Pair]:
    """See the module."""
    size = self._size(lengths)
    if size < 1:
      raise UserError(f'TASK_FEATURE_LENGTHS of {lengths["inputs"]} and {lengths["targets"]} leave '
                      'no room for a text; give at least 2 and 2.')
    ids = ids.astype(np.int32)
    return [self._pair(ids[start:start + size], vocabulary, rng)
            for start in range(0, len(ids), size)]

  def _size(self, lengths: Mapping[str, int]) -> int:
    return min(lengths['inputs'], lengths['targets']) - 1

  @abc.abstractmethod
  def _pair(self, ids: np.ndarray, vocabulary: Vocabulary, rng: np.random.Generator) -> Pair:
    """(inputs, targets) of one window."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalLM(_Windows):
  """The text as the target of empty inputs (T5's full_lm, without joining texts)."""

  def _size(self, lengths):
    return lengths['targets'] - 1

  def _pair(self, ids, vocabulary, rng):
    return ids[:0], ids


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextInfilling(_Windows):
  """Spans become sentinels, the target is the whole text (BART, https://arxiv.org/abs/1910.13461).

  Attributes:
    noise_density: share of tokens that is masked.
    mean_noise_span_length: mean length of a masked span, in tokens.
  """
  noise_density: float = 0.15
  mean_noise_span_length: float = 3.0

  def _pair(self, ids, vocabulary, rng):
    if len(ids) < 2:
      return ids, ids
    mask = preprocessors.noise_mask(
        len(ids), self.noise_density, self.mean_noise_span_length, rng)
    return preprocessors.corrupt(ids, mask, vocabulary)[0], ids


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenDeletion(_Windows):
  """Tokens are left out without a sign, the target is the whole text (BART).

  Attributes:
    noise_density: chance of each token.
  """
  noise_density: float = 0.15

  def _pair(self, ids, vocabulary, rng):
    return ids[rng.random(len(ids)) >= self.noise_density], ids


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenMasking(_Windows):
  """Tokens are masked each by itself; runs of them become sentinels (T5's iid_denoising).

  https://arxiv.org/abs/1910.10683, section 3.1.4.

  Attributes:
    noise_density: chance of each token.
  """
  noise_density: float = 0.15

  def _pair(self, ids, vocabulary, rng):
    mask = rng.random(len(ids)) < self.noise_density
    return _with_sentinels(ids, mask, vocabulary), _with_sentinels(ids, ~mask, vocabulary)


def _with_sentinels(ids: np.ndarray, mask: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
  """The tokens with a sentinel for each run of masked ones, from the top downwards."""
  starts = np.flatnonzero(mask & ~np.concatenate([[False], mask[:-1]]))
  ids, keep = ids.copy(), ~mask
  ids[starts] = [vocabulary.sentinel(i) for i in range(len(starts))]
  keep[starts] = True
  return ids[keep]


# For OBJECTIVE.
BY_NAME = {
    'span_corruption': preprocessors.SpanCorruption(),
    'prefix_lm': preprocessors.PrefixLM(within_inputs=True),
    'causal_lm': CausalLM(),
    'text_infilling': TextInfilling(),
    'token_deletion': TokenDeletion(),
    'token_masking': TokenMasking(),
}


def by_name(name: str):
  """The objective that a configuration names.

  Raises:
    UserError: there is none of that name.
  """
  if name not in BY_NAME:
    raise UserError(f'OBJECTIVE={name!r}: choose from {", ".join(BY_NAME)}.')
  return BY_NAME[name]
