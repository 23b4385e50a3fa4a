"""Masks, relative position buckets and prompt placement against the reference's arrays."""

import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.models import masks
from prompt_tuning.peft import soft_prompt


@pytest.fixture(scope='module')
def stored(golden_dir):
  with np.load(golden_dir / 'masks' / 'masks.npz', allow_pickle=False) as file:
    return dict(file)


def with_prompt(tokens, length):
  """Segment ids of rows with a prompt in front."""
  segments = masks.segments_of(jnp.asarray(tokens))
  x = jnp.zeros((*tokens.shape, 1))
  return soft_prompt.insert(jnp.zeros((length, 1)), x, segments, 'prefix')[1]


def test_encoder_mask(stored):
  segments = with_prompt(stored['encoder_input_tokens'], 3)
  mask = masks.attention_mask(segments, segments)
  assert mask.shape == (3, 1, 9, 9)
  np.testing.assert_array_equal(mask, stored['simple_encoder_mask'])


def test_decoder_and_cross_masks(stored):
  targets = jnp.asarray(stored['encdec_decoder_target_tokens'])
  segments = masks.segments_of(targets)
  positions = jnp.arange(targets.shape[1], dtype=jnp.int32)[None]
  mask = masks.attention_mask(segments, segments) & masks.causal_mask(positions, positions)
  np.testing.assert_array_equal(mask, stored['encdec_decoder_mask'])
  encoder = with_prompt(stored['encoder_input_tokens'][:2], 3)
  np.testing.assert_array_equal(masks.attention_mask(segments, encoder),
                                stored['encdec_cross_mask_with_prompt'])


def test_packed_rows_see_their_own_segment():
  segments = jnp.asarray([[1, 1, 2, 2, 0]])
  want = np.zeros((5, 5), bool)
  want[:2, :2] = want[2:4, 2:4] = True
  np.testing.assert_array_equal(masks.attention_mask(segments, segments)[0, 0], want)


@pytest.mark.parametrize('direction', ['bi', 'uni'])
@pytest.mark.parametrize('shape', ['32_128', '4_8', '16_64', '32_20'])
def test_buckets(stored, shape, direction):
  buckets, distance = map(int, shape.split('_'))
  got = masks.relative_position_bucket(
      jnp.asarray(stored['bucket_relative_position']), bidirectional=direction == 'bi',
      num_buckets=buckets, max_distance=distance)
  want = stored[f'bucket_{shape}_{direction}']
  assert want.size == 801
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize('placement, name', [
    ('prefix', 'prefix'), ('after_first', 'prefix_after_bos'), ('suffix', 'suffix_after_eos'),
    ('suffix_before_eos', 'suffix_before_eos')])
def test_placement(golden_dir, placement, name):
  with np.load(golden_dir / 'prompt_init' / 'combine.npz', allow_pickle=False) as file:
    tokens, x, prompt, want = (file[key] for key in ('x', 'x_embed', 'prompt', name))
  rows, segments = soft_prompt.insert(jnp.asarray(prompt), jnp.asarray(x),
                                      masks.segments_of(jnp.asarray(tokens)), placement)
  assert want.size == 4 * 9 * 3
  np.testing.assert_array_equal(rows, want)
  valid = (tokens > 0).sum(axis=1) + prompt.shape[1]
  np.testing.assert_array_equal(segments, np.arange(9)[None] < valid[:, None])
