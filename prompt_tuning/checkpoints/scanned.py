"""Scanned T5X models: one array for all layers of a stack, seen as one parameter a layer.

T5X stacks on axis 1 (its `param_scan_axis`), Flaxformer likewise, and neither says so in the file:
the norms tell the axis. Heads that were kept apart are merged to this package's two-axis kernels,
in models that are not scanned as well. Sources: t5x/examples/scalable_t5, flaxformer.
"""

import dataclasses
import math
import re

from prompt_tuning.checkpoints import names
from prompt_tuning.checkpoints.stored import StoredArray, empty
from prompt_tuning.checkpoints.zarr_array import ZarrArray
from prompt_tuning.errors import UserError

# A chunk often holds every layer. Neighbours are then read together, as many as fit here, or each
# layer would cost as much as the whole stack.
WINDOW_BYTES = 2**28
_AXIS = 1  # T5X's own choice, where the shapes leave two
_HEADS = re.compile(r'.*(?:^|_|/)attention/(query|key|value|out)/kernel')


def per_layer(
    arrays: dict[str, StoredArray | ZarrArray], source: str) -> dict[str, StoredArray]:
  """Parameters by this package's paths, each with its own shape.

  Args:
    arrays: {path in the file: array}.
    source: the checkpoint, for messages.

  Returns:
    {per-layer path: array}; the layers of one stack follow each other, and are cheap to read in
    that order.

  Raises:
    UserError: the layers cannot be told apart.
  """
  out, window = {}, _Window()
  sides = {found[0] for path in arrays if (found := names.scanned(path))}
  stacks = {side: _stack_of(side, arrays, source) for side in sorted(sides)}
  for path, array in sorted(arrays.items()):
    found = names.scanned(path)
    if found is None:
      whole = array.stored() if isinstance(array, ZarrArray) else array
      out[path] = _merge_heads(path, whole)
      continue
    axis, count = stacks[found[0]]
    if len(array.shape) <= axis or array.shape[axis] != count:
      raise UserError(f'{source}: {path} has shape {list(array.shape)}; {count} layers are '
                      f'expected on axis {axis}, as in the norms.')
    layers = _Layers(array, axis, window)
    for i in range(count):
      name = found[1].replace('{i}', str(i))
      out[name] = _merge_heads(name, layers.stored(i))
  return out


def _stack_of(side, arrays, source) -> tuple[int, int]:
  """(axis of the layers, how many there are), told by the norms, which are [H] in every layer."""
  width = next((array.shape[-1] for path, array in arrays.items()
                if path == names.EMBEDDING and len(array.shape) == 2), None)
  for path, array in sorted(arrays.items()):
    found = names.scanned(path)
    if found and found[0] == side and path.endswith('_norm/scale') and len(array.shape) == 2:
      axes = [axis for axis in (_AXIS, 0) if array.shape[1 - axis] == width]
      if axes:
        return axes[0], array.shape[axes[0]]
  raise UserError(f'{source} stacks its {side} layers, but has no norm of them with an axis of '
                  f'{width} that would tell which axis counts the layers.')


def _merge_heads(path, array: StoredArray) -> StoredArray:
  """[H, heads, head_dim] -> [H, heads*head_dim]; the output: [heads, head_dim, H] likewise."""
  found = _HEADS.fullmatch(path)
  if found is None or len(array.shape) != 3:
    return array
  first, middle, last = array.shape
  shape = (first * middle, last) if found.group(1) == 'out' else (first, middle * last)
  return dataclasses.replace(array, shape=shape,
                             reader=lambda dtype: array.read(dtype).reshape(shape))


class _Window:
  """Layers that were read ahead wait here; one for the model, or all of it would be in memory."""

  def __init__(self):
    self.clear()

  def clear(self):
    """Gives the memory back."""
    self.owner, self.dtype, self.layers, self.first = None, None, None, 0

  def holds(self, owner, i, dtype) -> bool:
    """Whether layer `i` of `owner` is here."""
    return owner is self.owner and dtype == self.dtype and i - self.first in range(
        self.layers.shape[owner.axis])


class _Layers:
  """The layers of one stacked array."""

  def __init__(self, array, axis, window):
    self._array, self.axis, self._window = array, axis, window

  def stored(self, i) -> StoredArray:
    """Layer `i` as a parameter of its own."""
    whole, axis = self._array, self.axis
    source = (str(whole) if isinstance(whole, ZarrArray) else whole.source) + f', layer {i}'
    return StoredArray(shape=whole.shape[:axis] + whole.shape[axis + 1:], dtype=whole.dtype,
                       source=source, reader=lambda dtype: self._read(i, dtype))

  def _read(self, i, dtype):
    window = self._window
    if not window.holds(self, i, dtype):
      window.clear()  # not two at a time
      stop = min(i + self._together(dtype), self._array.shape[self.axis])
      window.layers = self._range(i, stop, dtype)
      window.owner, window.dtype, window.first = self, dtype, i
    count, place = window.layers.shape[self.axis], i - window.first
    held = window.layers[(slice(None),) * self.axis + (place,)]
    layer = empty(held.shape, dtype)  # not a view, which would keep the whole window
    layer[...] = held
    if place == count - 1:
      window.clear()
    return layer

  def _together(self, dtype) -> int:
    """How many layers to read at once."""
    shape = self._array.shape
    if not isinstance(self._array, ZarrArray):
      return shape[self.axis]
    chunk = self._array.layers_in_chunk(self.axis)
    fit = WINDOW_BYTES // max(1, math.prod(shape) // shape[self.axis] * dtype.itemsize)
    return 1 if chunk == 1 else max(1, fit // chunk * chunk or fit)

  def _range(self, start, stop, dtype):
    if isinstance(self._array, ZarrArray):
      return self._array.layers(self.axis, start, stop, dtype)
    index = (slice(None),) * self.axis + (slice(start, stop),)
    return self._array.read(dtype)[index]
