"""An array that lies in a file and is read when it is asked for.

Every reader of a format yields `{path: StoredArray}`, so that a model larger than the host streams
one parameter at a time, cast on the way: what stays in memory is the result and one block.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import BinaryIO

import flax.traverse_util
import ml_dtypes
import numpy as np

from prompt_tuning import params as params_lib
from prompt_tuning.errors import UserError

# What one read takes from a file. Memory-mapped pages would count as resident; blocks do not. A
# block that the processor's cache holds until it has been cast is read and cast fastest.
BLOCK_BYTES = 4 * 2**20
_STRIP = 128  # columns put in order at a time: 5 times as fast as all at once
_MESSAGE = 1000  # characters of a library's error, which may quote a whole damaged file
_ALIGNMENT = 64  # bytes; what XLA asks of memory that it takes over without a copy

# The dtypes a parameter file may hold, by every format's plain name.
DTYPES = {
    'float64': np.dtype(np.float64),
    'float32': np.dtype(np.float32),
    'float16': np.dtype(np.float16),
    'bfloat16': np.dtype(ml_dtypes.bfloat16),
    'int64': np.dtype(np.int64),
    'int32': np.dtype(np.int32),
    'int16': np.dtype(np.int16),
    'int8': np.dtype(np.int8),
    'uint64': np.dtype(np.uint64),
    'uint32': np.dtype(np.uint32),
    'uint16': np.dtype(np.uint16),
    'uint8': np.dtype(np.uint8),
    'bool': np.dtype(np.bool_),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredArray:
  """A parameter in a file.

  Attributes:
    shape: the array's shape.
    dtype: the dtype in the file.
    source: where it lies, for messages and reports: file and name in it.
    reader: reads it as the dtype it is given; use `read`, which checks the outcome.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  source: str
  reader: Callable[[np.dtype], np.ndarray] = dataclasses.field(repr=False)

  def read(self, dtype=None) -> np.ndarray:
    """The array, as `dtype` (None: as stored).

    Raises:
      UserError: the file is broken; the message names file and parameter.
    """
    dtype = self.dtype if dtype is None else np.dtype(dtype)
    try:
      with np.errstate(all='ignore'):  # a NaN in a file is a NaN in memory
        array = self.reader(dtype)
    except UserError:  # of the parameter in the file, which this one is made of
      raise
    except (ValueError, OSError, MemoryError, OverflowError) as error:
      raise UserError(
          f'Cannot read {self.source} (shape {list(self.shape)}, {self.dtype}): '
          f'{str(error)[:_MESSAGE]} '
          'The file is incomplete or damaged: copy or download it again.') from error
    if array.shape != self.shape or array.dtype != dtype:
      raise UserError(f'{self.source} holds {array.dtype}{list(array.shape)} where its header '
                      f'says {self.dtype}{list(self.shape)}. The file is damaged.')
    return array

  def transposed(self) -> 'StoredArray':
    """The same parameter with its axes reversed."""
    return dataclasses.replace(
        self, shape=self.shape[::-1], reader=lambda dtype: self.read(dtype).T)

  def scaled(self, factor: float) -> 'StoredArray':
    """The same parameter times a number, multiplied in float32."""
    def reader(dtype):
      return (self.read(np.float32) * np.float32(factor)).astype(dtype)
    return dataclasses.replace(self, reader=reader)


def from_memory(array: np.ndarray, source: str) -> StoredArray:
  """A parameter that its index file holds inline."""
  return StoredArray(shape=array.shape, dtype=array.dtype, source=source,
                     reader=lambda dtype: array.astype(dtype, copy=False))


def from_params(params) -> dict[str, StoredArray]:
  """{per-layer path: parameter} of a tree in memory, each fetched when it is read.

  Args:
    params: nested dict, or {path: leaf}, of arrays or StoredArrays; layers may be stacked.
  """
  arrays = {}
  # Not sorted: readers yield their parameters in the order that is cheap to read.
  for path, leaf in flax.traverse_util.flatten_dict(dict(params), sep='/').items():
    names = params_lib.disk_paths(path, leaf.shape[0] if leaf.shape else 0)
    for i, name in enumerate(names):
      index = () if names == [path] else (i,)
      arrays[name] = leaf if isinstance(leaf, StoredArray) else StoredArray(
          shape=tuple(leaf.shape[len(index):]), dtype=np.dtype(leaf.dtype), source=name,
          reader=functools.partial(_fetch, leaf, index))
  return arrays


def _fetch(leaf, index, dtype):
  # A jax array without an index is not sliced: that would copy it on its device.
  return np.asarray(leaf[index] if index else leaf).astype(dtype, copy=False)


def empty(shape: tuple[int, ...], dtype) -> np.ndarray:
  """An array to be filled, so aligned that `jax.device_put` on a CPU need not copy it."""
  size = math.prod(shape) * np.dtype(dtype).itemsize
  raw = np.empty(size + _ALIGNMENT, np.uint8)
  start = -raw.ctypes.data % _ALIGNMENT
  return raw[start:start + size].view(dtype).reshape(shape)


def row_major(array: np.ndarray) -> np.ndarray:
  """The array itself, or a transposed one put in order in new memory."""
  if array.flags.c_contiguous:
    return array
  out = empty(array.shape, array.dtype)
  for start in range(0, array.shape[-1], _STRIP):
    out[..., start:start + _STRIP] = array[..., start:start + _STRIP]
  return out


def read_rows(
    shape: tuple[int, ...],
    dtype: np.dtype,
    step: int,
    read_into: Callable[[np.ndarray, int, int], object],
) -> np.ndarray:
  """Fills an array of `dtype` block by block along axis 0.

  Args:
    shape: of the whole array, at least one axis.
    dtype: of the result.
    step: rows a block.
    read_into: (block, start, stop) -> reads rows `start` to `stop` and casts them into `block`, a
      view of the result.
  """
  out = empty(shape, dtype)
  if out.size:  # a shape may claim any number of rows that hold nothing
    for start in range(0, shape[0], step):
      stop = min(start + step, shape[0])
      read_into(out[start:stop], start, stop)
  return out


def flat_reader(
    opener: Callable[[], BinaryIO], offset: int, shape: tuple[int, ...], held: np.dtype,
) -> Callable[[np.dtype], np.ndarray]:
  """Reads an array that lies row-major in a file; a reader of a StoredArray.

  Args:
    opener: opens the file for reading bytes.
    offset: where the array begins.
    shape: its shape.
    held: its dtype in the file.
  """
  flat = (math.prod(shape),)
  step = rows_per_block(flat, held.itemsize)

  def read(dtype):
    buffer = np.empty(min(step, *flat), held)
    with opener() as file:
      file.seek(offset)

      def read_into(block, start, stop):
        piece = buffer[:stop - start]
        if file.readinto(piece.view(np.uint8)) != piece.nbytes:
          raise ValueError('the file ends early.')
        block[...] = piece

      return read_rows(flat, dtype, step, read_into).reshape(shape)
  return read


def rows_per_block(shape: tuple[int, ...], itemsize: int, multiple: int = 1) -> int:
  """How many rows fit a block: a multiple of `multiple`, at least one."""
  row_bytes = max(1, math.prod(shape[1:]) * itemsize)
  return max(1, BLOCK_BYTES // row_bytes // multiple) * multiple


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredModel:
  """A backbone in a folder, none of its arrays read yet.

  Attributes:
    source: the folder, for messages.
    arrays: {per-layer T5X path: array}; what has no T5X path stands under its own name.
    config: T5Config as the files tell it.
    assumed: the config's fields that the files do not tell and that took T5's defaults.
    step: training step of the weights, None where the format keeps none.
    optimizer_state: {path: array} of the optimizer's state for each parameter.
    vocabulary: SentencePiece file beside the weights, 'bytes', or None.
    extra_ids: sentinels of that vocabulary, None for its default.
  """

  source: str
  arrays: dict[str, StoredArray]
  config: object
  assumed: tuple[str, ...] = ()
  step: int | None = None
  optimizer_state: dict[str, StoredArray] = dataclasses.field(default_factory=dict)
  vocabulary: str | None = None
  extra_ids: int | None = None
