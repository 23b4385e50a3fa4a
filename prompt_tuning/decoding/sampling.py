"""Strategies that draw one token at a time: greedy search and temperature sampling.

Both work on a function tokens_to_logits(ids [R, 1], cache) -> (logits [R, V] float32, cache)
over R independent rows. A row ends with the EOS token, everything after it is 0; the loop stops
as soon as all rows have ended.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# What T5X writes where a token may not be drawn, and the temperature it calls zero.
NEG_INF = -1.0e7
MIN_TEMPERATURE = 1e-4


class _State(NamedTuple):
  """The loop's state: R rows, L positions."""
  step: jax.Array  # scalar int32
  tokens: jax.Array  # [R] int32, the last token of each row
  sequences: jax.Array  # [R, L] int32
  scores: jax.Array  # [R] float32
  ended: jax.Array  # [R] bool
  cache: Any
  rng: Any


def greedy(tokens_to_logits, cache, *, num_rows, max_decode_length, eos_id=1):
  """Takes the most probable token at every step.

  Args:
    tokens_to_logits: ids [R, 1], cache -> (logits [R, V] float32, cache).
    cache: The decoder's cache before the first step.
    num_rows: R.
    max_decode_length: L, the number of positions to fill at most.
    eos_id: The token that ends a row.

  Returns:
    (sequences [R, L] int32, scores [R] float32). The score is the sum of the tokens'
    log-probabilities, EOS included.
  """
  return _loop(
      lambda logits, rng: most_probable(logits), tokens_to_logits, cache, num_rows,
      max_decode_length, eos_id, rng=None)


def sample(tokens_to_logits, cache, rng, *, num_rows, max_decode_length, eos_id=1, temperature=1.0,
           top_k=0, top_p=0.0, rescale_log_probs=True):
  """Draws every token from the model's distribution; the same numbers as T5X for the same key.

  Args:
    tokens_to_logits: ids [R, 1], cache -> (logits [R, V] float32, cache).
    cache: The decoder's cache before the first step.
    rng: A jax.random key.
    num_rows: R.
    max_decode_length: L, the number of positions to fill at most.
    eos_id: The token that ends a row.
    temperature: Divides the logits; below 1e-4 the most probable token is taken.
    top_k: Draw from the k most probable tokens only (and what ties with the last); 0 is off.
    top_p: Draw from the smallest set of most probable tokens that holds this probability
      (Holtzman et al. 2020, https://arxiv.org/abs/1904.09751); 0 or 1 is off. With `top_k` it
      applies to what is left.
    rescale_log_probs: Whether scores are taken after temperature, top_k and top_p, as T5X does
      (then a temperature of 0 scores 0), or from the model's own distribution.

  Returns:
    (sequences [R, L] int32, scores [R] float32), the scores sums of log-probabilities.
  """
  def choose(logits, key):
    if temperature < MIN_TEMPERATURE:
      tokens, scores = most_probable(logits)
      return tokens, jnp.zeros_like(scores) if rescale_log_probs else scores
    scaled = logits / jnp.float32(temperature)
    if top_k:
      scaled = keep_top_k(scaled, top_k)
    if 0.0 < top_p < 1.0:
      scaled = keep_top_p(scaled, top_p)
    tokens = jax.random.categorical(key, scaled).astype(jnp.int32)
    return tokens, _log_probs(scaled if rescale_log_probs else logits, tokens)

  return _loop(choose, tokens_to_logits, cache, num_rows, max_decode_length, eos_id, rng)


def most_probable(logits):
  """Returns (tokens [R] int32, their log-probabilities [R]) of logits [R, V]."""
  best = jnp.max(logits, axis=-1)
  # log p = max - logsumexp: no [R, V] array of log-probabilities is made.
  scores = -jnp.log(jnp.sum(jnp.exp(logits - best[:, None]), axis=-1))
  return jnp.argmax(logits, axis=-1).astype(jnp.int32), scores


def keep_top_k(logits, k):
  """Masks all logits [R, V] below each row's k-th largest; ties with it stay."""
  smallest = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][:, -1:]
  return jnp.where(logits >= smallest, logits, jnp.float32(NEG_INF))


def keep_top_p(logits, p):
  """Masks logits [R, V] outside each row's smallest set with probability >= p; ties stay."""
  probs = jax.nn.softmax(logits, axis=-1)
  descending = -jnp.sort(-probs, axis=-1)
  missing = jnp.sum(jnp.cumsum(descending, axis=-1) < p, axis=-1, keepdims=True)
  # Rounding can keep the whole sum below p: then the set is the whole vocabulary.
  last = jnp.minimum(missing, logits.shape[-1] - 1)
  threshold = jnp.take_along_axis(descending, last, axis=-1)
  return jnp.where(probs >= threshold, logits, jnp.float32(NEG_INF))


def _log_probs(logits, tokens):
  """Log-probabilities [R] of tokens [R] under logits [R, V]."""
  chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
  return chosen - jax.nn.logsumexp(logits, axis=-1)


def _loop(choose, tokens_to_logits, cache, num_rows, max_decode_length, eos_id, rng):
  """Fills rows token by token until all have ended; `choose` maps logits, key to tokens, scores."""

  def unfinished(state):
    return (state.step < max_decode_length) & ~jnp.all(state.ended)

  def body(state):
    key, rng = (None, None) if state.rng is None else jax.random.split(state.rng)
    logits, cache = tokens_to_logits(state.tokens[:, None], state.cache)
    tokens, scores = choose(logits, key)
    tokens = jnp.where(state.ended, 0, tokens)
    return _State(
        step=state.step + 1,
        tokens=tokens,
        sequences=jax.lax.dynamic_update_slice(
            state.sequences, tokens[:, None], (jnp.int32(0), state.step)),
        scores=state.scores + jnp.where(state.ended, 0.0, scores),
        ended=state.ended | (tokens == eos_id),
        cache=cache,
        rng=rng)

  final = jax.lax.while_loop(unfinished, body, _State(
      step=jnp.int32(0),
      tokens=jnp.zeros((num_rows,), jnp.int32),
      sequences=jnp.zeros((num_rows, max_decode_length), jnp.int32),
      scores=jnp.zeros((num_rows,), jnp.float32),
      ended=jnp.zeros((num_rows,), bool),
      cache=cache,
      rng=rng))
  return final.sequences, final.scores
