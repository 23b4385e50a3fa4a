"""Prompt initialisers: what does not fit is said, mistakes are errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.peft import prompt_init

KEY = jax.random.key(0)
TABLE = jnp.arange(40, dtype=jnp.float32).reshape(10, 4)


def encode(text):
  """Letters a..j are ids 0..9; anything else has no piece."""
  return [ord(c) - ord('a') for c in text if 'a' <= c <= 'j']


def test_label_is_the_mean_of_its_pieces():
  prompt = prompt_init.ClassLabels(('ab', 'c'))(KEY, TABLE, 3, encode)
  np.testing.assert_array_equal(prompt[:2], [[2, 3, 4, 5], [8, 9, 10, 11]])


@pytest.mark.parametrize('init, length, said', [
    (prompt_init.ClassLabels(('a', 'b', 'c')), 2, "no room for label 'c'"),
    (prompt_init.ClassLabels(('a', '!')), 4, "label '!' has no pieces"),
    (prompt_init.Text('abcd'), 3, 'last 1 pieces are cut off'),
    (prompt_init.Text('ab'), 3, 'the rest comes from SampledVocab'),
    (prompt_init.FromArray(np.ones((2, 4))), 3, 'filled by SampledVocab'),
])
def test_what_does_not_fit_is_named(caplog, init, length, said):
  assert init(KEY, TABLE, length, encode).shape == (length, 4)
  assert said in caplog.text


def test_sampled_entries_are_among_the_most_common_without_repetition():
  rows = prompt_init.SampledVocab(top=6)(KEY, TABLE, 6, None)
  assert sorted(rows[:, 0].tolist()) == TABLE[:6, 0].tolist()


def test_an_array_of_another_width_is_refused():
  with pytest.raises(UserError, match=r'needs \[length, 4\]'):
    prompt_init.FromArray(np.ones((3, 5)))(KEY, TABLE, 3, None)


def test_text_needs_a_vocabulary():
  with pytest.raises(UserError, match='no vocabulary'):
    prompt_init.Text('ab')(KEY, TABLE, 3, None)
