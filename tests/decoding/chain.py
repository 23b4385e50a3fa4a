"""A toy decoder whose next token depends on the whole prefix, in JAX and in numpy.

Its cache holds one number a row that every token changes, so a beam that is not moved together
with its cache gives other logits.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

STATES = 97


def tokens_to_logits(ids, cache):
  """One decoding step; the cache is a Chain's."""
  state = (5 * cache['decoder/state'] + ids[:, 0] + 1) % STATES
  return cache['cache_table'][cache['decoder/row'], state], {**cache, 'decoder/state': state}


@functools.lru_cache
def jitted(strategy, **settings):
  """A strategy under jit, compiled once for all chains of a shape: cache, ... -> result."""
  return jax.jit(lambda *args: strategy(tokens_to_logits, *args, **settings))


@dataclasses.dataclass
class Chain:
  """Logits `table[row, state]`, state' = (5 * state + token + 1) mod 97."""
  table: np.ndarray  # [B, STATES, V] float32

  @classmethod
  def random(cls, seed, batch_size=3, vocab_size=11, spread=2.0):
    rng = np.random.default_rng(seed)
    return cls(rng.normal(0, spread, (batch_size, STATES, vocab_size)).astype(np.float32))

  def cache(self, copies=1):
    rows = np.repeat(np.arange(len(self.table), dtype=np.int32), copies)
    return {'decoder/row': jnp.asarray(rows), 'decoder/state': jnp.zeros(len(rows), jnp.int32),
            'cache_table': jnp.asarray(self.table)}

  def logits(self, row, prefix):
    """Logits [V] in float64 after the tokens of `prefix` (the leading 0 not counted)."""
    state = 0
    for token in (0, *prefix):
      state = (5 * state + token + 1) % STATES
    return self.table[row, state].astype(np.float64)

  def log_probs(self, row, prefix):
    logits = self.logits(row, prefix)
    return logits - np.log(np.sum(np.exp(logits - logits.max()))) - logits.max()


def pad(sequence, length):
  return list(sequence) + [0] * (length - len(sequence))
