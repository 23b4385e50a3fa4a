"""Arrays in zarr folders, read through tensorstore: whole, or some layers of a stacked one."""

import dataclasses
import math
import os

import numpy as np

from prompt_tuning.checkpoints import stored
from prompt_tuning.checkpoints.location import Location
from prompt_tuning.checkpoints.stored import DTYPES, StoredArray
from prompt_tuning.errors import UserError

# What one stored byte can stand for at most; by this a shape that no file of this size can hold is
# refused before memory is taken for it.
_RATIOS = {'none': 1, 'gzip': 1100, 'zlib': 1100}
_RATIO = 70_000  # zstd, blosc, bz2
_ABSENT = 2**26  # bytes that an array of fill values alone may have
_CHUNK = 2**24  # bytes that a chunk may have, and if the array is larger, this many times its own:
_CHUNK_FACTOR = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZarrArray:
  """An array of a checkpoint, not opened yet.

  Attributes:
    root: the folder of the checkpoint, which nothing may lead out of.
    path: the array's place in it.
    name: the parameter, for messages.
    shape: as the checkpoint's index says.
    dtype: as the checkpoint's index says.
    driver: 'zarr' or 'zarr3'.
    ocdbt: whether `path` is a name in the folder's OCDBT database in place of a folder.
    complete: whether the writer left no chunk out, not even one that equals the fill value.
  """

  root: Location
  path: str
  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  driver: str = 'zarr'
  ocdbt: bool = False
  complete: bool = False

  def __str__(self):
    return f'{self.root.child(self.path)} ({self.name})'

  def stored(self) -> StoredArray:
    """The whole array, as every reader of a format yields it."""
    return StoredArray(shape=self.shape, dtype=self.dtype, source=str(self),
                       reader=lambda dtype: self._read(dtype, ()))

  def layers(self, axis: int, start: int, stop: int, dtype) -> np.ndarray:
    """Layers `start` to `stop` along `axis`, which stays.

    Raises:
      ValueError, OSError: the files are broken.
    """
    return self._read(dtype, (slice(None),) * axis + (slice(start, stop),))

  def layers_in_chunk(self, axis: int) -> int:
    """How many layers lie in one chunk, and are read together whatever is asked for."""
    return self._open().chunk_layout.read_chunk.shape[axis]

  def _open(self):
    """Opens the array and compares it with the index and with the files."""
    import tensorstore as ts
    array = ts.open(_spec(self), open=True, read=True).result()
    if array.fill_value is not None and not self.complete:
      # With a fill value a writer may leave out the chunks that equal it; without one, a chunk
      # that is missing is lost, not zero.
      spec = {**_spec(self), 'fill_missing_data_reads': True}
      array = ts.open(spec, open=True, read=True).result()
    if tuple(array.shape) != self.shape or array.dtype.numpy_dtype != self.dtype:
      raise ValueError(f'The array says {array.dtype.name}{list(array.shape)} and the index '
                       f'{self.dtype}{list(self.shape)}.')
    _refuse_large_chunks(array)
    if self.root.bucket is None:
      _refuse_unfounded(self, array)
    return array

  def _read(self, dtype, part):
    array = self._open()
    chunk = array.chunk_layout.read_chunk.shape
    view = array[part] if part else array
    return _read_blocks(view, chunk, self.dtype.itemsize, dtype)


def open_all(arrays: dict[str, dict]) -> dict[str, ZarrArray]:
  """Completes arrays with the shape and dtype that they themselves tell, all at once.

  Args:
    arrays: {parameter: fields of ZarrArray but name, shape and dtype}.

  Raises:
    UserError: one of them cannot be opened.
  """
  bare = {name: ZarrArray(name=name, shape=(), dtype=np.dtype(bool), **fields)
          for name, fields in arrays.items()}
  import tensorstore as ts
  futures = {name: ts.open(_spec(array), open=True, read=True) for name, array in bare.items()}
  found = {}
  for name, future in futures.items():
    try:
      array = future.result()
      if array.dtype.name not in DTYPES:
        raise ValueError(f'its dtype is {array.dtype.name}; known are {list(DTYPES)}')
    except Exception as error:  # tensorstore's errors have no common class
      raise UserError(f'Cannot open {bare[name]}: {str(error)[:1000]} The checkpoint is '
                      'incomplete or damaged: copy or download it again.') from error
    found[name] = dataclasses.replace(bare[name], shape=tuple(array.shape),
                                      dtype=DTYPES[array.dtype.name])
  return found


def _spec(array) -> dict:
  """tensorstore's specification of an array that is read."""
  kvstore = ({'driver': 'ocdbt', 'base': array.root.kvstore(), 'path': f'{array.path}/'}
             if array.ocdbt else array.root.child(array.path).kvstore())
  return {'driver': array.driver, 'kvstore': kvstore, 'fill_missing_data_reads': False}


def _read_blocks(array, chunk, itemsize, dtype) -> np.ndarray:
  """Reads along the axis with the most chunks, cast before the next block is read."""
  import tensorstore as ts
  if not array.shape:
    return np.asarray(array.read().result()).astype(dtype, copy=False)
  out = stored.empty(array.shape, dtype)
  axis = max(range(array.rank), key=lambda k: array.shape[k] / chunk[k])
  unit = max(1, math.prod(array.shape) // max(1, array.shape[axis]) * itemsize)
  step = max(1, stored.BLOCK_BYTES // unit // chunk[axis]) * chunk[axis]
  to_zero = ts.d[:].translate_to[0]
  cast = ts.cast(array, dtype)[to_zero]
  for start in range(0, array.shape[axis] if out.size else 0, step):
    part = (*(slice(None),) * axis, slice(start, min(start + step, array.shape[axis])))
    ts.array(out[part]).write(cast[part][to_zero]).result()  # straight from the chunk to its place
  return out


def _refuse_large_chunks(array):
  """Refuses chunks far larger than their array: memory is taken for a whole one."""
  itemsize = array.dtype.numpy_dtype.itemsize
  allowed = max(_CHUNK, _CHUNK_FACTOR * math.prod(array.shape) * itemsize)
  for shape in (array.chunk_layout.read_chunk.shape, array.chunk_layout.write_chunk.shape):
    if math.prod(shape or ()) * itemsize > allowed:
      raise ValueError(f'It has chunks of {list(shape)} for a shape of {list(array.shape)}.')


def _refuse_unfounded(source, array):
  """Refuses a shape that the files cannot hold, and files that are links out of the folder."""
  size, count = _files_size(source.root, '' if source.ocdbt else source.path)
  compressor = array.spec().to_json()['metadata'].get('compressor', {})
  kind = 'none' if compressor is None else compressor.get('id', '')
  itemsize = source.dtype.itemsize
  allowed = size * _RATIOS.get(kind, _RATIO)
  if array.fill_value is not None and not source.complete:
    if not source.ocdbt:  # each file is a chunk or less, and chunks may be absent
      chunk = math.prod(array.chunk_layout.write_chunk.shape or ()) * itemsize
      allowed = min(allowed, count * chunk)
    allowed += _ABSENT
  if math.prod(source.shape) * itemsize > allowed:
    raise ValueError(f'{size} bytes in {count} files cannot hold {source.dtype}'
                     f'{list(source.shape)}.')


def _files_size(root, inside) -> tuple[int, int]:
  """Bytes and files in a folder of the checkpoint.

  Raises:
    ValueError: a file or folder in it is a link out of the checkpoint.
  """
  top, total, count = root.local.resolve(), 0, 0
  for folder, folders, files in os.walk(root.child(inside).local if inside else top):
    for path in (os.path.join(folder, name) for name in (*folders, *files)):
      if os.path.islink(path) and not os.path.realpath(path).startswith(f'{top}{os.sep}'):
        raise ValueError(f'{path} is a link out of the checkpoint folder.')
    total += sum(os.path.getsize(os.path.join(folder, name)) for name in files)
    count += len(files)
  return total, count
