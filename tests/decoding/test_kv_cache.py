"""Which axis is the batch, and what tiling, reordering and splitting do to it."""

import jax.numpy as jnp
import numpy as np

from prompt_tuning.decoding import kv_cache


def make_cache():
  """A looped layer, a scanned one, an index of each; 4 rows."""
  rows = jnp.arange(4 * 3, dtype=jnp.float32).reshape(4, 3)
  return {
      'decoder': {
          'layers_0': {'self_attention': {'cached_key': rows},
                       'encoder_decoder_attention': {'cached_key': rows + 100.0}},
          'layers': {'self_attention': {'cached_key': jnp.stack([rows, rows + 50.0]),
                                        'cache_index': jnp.zeros(2, jnp.int32)}},
          'cache_index': jnp.int32(3)}}


def test_batch_axis():
  assert kv_cache.batch_axis('decoder/layers_0/self_attention/cached_key') == 0
  assert kv_cache.batch_axis('decoder/layers/self_attention/cached_key') == 1
  assert kv_cache.batch_axis('decoder/layers/self_attention/cache_index') is None
  assert kv_cache.batch_axis('decoder/cache_positions') is None


def test_tile_keeps_copies_together():
  tiled = kv_cache.tile(make_cache(), 3)['decoder']
  rows = make_cache()['decoder']['layers_0']['self_attention']['cached_key']
  looped = tiled['layers_0']['self_attention']['cached_key']
  scanned = tiled['layers']['self_attention']['cached_key']
  assert looped.shape == (12, 3) and scanned.shape == (2, 12, 3)
  for row in range(12):
    np.testing.assert_array_equal(looped[row], rows[row // 3])
    np.testing.assert_array_equal(scanned[1, row], rows[row // 3] + 50.0)
  assert tiled['cache_index'] == 3
  assert tiled['layers']['self_attention']['cache_index'].shape == (2,)


def test_reorder_moves_beams_within_their_row():
  moved = kv_cache.reorder_beams(make_cache(), jnp.asarray([[1, 1], [1, 0]]))['decoder']
  rows = np.arange(12, dtype=np.float32).reshape(4, 3)[[1, 1, 3, 2]]
  np.testing.assert_array_equal(moved['layers_0']['self_attention']['cached_key'], rows)
  np.testing.assert_array_equal(
      moved['layers']['self_attention']['cached_key'], np.stack([rows, rows + 50.0]))
  assert moved['cache_index'] == 3


def test_split_takes_cross_attention_out():
  cross, rest = kv_cache.split_cross_attention(make_cache())
  assert list(cross) == ['decoder/layers_0/encoder_decoder_attention/cached_key']
  assert len(rest) == 4 and not any('encoder_decoder_attention' in path for path in rest)


def test_swap_is_its_own_inverse_and_leaves_scanned_layers_alone():
  rows = jnp.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
  cross = {'decoder/layers_0/encoder_decoder_attention/cached_key': rows,
           'decoder/layers/encoder_decoder_attention/cached_key': rows[None]}
  swapped = kv_cache.swap_rows_and_heads(cross)
  looped, scanned = swapped.values()
  assert looped.shape == (2, 4, 3, 5) and scanned.shape == (1, 2, 3, 4, 5)
  np.testing.assert_array_equal(looped[1, 3, 2], rows[1, 2, 3])
  for path, leaf in kv_cache.swap_rows_and_heads(swapped).items():
    np.testing.assert_array_equal(leaf, cross[path])
