"""Beam search with a brevity penalty, equal to T5X's in sequences and in scores.

Two lists of K sequences live side by side: live beams (no EOS yet, ordered by log-probability)
and finished ones (ordered by score). A step extends every live beam by every token and keeps the
2K best extensions: even if K of them end in EOS, K remain to live on. That makes the search with
one beam differ from greedy search: a finished sequence does not stop the second candidate.

Where scores tie (empty slots all stand at -1e7, where float32 has a resolution of 1), the order of
the lists decides; both are therefore kept worst first, as T5X keeps them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prompt_tuning.decoding import kv_cache

NEG_INF = -1.0e7


class _State(NamedTuple):
  """The loop's state: B rows, K beams (worst first), L positions."""
  step: jax.Array  # scalar int32
  tokens: jax.Array  # [B, K] int32, the last token of each live beam
  live_sequences: jax.Array  # [B, K, L] int32
  live_log_probs: jax.Array  # [B, K] float32
  sequences: jax.Array  # [B, K, L] int32, finished
  scores: jax.Array  # [B, K] float32, finished
  finished: jax.Array  # [B, K] bool: the slot holds a finished sequence
  cache: Any


def brevity_penalty(alpha, length):
  """((5 + length) / 6) ** alpha (Wu et al. 2016, https://arxiv.org/abs/1609.08144, eq. 14)."""
  return jnp.power((jnp.float32(5.0) + jnp.float32(length)) / jnp.float32(6.0), jnp.float32(alpha))


def beam_search(tokens_to_logits, cache, *, batch_size, beam_size, max_decode_length, eos_id=1,
                alpha=0.6):
  """Searches the sequences with the highest log-probability / brevity_penalty.

  Args:
    tokens_to_logits: ids [B*K, 1], cache -> (logits [B*K, V] float32, cache).
    cache: The decoder's cache before the first step, with B*K rows.
    batch_size: B.
    beam_size: K.
    max_decode_length: L, the number of positions to fill at most.
    eos_id: The token that ends a sequence.
    alpha: Exponent of the brevity penalty; 0 is none.

  Returns:
    (sequences [B, K, L] int32, scores [B, K] float32), best first. A row where nothing finished
    returns its live beams with their plain log-probabilities; an empty slot of a row where
    something did is all 0 with a score of -1e7.
  """
  def unfinished(state):
    return (state.step < max_decode_length) & ~_cannot_improve(state, alpha, max_decode_length)

  def body(state):
    logits, cache = tokens_to_logits(state.tokens.reshape(-1, 1), state.cache)
    sequences, tokens, beams, log_probs = _extend(state, logits)
    ends = tokens == eos_id
    live_log_probs = jnp.where(ends, log_probs + NEG_INF, log_probs)
    live = _best(live_log_probs, beam_size)
    scores = log_probs / brevity_penalty(alpha, state.step + 1)
    scores = jnp.where(ends, scores, scores + NEG_INF)
    all_scores = jnp.concatenate([state.scores, scores], axis=1)
    done = _best(all_scores, beam_size)
    return _State(
        step=state.step + 1,
        tokens=_take(tokens, live),
        live_sequences=_take(sequences, live),
        live_log_probs=_take(live_log_probs, live),
        sequences=_take(jnp.concatenate([state.sequences, sequences], axis=1), done),
        scores=_take(all_scores, done),
        finished=_take(jnp.concatenate([state.finished, ends], axis=1), done),
        cache=kv_cache.reorder_beams(cache, _take(beams, live)))

  final = jax.lax.while_loop(
      unfinished, body, _start(cache, batch_size, beam_size, max_decode_length))
  any_finished = jnp.any(final.finished, axis=1)
  sequences = jnp.where(any_finished[:, None, None], final.sequences, final.live_sequences)
  scores = jnp.where(any_finished[:, None], final.scores, final.live_log_probs)
  return sequences[:, ::-1], scores[:, ::-1]


def _start(cache, batch_size, beam_size, max_decode_length):
  """The state before the first step: one live beam a row, no finished sequence."""
  shape = (batch_size, beam_size)
  # All beams are equal now, so one alone may be extended.
  first = jnp.where(jnp.arange(beam_size) == 0, jnp.float32(0.0), jnp.float32(NEG_INF))
  return _State(
      step=jnp.int32(0),
      tokens=jnp.zeros(shape, jnp.int32),
      live_sequences=jnp.zeros(shape + (max_decode_length,), jnp.int32),
      live_log_probs=jnp.broadcast_to(first, shape),
      sequences=jnp.zeros(shape + (max_decode_length,), jnp.int32),
      scores=jnp.full(shape, NEG_INF, jnp.float32),
      finished=jnp.zeros(shape, bool),
      cache=cache)


def _extend(state, logits):
  """Finds the 2K best extensions of a row's K live beams by one token.

  Args:
    state: The loop's state.
    logits: [B*K, V] float32.

  Returns:
    (sequences [B, 2K, L], their new tokens [B, 2K], the beams they extend [B, 2K],
    log_probs [B, 2K]), best first.
  """
  batch_size, beam_size = state.tokens.shape
  vocab_size = logits.shape[-1]
  log_probs = jax.nn.log_softmax(logits).reshape(batch_size, beam_size, vocab_size)
  log_probs = log_probs + state.live_log_probs[:, :, None]
  log_probs, index = jax.lax.top_k(log_probs.reshape(batch_size, -1), 2 * beam_size)
  tokens, beams = index % vocab_size, index // vocab_size
  sequences = jax.lax.dynamic_update_slice(
      _take(state.live_sequences, beams), tokens[:, :, None],
      (jnp.int32(0), jnp.int32(0), state.step))
  return sequences, tokens, beams, log_probs


def _cannot_improve(state, alpha, max_decode_length):
  """Whether in no row a live beam can still beat the worst finished sequence.

  A live beam's log-probability only falls, so its best score divides it by the largest penalty
  (taken one position past the end, as T5X does).
  """
  largest_penalty = brevity_penalty(alpha, max_decode_length + 1)
  best_live = state.live_log_probs[:, -1:] / largest_penalty
  worst = jnp.min(state.scores, axis=1, keepdims=True)
  worst = jnp.where(state.finished, worst, jnp.float32(NEG_INF))
  return jnp.all(worst > best_live)


def _best(scores, count):
  """Indices [B, count] of the largest scores [B, N], worst of them first."""
  return jax.lax.top_k(scores, count)[1][:, ::-1]


def _take(values, index):
  """Gathers values [B, N, ...] at index [B, K] -> [B, K, ...]."""
  return jax.vmap(lambda row, at: row[at])(values, index)
