"""Operations on a decoder's cache: which axis is the batch, tiling, reordering, splitting.

A cache is a dict of arrays, nested or flat. The batch axis of a leaf is 0, or 1 for a leaf of a
scanned decoder (its path holds `layers`, and axis 0 counts the layers). Bookkeeping that all rows
share (`cache_index` and whatever else is named `cache_...`) has no batch axis.
"""

import jax
import jax.numpy as jnp

from prompt_tuning import params as params_lib

CROSS_ATTENTION = 'encoder_decoder_attention'


def batch_axis(path):
  """Returns the batch axis of the cache leaf at a '/'-joined path, None if it has none."""
  *modules, name = path.split('/')
  if name.startswith('cache_'):
    return None
  return 1 if 'layers' in modules else 0


def map_batch(fun, cache):
  """Applies `fun(leaf, axis)` to every leaf that has a batch axis.

  Args:
    fun: Takes a leaf and its batch axis, returns the new leaf.
    cache: Dict of arrays.

  Returns:
    A cache of the same structure with these leaves replaced.
  """
  def apply(path, leaf):
    axis = batch_axis('/'.join(entry.key for entry in path))
    return leaf if axis is None else fun(leaf, axis)

  return jax.tree_util.tree_map_with_path(apply, cache)


def tile(cache, times):
  """Repeats every row: [B, ...] -> [B*times, ...], copies of one row stand together."""
  if times == 1:
    return cache
  return map_batch(lambda leaf, axis: jnp.repeat(leaf, times, axis=axis), cache)


def reorder_beams(cache, beams):
  """Moves each row's beams: new beam k of row b is the old beam `beams[b, k]`.

  Args:
    cache: Dict of arrays with B*K rows.
    beams: [B, K] int32, beam numbers within the row.

  Returns:
    The cache with its rows reordered.
  """
  batch, num_beams = beams.shape

  def reorder(leaf, axis):
    shape = leaf.shape
    split = leaf.reshape(shape[:axis] + (batch, num_beams) + shape[axis + 1:])
    # A take per row keeps the batch axis a batch axis: a sharded batch stays where it is.
    taken = jax.vmap(
        lambda row, index: jnp.take(row, index, axis=axis), in_axes=(axis, 0), out_axes=axis)
    return taken(split, beams).reshape(shape)

  return map_batch(reorder, cache)


def split_cross_attention(cache):
  """Splits off what no decoding step changes.

  The keys and values of the cross-attention are equal at every step and for every beam of a row:
  kept out of the loop's state they are neither copied nor reordered.

  Args:
    cache: Nested dict of arrays.

  Returns:
    (cross, rest), two flat dicts path -> leaf.
  """
  flat = params_lib.flatten(cache)
  cross = {path: leaf for path, leaf in flat.items() if CROSS_ATTENTION in path.split('/')}
  rest = {path: leaf for path, leaf in flat.items() if path not in cross}
  return cross, rest


def swap_rows_and_heads(cross):
  """Keys and values [B, S, N, D] of looped layers -> [B, N, S, D], and back.

  The matrix products of attention want the heads first. Kept so outside of the loop, the swap back
  inside of it cancels against theirs; otherwise all keys and values would be transposed in memory
  at every step, which on a CPU costs about as much as reading the decoder's weights.

  Args:
    cross: Flat dict path -> leaf, from `split_cross_attention`.
  """
  # Scanned layers take slices of their stacked leaves, through which nothing would cancel.
  return {path: jnp.swapaxes(leaf, 1, 2) if batch_axis(path) == 0 and leaf.ndim == 4 else leaf
          for path, leaf in cross.items()}
