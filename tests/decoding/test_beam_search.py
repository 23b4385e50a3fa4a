"""Beam search against exhaustive enumeration and against a plain list-based search."""

import itertools

import jax
import numpy as np
import pytest
from decoding import chain as chain_lib

from prompt_tuning.decoding import beam_search as beam_lib
from prompt_tuning.decoding import sampling

EMPTY = -1.0e7


def penalty(alpha, length):
  return ((5 + length) / 6) ** alpha


def search(chain, beam_size, length, alpha=0.6, eos_id=1):
  batch_size = len(chain.table)
  sequences, scores = chain_lib.jitted(
      beam_lib.beam_search, batch_size=batch_size, beam_size=beam_size,
      max_decode_length=length, alpha=alpha, eos_id=eos_id)(chain.cache(beam_size))
  return np.asarray(sequences), np.asarray(scores)


def all_finished(chain, row, length, alpha, eos_id):
  """Every sequence that ends in EOS, best first."""
  vocab_size = chain.table.shape[-1]
  others = [token for token in range(vocab_size) if token != eos_id]
  found = []
  for count in range(length):
    for prefix in itertools.product(others, repeat=count):
      sequence = prefix + (eos_id,)
      score = sum(chain.log_probs(row, sequence[:i])[t] for i, t in enumerate(sequence))
      found.append((score / penalty(alpha, len(sequence)), sequence))
  return sorted(found, reverse=True)


@pytest.mark.parametrize('alpha, eos_id', [(0.0, 3), (0.6, 1), (2.0, 3)])
def test_wide_beam_finds_what_enumeration_finds(alpha, eos_id):
  chain = chain_lib.Chain.random(0, batch_size=2, vocab_size=4, spread=1.0)
  sequences, scores = search(chain, 54, 4, alpha, eos_id)  # 2 * 54 candidates: nothing is cut
  for row in range(2):
    expected = all_finished(chain, row, 4, alpha, eos_id)
    assert len(expected) == 40
    assert sequences[row, :40].tolist() == [chain_lib.pad(s, 4) for _, s in expected]
    np.testing.assert_allclose(scores[row, :40], [score for score, _ in expected], rtol=1e-5)
    assert np.all(scores[row, 40:] < -1e6)


def search_by_lists(chain, row, beam_size, length, alpha, eos_id):
  """Beam search over lists of (log-probability, sequence), best first; also counts its steps."""
  live, finished = [(0.0, ())], []
  for step in range(length):
    if len(finished) == beam_size and (
        finished[-1][0] > live[0][0] / penalty(alpha, length + 1)):
      return finished, step
    extended = sorted(
        ((logp + p, seq + (token,)) for logp, seq in live
         for token, p in enumerate(chain.log_probs(row, seq))), reverse=True)[:2 * beam_size]
    live = [item for item in extended if item[1][-1] != eos_id][:beam_size]
    finished += [(logp / penalty(alpha, step + 1), seq) for logp, seq in extended
                 if seq[-1] == eos_id]
    finished = sorted(finished, reverse=True)[:beam_size]
  return finished or live, length


@pytest.mark.parametrize('beam_size', [1, 2, 4])
@pytest.mark.parametrize('alpha, eos_id', [(0.0, 7), (0.6, 1), (0.6, 7)])
def test_equals_a_search_over_lists(beam_size, alpha, eos_id):
  compared = 0
  for seed in range(8):
    chain = chain_lib.Chain.random(seed, batch_size=4, spread=2.5)
    sequences, scores = search(chain, beam_size, 5, alpha, eos_id)
    for row in range(4):
      expected, _ = search_by_lists(chain, row, beam_size, 5, alpha, eos_id)
      count = len(expected)
      assert sequences[row, :count].tolist() == [chain_lib.pad(s, 5) for _, s in expected]
      np.testing.assert_allclose(scores[row, :count], [score for score, _ in expected], rtol=1e-5)
      assert not np.any(sequences[row, count:])
      np.testing.assert_array_equal(scores[row, count:], EMPTY)
      compared += count
  assert compared > 16 * beam_size


@pytest.mark.parametrize('alpha', [0.0, 0.6])
def test_search_ends_when_nothing_can_improve(alpha):
  """As many steps as the slowest row of the list-based search, and no more."""
  length, stopped_early = 12, 0
  for seed in range(6):
    chain = chain_lib.Chain.random(seed, batch_size=1, spread=2.5)
    calls = []

    def counted(ids, cache, calls=calls):
      jax.debug.callback(lambda: calls.append(1))
      return chain_lib.tokens_to_logits(ids, cache)

    beam_lib.beam_search(counted, chain.cache(2), batch_size=1, beam_size=2,
                         max_decode_length=length, alpha=alpha)
    jax.effects_barrier()
    _, steps = search_by_lists(chain, 0, 2, length, alpha, 1)
    assert len(calls) == steps
    stopped_early += steps < length
  assert stopped_early > 2


def test_unfinished_rows_return_live_beams_with_plain_log_probabilities():
  chain = chain_lib.Chain.random(1)
  sequences, scores = search(chain, 3, 4, alpha=0.6, eos_id=99)
  compared = 0
  for row in range(3):
    expected, _ = search_by_lists(chain, row, 3, 4, 0.6, 99)
    assert sequences[row].tolist() == [list(s) for _, s in expected]
    np.testing.assert_allclose(scores[row], [score for score, _ in expected], rtol=1e-5)
    compared += 1
  assert compared == 3


def test_one_beam_is_not_greedy():
  """A finished sequence is kept aside and the next best one lives on."""
  differ = 0
  for seed in range(6):
    chain = chain_lib.Chain.random(seed)
    sequences, _ = search(chain, 1, 6, alpha=0.6)
    greedy, _ = sampling.greedy(
        chain_lib.tokens_to_logits, chain.cache(), num_rows=3, max_decode_length=6)
    differ += np.sum(np.any(sequences[:, 0] != np.asarray(greedy), axis=1))
  assert differ > 0


def test_rows_do_not_influence_each_other():
  chain = chain_lib.Chain.random(2, batch_size=4)
  sequences, scores = search(chain, 3, 5)
  for row in range(4):
    alone = chain_lib.Chain(chain.table[row:row + 1])
    one, score = search(alone, 3, 5)
    np.testing.assert_array_equal(one[0], sequences[row])
    np.testing.assert_allclose(score[0], scores[row], rtol=1e-6)


def test_brevity_penalty():
  np.testing.assert_allclose(beam_lib.brevity_penalty(0.6, 1), 1.0)
  np.testing.assert_allclose(beam_lib.brevity_penalty(0.6, 7), 2.0 ** 0.6, rtol=1e-6)
  np.testing.assert_allclose(beam_lib.brevity_penalty(0.0, 7), 1.0)
