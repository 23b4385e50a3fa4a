"""The safetensors container: eight bytes of length, a JSON header, the arrays one after another.

Read by offset in blocks, because a memory map keeps every touched page resident; bfloat16 comes
from ml_dtypes, so torch is not needed. Format: github.com/huggingface/safetensors.
"""

import json
import math
import pathlib
import struct
from collections.abc import Mapping

import numpy as np

from prompt_tuning.atomic_file import write_atomically
from prompt_tuning.checkpoints import json_file
from prompt_tuning.checkpoints.stored import DTYPES, StoredArray, flat_reader, rows_per_block
from prompt_tuning.errors import UserError

# 100,000 arrays. The reference takes ten times as much, which as Python objects could be 2 GB.
_MAX_HEADER = 10_000_000
_MAX_RANK = 32  # numpy's own limit, before its release 2
_SHOWN = 300  # characters that a message quotes
_CODES = {
    'F64': 'float64', 'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16',
    'I64': 'int64', 'I32': 'int32', 'I16': 'int16', 'I8': 'int8',
    'U64': 'uint64', 'U32': 'uint32', 'U16': 'uint16', 'U8': 'uint8', 'BOOL': 'bool',
}
_NAMES = {DTYPES[name]: code for code, name in _CODES.items()}


def read(path) -> tuple[dict[str, StoredArray], dict[str, str]]:
  """Opens a file.

  Args:
    path: a .safetensors file.

  Returns:
    ({name: array, not yet read}, the file's metadata).

  Raises:
    UserError: not a safetensors file, or its header contradicts the file.
  """
  path = pathlib.Path(path)
  header, start = _header(path)
  metadata = header.pop('__metadata__', {})
  if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
    raise UserError(f'{path}: the metadata is not a map of strings. The file is damaged.')
  data_bytes = path.stat().st_size - start
  spans, arrays = [(data_bytes, data_bytes, 'the end of the file')], {}
  for name, entry in header.items():
    arrays[name], begin, end = _entry(path, name, entry, start, data_bytes)
    spans.append((begin, end, name))
  _check_spans(path, sorted(spans))
  return arrays, metadata


def _header(path):
  """The JSON header and where the data begins."""
  try:
    with path.open('rb') as file:
      size = path.stat().st_size
      prefix = file.read(8)
      length = struct.unpack('<Q', prefix)[0] if len(prefix) == 8 else size
      if length > min(_MAX_HEADER, size - 8):
        raise ValueError(f'the header claims {length} bytes of a file of {size}')
      header = json_file.parse(file.read(length))
  except (OSError, ValueError) as error:
    raise UserError(f'{path} is not a safetensors file: {error}. '
                    'Copy or download it again.') from error
  return header, 8 + length


def _check_spans(path, spans):
  """Refuses arrays that overlap and bytes that belong to none, as the reference does."""
  expected = 0
  for begin, end, name in spans:
    if begin != expected:
      raise UserError(f'{path}: {name[:_SHOWN]} begins at byte {begin} of the data, and what lies '
                      f'before it ends at {expected}. The file is incomplete or damaged: copy or '
                      'download it again.')
    expected = end


def _entry(path, name, entry, start, data_bytes):
  """Checks one header entry against the file; returns the array and its first and last byte."""
  source = f'{path}: {name[:_SHOWN]}'
  try:
    code, shape, (begin, end) = entry['dtype'], entry['shape'], entry['data_offsets']
    if code not in _CODES:
      raise ValueError(f'dtype {str(code)[:20]!r} is unknown; known are {list(_CODES)}')
    dtype = DTYPES[_CODES[code]]
    if not isinstance(shape, list) or len(shape) > _MAX_RANK:
      raise ValueError(f'the shape is no list of at most {_MAX_RANK} numbers')
    if not all(type(n) is int and 0 <= n < 2**63 for n in (*shape, begin, end)):
      raise ValueError(f'shape {shape} or offsets {[begin, end]} are not whole numbers of 63 bits')
    if not begin <= end <= data_bytes or end - begin != math.prod(shape) * dtype.itemsize:
      raise ValueError(f'shape {shape} of {code} does not fit bytes {begin} to {end} of '
                       f'{data_bytes}')
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(f'{source}: bad header entry: {str(error)[:_SHOWN]}. The file is incomplete or '
                    'damaged: copy or download it again.') from error
  shape = tuple(shape)
  array = StoredArray(shape=shape, dtype=dtype, source=source,
                      reader=flat_reader(lambda: path.open('rb'), start + begin, shape, dtype))
  return array, begin, end


def write(path, arrays: Mapping, metadata: Mapping[str, str] | None = None):
  """Writes a file under a temporary name, then renames it: it is there whole or not at all.

  Args:
    path: the file.
    arrays: {name: array}; a StoredArray is read, and a jax array fetched, when its turn comes, so
      that one of them at a time is in memory.
    metadata: strings for the header.

  Raises:
    UserError: the file cannot be written, or a StoredArray not read.
  """
  path = pathlib.Path(path)
  header, offset = {}, 0
  if metadata:
    header['__metadata__'] = dict(metadata)
  for name, array in arrays.items():
    size = math.prod(array.shape) * array.dtype.itemsize
    header[name] = {'dtype': _NAMES[np.dtype(array.dtype)], 'shape': list(array.shape),
                    'data_offsets': [offset, offset + size]}
    offset += size
  text = json.dumps(header).encode('utf-8')
  text += b' ' * (-len(text) % 8)

  def fill(file):
    file.write(struct.pack('<Q', len(text)) + text)
    for array in arrays.values():
      _write_blocks(file, array.read() if isinstance(array, StoredArray) else np.asarray(array))

  write_atomically(path, fill)


def _write_blocks(file, array):
  """Writes an array row-major; a transposed one is put in order block by block."""
  array = np.atleast_1d(array)
  step = rows_per_block(array.shape, array.itemsize)
  for start in range(0, len(array) if array.size else 0, step):
    block = np.ascontiguousarray(array[start:start + step])
    file.write(block.reshape(-1).view(np.uint8).data)
