"""Attention masks from segment ids and positions; relative position buckets.

Validity comes from segment ids (0 is padding), never from token values, so that a prompt or a
packed row extends everything together. Source: Raffel et al. 2020 for the buckets.
"""

import math

import jax.numpy as jnp


def segments_of(tokens):
  """Segment ids of unpacked rows: 1 at tokens, 0 at padding.

  Args:
    tokens: [B, T] integers, 0 at padding.

  Returns:
    [B, T] int32.
  """
  return (tokens > 0).astype(jnp.int32)


def attention_mask(query_segments, key_segments):
  """A query sees the keys of its own segment; padding sees nothing and is not seen.

  Args:
    query_segments: [B, Q] segment ids.
    key_segments: [B, K] segment ids.

  Returns:
    [B, 1, Q, K] bool.
  """
  same = query_segments[:, :, None] == key_segments[:, None, :]
  return (same & (key_segments > 0)[:, None, :])[:, None]


def causal_mask(query_positions, key_positions):
  """A query sees keys at its own position and before.

  Args:
    query_positions: [1 or B, Q] int32.
    key_positions: [1 or B, K] int32.

  Returns:
    [1 or B, 1, Q, K] bool.
  """
  return (query_positions[:, :, None] >= key_positions[:, None, :])[:, None]


def relative_position_bucket(relative_position, *, bidirectional, num_buckets, max_distance):
  """Maps key position - query position to a bucket (Raffel et al. 2020, section 2.1).

  Half of the buckets are exact distances, the other half grows logarithmically up to
  `max_distance`; everything farther shares the last one.

  Args:
    relative_position: integers of any shape.
    bidirectional: whether keys after the query have buckets of their own.
    num_buckets: buckets in all.
    max_distance: distance at which the last bucket begins.

  Returns:
    int32 of the same shape, in [0, num_buckets).
  """
  distance = -relative_position
  offset = jnp.zeros_like(distance)
  if bidirectional:
    num_buckets //= 2
    offset = jnp.where(distance < 0, num_buckets, 0).astype(distance.dtype)
    distance = jnp.abs(distance)
  else:
    distance = jnp.maximum(distance, 0)
  max_exact = num_buckets // 2
  # The tiny term keeps log(0) out; it is far below the spacing of the buckets.
  ratio = distance.astype(jnp.float32) / max_exact + float(jnp.finfo(jnp.float32).eps)
  octaves = jnp.log(ratio) / math.log(max_distance / max_exact)
  far = max_exact + (octaves * (num_buckets - max_exact)).astype(distance.dtype)
  far = jnp.minimum(far, num_buckets - 1)
  return (offset + jnp.where(distance < max_exact, distance, far)).astype(jnp.int32)
