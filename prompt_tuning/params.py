"""Parameter trees as flat '/'-joined paths: match, split, merge, stack layers, fingerprint.

Freezing is a split of data: `split` parts a tree into what is trained and what is not, and
everything downstream (gradient, optimizer, checkpoints) sees the trained part alone.
"""

import functools
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.errors import UserError

T = TypeVar('T')

_LAYER = re.compile(r'(^|/)layers_(\d+)(?=/)')
_STACKED = re.compile(r'(^|/)layers(?=/)')


def flatten(tree) -> dict[str, Any]:
  """Returns {'a/b/c': leaf}, sorted by path."""
  return dict(sorted(flax.traverse_util.flatten_dict(tree, sep='/').items()))


def unflatten(flat: Mapping[str, Any]):
  """Inverse of `flatten`."""
  return flax.traverse_util.unflatten_dict(dict(flat), sep='/')


def matches(patterns: Sequence[str], path: str) -> bool:
  """Whether any of the regular expressions matches the whole path."""
  return any(re.fullmatch(pattern, path) for pattern in patterns)


def match(rules: Sequence[tuple[str, T]], path: str) -> T:
  """The value of the first rule whose regular expression matches the whole path.

  Args:
    rules: ordered (regular expression, value) pairs.
    path: '/'-joined parameter path.

  Raises:
    KeyError: no rule covers the path.
  """
  for pattern, value in rules:
    if re.fullmatch(pattern, path):
      return value
  raise KeyError(f'no rule covers parameter {path!r}; rules: {[p for p, _ in rules]}')


def match_all(
    rules: Sequence[tuple[str, T]], paths: Iterable[str], *, user_rules: bool = False
) -> dict[str, T]:
  """Applies ordered rules to every path.

  Args:
    rules: ordered (regular expression, value) pairs.
    paths: '/'-joined parameter paths.
    user_rules: the rules were written by a user, so one that matches nothing is a mistake.

  Raises:
    KeyError: a path that no rule covers.
    UserError: with `user_rules`, a rule that matches no path.
  """
  paths = list(paths)
  if user_rules:
    _require_matches('rule', [pattern for pattern, _ in rules], paths)
  return {path: match(rules, path) for path in paths}


def _require_matches(kind: str, patterns: Sequence[str], paths: Sequence[str]):
  for pattern in patterns:
    if not any(re.fullmatch(pattern, path) for path in paths):
      raise UserError(
          f'The {kind} {pattern!r} matches no parameter. It has to match a whole path; '
          f'parameters are, for example: {paths[:6]}.')


def split(params, trainable: Sequence[str]):
  """Parts a tree by path into (trainable, frozen).

  Args:
    params: nested dict of arrays.
    trainable: regular expressions over whole paths; a leaf that any of them matches is trained.

  Returns:
    Two nested dicts; `merge` joins them again.

  Raises:
    UserError: an expression that matches no parameter.
  """
  flat = flatten(params)
  _require_matches('trainable pattern', trainable, list(flat))
  kept = {path: leaf for path, leaf in flat.items() if matches(trainable, path)}
  rest = {path: leaf for path, leaf in flat.items() if path not in kept}
  return unflatten(kept), unflatten(rest)


def merge(*trees):
  """Joins trees with disjoint paths, such as (trainable, frozen).

  Raises:
    ValueError: two trees hold the same path.
  """
  flat = {}
  for tree in trees:
    for path, leaf in flatten(tree).items():
      if path in flat:
        raise ValueError(f'parameter {path!r} stands in two trees')
      flat[path] = leaf
  return unflatten(flat)


def count(tree) -> int:
  """Number of scalars in a tree of arrays (or of shapes)."""
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def size_bytes(tree) -> int:
  """Bytes of a tree of arrays (or of shapes with a dtype)."""
  return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def cast(tree, dtype):
  """Casts every floating-point leaf to `dtype`."""
  dtype = jnp.dtype(dtype)
  return jax.tree.map(
      lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def stack_layers(params):
  """Stacks every `layers_{i}/...` into `layers/...` with the layer on axis 0."""
  groups, flat = {}, {}
  for path, leaf in flatten(params).items():
    if (found := _LAYER.search(path)) is None:
      flat[path] = leaf
    else:
      key = path[:found.start()] + found.group(1) + 'layers' + path[found.end():]
      groups.setdefault(key, {})[int(found.group(2))] = leaf
  for key, leaves in groups.items():
    if sorted(leaves) != list(range(len(leaves))):
      raise ValueError(f'{key} cannot be stacked: it stands in layers {sorted(leaves)} only')
    ordered = [leaves[i] for i in range(len(leaves))]
    stack = np.stack if isinstance(ordered[0], np.ndarray) else jnp.stack
    flat[key] = stack(ordered)
  return unflatten(flat)


def disk_paths(path: str, depth: int) -> list[str]:
  """Per-layer paths of a leaf: itself, or one a layer where it is stacked.

  Args:
    path: '/'-joined path.
    depth: length of the leaf's axis 0, which counts the layers of a stacked one.
  """
  if (found := _STACKED.search(path)) is None:
    return [path]
  head, tail = path[:found.start()] + found.group(1), path[found.end():]
  return [f'{head}layers_{i}{tail}' for i in range(depth)]


def unstack_layers(params):
  """Inverse of `stack_layers`; leaves a tree without stacked layers as it is."""
  flat = {}
  for path, leaf in flatten(params).items():
    if _STACKED.search(path) is None:
      flat[path] = leaf
    else:
      flat.update({name: leaf[i] for i, name in enumerate(disk_paths(path, leaf.shape[0]))})
  return unflatten(flat)


@functools.partial(jax.jit, static_argnames='axis')
def _weighted_sum(x, axis=None):
  """Sum of (2 i + 1) * bits_i mod 2^32 over the bf16-rounded values in row-major order."""
  rows = x.reshape((x.shape[0] if axis == 0 else 1, -1))
  bits = jax.lax.bitcast_convert_type(rows.astype(jnp.bfloat16), jnp.uint16).astype(jnp.uint32)
  weights = 2 * jax.lax.iota(jnp.uint32, rows.shape[1]) + 1
  return jnp.sum(bits * weights, axis=1, dtype=jnp.uint32)


def fingerprint(params) -> str:
  """A hash of a backbone that does not depend on format, dtype, mesh or scan setting.

  Every array is reduced on its device to a position-weighted sum, modulo 2^32, of the bits of its
  values rounded to bfloat16 (odd weights, so that no position is lost); sha256 is taken over the
  sorted per-layer paths with shapes and sums.

  Args:
    params: nested dict of floating-point arrays, scanned or not.

  Returns:
    64 hexadecimal digits.
  """
  return fingerprint_leaves(flatten(params).items())


def fingerprint_leaves(leaves: Iterable[tuple[str, jax.Array]]) -> str:
  """`fingerprint` of (path, array) pairs in any order, none of which is held on to."""
  sums = {}
  for path, leaf in leaves:
    # One at a time: many sums over a mesh of virtual CPU devices block each other's threads.
    sums |= jax.block_until_ready(layer_sums(path, leaf))
  return fingerprint_of(sums)


def layer_sums(path: str, leaf: jax.Array) -> dict[str, tuple]:
  """What a fingerprint takes of an array: {per-layer path: (shape, sum on the device [1])}."""
  found = _STACKED.search(path)
  if found is None:
    return {path: (tuple(leaf.shape), _weighted_sum(leaf))}
  per_layer = _weighted_sum(leaf, axis=0)
  return {name: (tuple(leaf.shape[1:]), per_layer[i:i + 1])
          for i, name in enumerate(disk_paths(path, leaf.shape[0]))}


def fingerprint_of(sums: Mapping[str, tuple]) -> str:
  """The fingerprint of a backbone from the `layer_sums` of all its arrays together."""
  digest = hashlib.sha256()
  values = jax.device_get({name: value for name, (_, value) in sums.items()})
  for name in sorted(sums):
    digest.update(repr((name, sums[name][0], int(values[name][0]))).encode())
  return digest.hexdigest()
