"""First values of a soft prompt (Lester et al. 2021, section 3.1).

Each initialiser is a frozen dataclass and a pure function of (rng, embedding table, length,
encode_text) that returns a float32 array [P, H].
"""

import dataclasses
import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.errors import UserError

log = logging.getLogger(__name__)

PROMPT_PATH = 'encoder/prompt/prompt/prompt'


@dataclasses.dataclass(frozen=True)
class Uniform:
  """Uniform in [0, scale), as google-research/prompt-tuning draws it.

  The paper says [-0.5, 0.5]; the published code, and so the published numbers, use Flax's
  `uniform`, which begins at 0.
  """

  scale: float = 0.5

  def __call__(self, rng, embedding, length, encode_text):
    """[V, H] table -> [P, H]."""
    return jax.random.uniform(rng, (length, embedding.shape[1]), jnp.float32, 0, self.scale)


@dataclasses.dataclass(frozen=True)
class SampledVocab:
  """Embeddings of entries drawn from the `top` first, which are the most common ones."""

  top: int = 5000

  def __call__(self, rng, embedding, length, encode_text):
    """[V, H] table -> [P, H]; without repetition where `top` allows it."""
    top = min(self.top, embedding.shape[0])
    rows = jax.random.choice(rng, top, (length,), replace=length > top)
    return jnp.asarray(embedding[rows], jnp.float32)


@dataclasses.dataclass(frozen=True)
class ClassLabels:
  """One row a label, the mean over its pieces; `fallback` fills the rest.

  Attributes:
    labels: the strings that the task has as targets.
    fallback: initialiser of the rows that no label fills.
  """

  labels: tuple[str, ...]
  fallback: Callable = SampledVocab()

  def __post_init__(self):
    object.__setattr__(self, 'labels', tuple(self.labels))

  def __call__(self, rng, embedding, length, encode_text):
    """[V, H] table -> [P, H]."""
    rows = []
    for label in self.labels:
      ids = _encode(encode_text, label)
      if not len(ids):
        log.warning('prompt initialisation: the label %r has no pieces and is left out', label)
      elif len(rows) == length:
        log.warning('prompt initialisation: %d labels, %d rows: no room for label %r',
                    len(self.labels), length, label)
      else:
        rows.append(jnp.mean(_lookup(embedding, ids), axis=0))
    return _over(self.fallback(rng, embedding, length, encode_text), rows)


@dataclasses.dataclass(frozen=True)
class Text:
  """The embeddings of a text, piece by piece; `fallback` fills the rest."""

  text: str
  fallback: Callable = SampledVocab()

  def __call__(self, rng, embedding, length, encode_text):
    """[V, H] table -> [P, H]."""
    ids = list(_encode(encode_text, self.text))
    if len(ids) > length:
      log.warning('prompt initialisation: the text has %d pieces, the prompt %d rows: the last %d '
                  'pieces are cut off', len(ids), length, len(ids) - length)
    elif len(ids) < length:
      log.warning('prompt initialisation: the text has %d pieces, the prompt %d rows: the rest '
                  'comes from %s', len(ids), length, self.fallback)
    rows = _lookup(embedding, ids[:length])
    return _over(self.fallback(rng, embedding, length, encode_text), rows)


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity: it holds an array
class FromArray:
  """A given array [P, H], such as that of a prompt file; `fallback` fills what is missing."""

  array: np.ndarray
  fallback: Callable = SampledVocab()

  def __call__(self, rng, embedding, length, encode_text):
    """[V, H] table -> [P, H].

    Raises:
      UserError: the array has another rank or width.
    """
    array = np.asarray(self.array)
    if array.ndim != 2 or array.shape[1] != embedding.shape[1]:
      raise UserError(f'The prompt has shape {list(array.shape)}; this backbone needs '
                      f'[length, {embedding.shape[1]}]. Choose the prompt of a backbone of the '
                      'same width.')
    if len(array) != length:
      log.warning('prompt initialisation: %d rows given, the prompt has %d: %s', len(array), length,
                  'the rest is cut off' if len(array) > length else f'filled by {self.fallback}')
    return _over(self.fallback(rng, embedding, length, encode_text),
                 jnp.asarray(array[:length], jnp.float32))


def _encode(encode_text, text):
  if encode_text is None:
    raise UserError(f'The prompt is to start from the text {text!r}, but no vocabulary was given. '
                    'Pass encode_text, or choose an initialiser without text.')
  return encode_text(text)


def _lookup(embedding, ids):
  return jnp.asarray(embedding[jnp.asarray(list(ids), jnp.int32)], jnp.float32)


def _over(prompt, rows):
  """Replaces the first rows of a prompt."""
  if not len(rows):
    return prompt
  return prompt.at[:len(rows)].set(jnp.stack(list(rows)))
