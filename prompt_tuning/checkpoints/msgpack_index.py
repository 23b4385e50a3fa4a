"""Flax's msgpack files, walked without loading the arrays in them.

T5X's file `checkpoint` is one; old checkpoints hold whole parameters in it. The walk notes where
an array's bytes begin, and they are read by offset when the array is asked for. Nothing in the
file is ever executed. Formats: the msgpack specification; flax/serialization.py for arrays.
"""

import io
import math
import struct

import numpy as np

from prompt_tuning.checkpoints import stored
from prompt_tuning.checkpoints.location import Location
from prompt_tuning.checkpoints.stored import DTYPES, StoredArray
from prompt_tuning.errors import UserError

_NDARRAY, _SCALAR = 1, 3  # flax's extension types; 2 is a complex number
_CHUNKED = '__msgpack_chunked_array__'  # an array too large for one msgpack entry

_NUMBERS = {0xca: '>f', 0xcb: '>d', 0xcc: '>B', 0xcd: '>H', 0xce: '>I', 0xcf: '>Q',
            0xd0: '>b', 0xd1: '>h', 0xd2: '>i', 0xd3: '>q'}
_CONSTANTS = {0xc0: None, 0xc2: False, 0xc3: True}
# Codes whose length follows: kind and the length's own format.
_LENGTHS = {0xc4: ('bytes', '>B'), 0xc5: ('bytes', '>H'), 0xc6: ('bytes', '>I'),
            0xc7: ('extension', '>B'), 0xc8: ('extension', '>H'), 0xc9: ('extension', '>I'),
            0xd9: ('text', '>B'), 0xda: ('text', '>H'), 0xdb: ('text', '>I'),
            0xdc: ('list', '>H'), 0xdd: ('list', '>I'), 0xde: ('map', '>H'), 0xdf: ('map', '>I')}
_FIXED_EXTENSIONS = {0xd4: 1, 0xd5: 2, 0xd6: 4, 0xd7: 8, 0xd8: 16}


def read(folder: Location, name: str) -> dict:
  """Walks a file.

  Args:
    folder: where the file lies.
    name: the file's name.

  Returns:
    Nested dicts, lists, numbers, strings and None; arrays are StoredArrays, not read yet.

  Raises:
    UserError: not a msgpack map, or an array in it contradicts its own header.
  """
  source = str(folder.child(name))
  try:
    opener = _opener(folder, name)
    with opener() as file:
      walk = _Walk(file, file.seek(0, 2), opener, source)
      file.seek(0)
      index = walk.value('')
      if not isinstance(index, dict):
        raise ValueError('it is not a map')
      if file.tell() != walk.size:
        raise ValueError(f'{walk.size - file.tell()} bytes follow its end')
  except (ValueError, TypeError, KeyError, OSError, RecursionError, struct.error) as error:
    raise UserError(
        f'{source} is not the msgpack index of a T5X checkpoint: {error}. A Mesh TensorFlow '
        'checkpoint, whose file of this name is text, must be converted with T5X first.'
    ) from error
  return index


def _opener(folder, name):
  """How to come back for the arrays; what came out of a bucket is kept."""
  if folder.bucket is None:
    return lambda: folder.open(name)
  content = folder.open(name).read()
  return lambda: io.BytesIO(content)


class _Walk:
  """One pass over a file."""

  def __init__(self, file, size, opener, source):
    self._file, self.size, self._opener, self._source = file, size, opener, source

  def value(self, path):
    """The value that begins here; `path` names it in messages."""
    code = self._take(1)[0]
    if code <= 0x7f or code >= 0xe0:
      return code if code <= 0x7f else code - 0x100
    if code in _CONSTANTS:
      return _CONSTANTS[code]
    if code in _NUMBERS:
      return self._number(_NUMBERS[code])
    if code in _FIXED_EXTENSIONS:
      return self._extension(path, _FIXED_EXTENSIONS[code])
    if code in _LENGTHS:
      kind, form = _LENGTHS[code]
      return getattr(self, f'_{kind}')(path, self._number(form))
    if code <= 0x8f:
      return self._map(path, code & 0x0f)
    if code <= 0x9f:
      return self._list(path, code & 0x0f)
    if code <= 0xbf:
      return self._text(path, code & 0x1f)
    raise ValueError(f'byte {code:#x} begins no msgpack value')

  def _take(self, count):
    if count > self.size - self._file.tell():
      raise ValueError('it ends early')
    return self._file.read(count)

  def _number(self, form):
    return struct.unpack(form, self._take(struct.calcsize(form)))[0]

  def _text(self, path, count):
    del path
    return self._take(count).decode('utf-8')

  def _bytes(self, path, count):
    """Where the bytes lie; they are not read."""
    del path
    offset = self._file.tell()
    if count > self.size - offset:
      raise ValueError('it ends early')
    self._file.seek(count, 1)
    return range(offset, offset + count)

  def _list(self, path, count):
    return [self.value(path) for _ in range(count)]

  def _map(self, path, count):
    node = {}
    for _ in range(count):
      key = self.value(path)
      if not isinstance(key, str):
        raise ValueError(f'{path or "it"} has the key {str(key)[:100]}, which is no string')
      if key in node:
        raise ValueError(f'{path or "it"} has the key {key[:100]!r} twice')
      node[key] = self.value(f'{path}/{key}' if path else key)
    return self._joined(path, node) if _CHUNKED in node else node

  def _extension(self, path, count):
    """An array: [shape, name of the dtype, row-major bytes]."""
    kind = self._number('>b')
    if kind not in (_NDARRAY, _SCALAR):
      raise ValueError(f'{path}: extension type {kind} is not an array')
    end = self._file.tell() + count
    payload = self.value(path)
    if not isinstance(payload, list) or len(payload) != 3 or self._file.tell() != end:
      raise ValueError(f'{path} is not a whole array')
    shape, name, data = payload
    if not isinstance(name, str) or name not in DTYPES:
      raise ValueError(f'{path} has dtype {name!r}; known are {list(DTYPES)}')
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
      raise ValueError(f'{path} has shape {shape}')
    dtype = DTYPES[name]
    if not isinstance(data, range) or math.prod(shape) * dtype.itemsize != len(data):
      raise ValueError(f'{path}: {name}{shape} does not fit its bytes')
    return StoredArray(shape=tuple(shape), dtype=dtype, source=f'{self._source}: {path}',
                       reader=stored.flat_reader(self._opener, data.start, tuple(shape), dtype))

  def _joined(self, path, node):
    """An array in flat pieces."""
    shape = tuple(node['shape'][str(i)] for i in range(len(node['shape'])))
    pieces = [node['chunks'][str(i)] for i in range(len(node['chunks']))]
    sizes = [math.prod(piece.shape) for piece in pieces if isinstance(piece, StoredArray)]
    if (len(sizes) != len(pieces) or not pieces or len({piece.dtype for piece in pieces}) > 1
        or not all(type(n) is int and n >= 0 for n in shape) or sum(sizes) != math.prod(shape)):
      raise ValueError(f'the pieces of {path} do not make an array of shape {list(shape)}')

    def reader(dtype):
      out = np.empty(sum(sizes), dtype)
      start = 0
      for piece, size in zip(pieces, sizes, strict=True):
        out[start:start + size] = piece.read(dtype).reshape(-1)
        start += size
      return out.reshape(shape)

    return StoredArray(shape=shape, dtype=pieces[0].dtype, source=f'{self._source}: {path}',
                       reader=reader)
