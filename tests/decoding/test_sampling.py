"""Greedy search and sampling against plain loops and against the distribution they draw from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding import chain as chain_lib

from prompt_tuning.decoding import sampling

LENGTH = 7


def greedy_by_loop(chain, row, eos_id):
  """One row's greedy sequence and the sum of its log-probabilities."""
  prefix, score = [], 0.0
  while len(prefix) < LENGTH and eos_id not in prefix:
    log_probs = chain.log_probs(row, prefix)
    prefix.append(int(np.argmax(log_probs)))
    score += log_probs[prefix[-1]]
  return chain_lib.pad(prefix, LENGTH), score


@pytest.mark.parametrize('eos_id', [1, 4, 10])
def test_greedy_takes_the_best_token_until_eos(eos_id):
  ended = 0
  for seed in range(4):
    chain = chain_lib.Chain.random(seed)
    sequences, scores = chain_lib.jitted(
        sampling.greedy, num_rows=3, max_decode_length=LENGTH, eos_id=eos_id)(chain.cache())
    for row in range(3):
      expected, score = greedy_by_loop(chain, row, eos_id)
      assert sequences[row].tolist() == expected
      np.testing.assert_allclose(scores[row], score, rtol=1e-5)
      ended += eos_id in expected
  assert 0 < ended < 12  # both ways of ending were seen


def test_loop_stops_when_all_rows_have_ended():
  table = np.zeros((2, chain_lib.STATES, 5), np.float32)
  table[:, :, 1] = 9.0  # EOS at once
  chain = chain_lib.Chain(table)
  calls = []

  def counted(ids, cache):
    jax.debug.callback(lambda: calls.append(1))
    return chain_lib.tokens_to_logits(ids, cache)

  sequences, _ = sampling.greedy(counted, chain.cache(), num_rows=2, max_decode_length=50)
  jax.effects_barrier()
  assert len(calls) == 1
  assert sequences[:, 0].tolist() == [1, 1] and not np.any(sequences[:, 1:])


def test_greedy_score_survives_large_logits():
  table = np.full((1, chain_lib.STATES, 4), 3e4, np.float32)
  chain = chain_lib.Chain(table)
  _, scores = sampling.greedy(chain_lib.tokens_to_logits, chain.cache(), num_rows=1,
                              max_decode_length=2, eos_id=3)
  np.testing.assert_allclose(scores[0], 2 * np.log(0.25), rtol=1e-6)


def draw(chain, count, seed=0, **settings):
  """`count` samples of each of the chain's rows: tokens [B, count, L], scores [B, count]."""
  rows = len(chain.table) * count
  sequences, scores = chain_lib.jitted(sampling.sample, num_rows=rows, **settings)(
      chain.cache(count), jax.random.PRNGKey(seed))
  return (np.asarray(sequences).reshape(len(chain.table), count, -1),
          np.asarray(scores).reshape(len(chain.table), count))


def allowed_tokens(logits, top_k, top_p):
  """The tokens that may be drawn from logits [V], by sorting."""
  order = np.argsort(-logits)
  if top_k:
    order = order[:top_k]
  if top_p:
    probs = np.exp(logits[order] - logits.max())
    probs /= probs.sum()
    count = int(np.sum(np.cumsum(probs) < top_p)) + 1
    order = order[:count]
  return set(order.tolist())


@pytest.mark.parametrize('top_k, top_p', [(0, 0.0), (3, 0.0), (0, 0.6), (5, 0.7), (1, 0.0)])
@pytest.mark.parametrize('temperature', [1.0, 0.5])
def test_samples_stay_inside_and_fill_the_allowed_set(top_k, top_p, temperature):
  chain = chain_lib.Chain.random(3, spread=1.0)
  sequences, _ = draw(chain, 600, temperature=temperature, top_k=top_k, top_p=top_p,
                      max_decode_length=2, eos_id=10)
  for row in range(3):
    allowed = allowed_tokens(chain.logits(row, ()) / temperature, top_k, top_p)
    first = set(sequences[row, :, 0].tolist())
    assert first <= allowed
    probs = np.exp(chain.logits(row, ()) / temperature)
    probs /= sum(probs[t] for t in allowed)
    assert {t for t in allowed if probs[t] > 0.02} <= first
    for sequence in sequences[row]:
      if sequence[0] != 10:
        prefix = (int(sequence[0]),)
        assert sequence[1] in allowed_tokens(
            chain.logits(row, prefix) / temperature, top_k, top_p)


@pytest.mark.parametrize('temperature', [0.7, 1.0, 2.0])
def test_frequencies_follow_the_tempered_distribution(temperature):
  chain = chain_lib.Chain.random(5, batch_size=1, vocab_size=5, spread=1.0)
  sequences, _ = draw(chain, 8000, temperature=temperature, max_decode_length=1)
  probs = np.exp(chain.logits(0, ()) / temperature)
  counts = np.bincount(sequences[0, :, 0], minlength=5) / 8000
  np.testing.assert_allclose(counts, probs / probs.sum(), atol=0.025)


def test_scores_of_samples():
  chain = chain_lib.Chain.random(6)
  settings = {'temperature': 0.8, 'top_k': 4, 'max_decode_length': LENGTH}
  sequences, rescaled = draw(chain, 5, **settings)
  same, plain = draw(chain, 5, rescale_log_probs=False, **settings)
  np.testing.assert_array_equal(sequences, same)
  checked = 0
  for row, sample in np.ndindex(rescaled.shape):
    want_plain = want_rescaled = 0.0
    prefix = ()
    for token in sequences[row, sample].tolist():
      want_plain += chain.log_probs(row, prefix)[token]
      scaled = chain.logits(row, prefix) / 0.8
      kept = np.sort(scaled)[-4:]
      want_rescaled += scaled[token] - np.log(np.sum(np.exp(kept)))
      prefix += (token,)
      checked += 1
      if token == 1:
        break
    np.testing.assert_allclose(plain[row, sample], want_plain, rtol=1e-5)
    np.testing.assert_allclose(rescaled[row, sample], want_rescaled, rtol=1e-5)
  assert checked > 15


def test_zero_temperature_and_top_1_are_greedy():
  chain = chain_lib.Chain.random(7)
  expected, scores = sampling.greedy(
      chain_lib.tokens_to_logits, chain.cache(), num_rows=3, max_decode_length=LENGTH)
  for settings in ({'temperature': 0.0}, {'temperature': 5e-5}, {'top_k': 1}):
    sequences, rescaled = draw(chain, 1, max_decode_length=LENGTH, **settings)
    np.testing.assert_array_equal(sequences[:, 0], expected)
    np.testing.assert_array_equal(rescaled, 0.0)  # nothing else could be drawn
    _, plain = draw(chain, 1, max_decode_length=LENGTH, rescale_log_probs=False, **settings)
    np.testing.assert_allclose(plain[:, 0], scores, rtol=1e-6)


def test_same_key_same_samples_other_key_others():
  chain = chain_lib.Chain.random(8, spread=0.5)
  first, _ = draw(chain, 4, seed=1, max_decode_length=LENGTH)
  again, _ = draw(chain, 4, seed=1, max_decode_length=LENGTH)
  other, _ = draw(chain, 4, seed=2, max_decode_length=LENGTH)
  np.testing.assert_array_equal(first, again)
  assert np.any(first != other)


def test_key_is_used_as_t5x_uses_it():
  """Step by step: split, draw all rows with the first half, carry the second on."""
  chain = chain_lib.Chain.random(9, batch_size=4)
  sequences, _ = draw(chain, 1, seed=3, max_decode_length=3, eos_id=99)
  key, prefixes = jax.random.PRNGKey(3), [() for _ in range(4)]
  for step in range(3):
    now, key = jax.random.split(key)
    logits = jnp.asarray(np.stack(
        [chain.logits(row, prefix) for row, prefix in enumerate(prefixes)]).astype(np.float32))
    tokens = np.asarray(jax.random.categorical(now, logits))
    np.testing.assert_array_equal(sequences[:, 0, step], tokens)
    prefixes = [prefix + (int(token),) for prefix, token in zip(prefixes, tokens, strict=True)]


def test_masks_keep_ties_and_whole_vocabulary():
  logits = jnp.asarray([[1.0, 3.0, 3.0, 0.0], [5.0, 1.0, 2.0, 4.0]])
  kept = np.asarray(sampling.keep_top_k(logits, 1)) > -1e6
  np.testing.assert_array_equal(kept, [[False, True, True, False], [True, False, False, False]])
  np.testing.assert_array_equal(sampling.keep_top_k(logits, 9), logits)
  np.testing.assert_array_equal(sampling.keep_top_p(logits, 1.5), logits)
  kept = np.asarray(sampling.keep_top_p(logits, 0.1)) > -1e6
  np.testing.assert_array_equal(kept, [[False, True, True, False], [True, False, False, False]])
