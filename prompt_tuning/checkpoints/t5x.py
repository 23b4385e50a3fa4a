"""T5X's native checkpoints: a msgpack index named `checkpoint` beside one zarr folder an array.

The index is decoded to plain data, nothing in it is ever executed; arrays are read through
tensorstore when they are asked for. Format: t5x/checkpoints.py, version 3.
"""

import math
import pathlib
import re

import msgpack
import numpy as np

from prompt_tuning.checkpoints import shapes as shapes_lib
from prompt_tuning.checkpoints.stored import (
  DTYPES,
  StoredArray,
  StoredModel,
  from_memory,
  read_rows,
  rows_per_block,
)
from prompt_tuning.errors import UserError

INDEX = 'checkpoint'
_FOLDER = re.compile(r'checkpoint_(\d+)')
_NDARRAY, _SCALAR = 1, 3  # flax.serialization's msgpack extension types
_CHUNKED = '__msgpack_chunked_array__'


def open_checkpoint(path, step: int | None = None) -> StoredModel:
  """Opens a checkpoint without reading its arrays.

  Args:
    path: a checkpoint_N folder, its parent, or the file `checkpoint` inside it.
    step: which checkpoint_N of a parent folder; None takes the latest.

  Returns:
    The model: parameters of `target`, the step, and the optimizer's state for each parameter.

  Raises:
    UserError: nothing there, not a T5X native checkpoint, or a damaged one.
  """
  folder = find(path, step)
  index = _read_index(folder / INDEX)
  root = index.get('optimizer', index)
  state = root.get('state', {}) if isinstance(root, dict) else {}
  if not isinstance(root, dict) or not isinstance(root.get('target'), dict):
    raise UserError(f'{folder / INDEX} holds no parameters (no `target`); it has '
                    f'{list(index)}. Expected is what T5X writes.')
  arrays = _arrays(folder, root['target'])
  _refuse_scanned(folder, arrays)
  return StoredModel(
      source=str(folder),
      arrays=arrays,
      config=shapes_lib.config_from_shapes({p: a.shape for p, a in arrays.items()}, str(folder)),
      assumed=shapes_lib.ASSUMED,
      step=_step(folder, state),
      optimizer_state=_arrays(folder, state.get('param_states') or {}))


def is_checkpoint(path) -> bool:
  """Whether `path` looks like something `open_checkpoint` opens."""
  path = pathlib.Path(path)
  return (path.is_file() and path.name == INDEX) or bool(_candidates(path))


def find(path, step: int | None = None) -> pathlib.Path:
  """The folder of one checkpoint; see `open_checkpoint`."""
  path = pathlib.Path(path)
  if path.is_file() and path.name == INDEX:
    path = path.parent
  folders = _candidates(path)
  if not folders:
    raise UserError(f'{path} holds no T5X checkpoint. Give a checkpoint_N folder, the folder '
                    f'above it, or the file `{INDEX}` inside it.')
  if step is None:
    return folders[max(folders, key=lambda n: -1 if n is None else n)]
  if step not in folders:
    raise UserError(f'{path} holds no checkpoint of step {step}; it holds '
                    f'{sorted(n for n in folders if n is not None) or [path.name]}.')
  return folders[step]


def _candidates(path) -> dict[int | None, pathlib.Path]:
  """{step by the folder's name: folder}."""
  if (path / INDEX).is_file():
    named = _FOLDER.fullmatch(path.resolve().name)
    return {int(named.group(1)) if named else None: path}
  if not path.is_dir():
    return {}
  return {int(named.group(1)): child for child in path.iterdir()
          if (named := _FOLDER.fullmatch(child.name)) and (child / INDEX).is_file()}


def _read_index(path) -> dict:
  """Decodes the msgpack file to dicts, numbers and arrays."""
  try:
    index = msgpack.unpackb(path.read_bytes(), ext_hook=_decode_extension, raw=False)
    if not isinstance(index, dict):
      raise ValueError('it is not a map')
  except (ValueError, TypeError, OSError, RecursionError, msgpack.UnpackException) as error:
    raise UserError(
        f'{path} is not the msgpack index of a T5X checkpoint: {error}. A Mesh TensorFlow '
        'checkpoint, whose file of this name is text, must be converted with T5X first.'
    ) from error
  return index


def _decode_extension(code, data):
  """flax's extension: [shape, dtype name, row-major bytes]."""
  if code not in (_NDARRAY, _SCALAR):
    raise ValueError(f'extension type {code} is not an array')
  shape, name, buffer = msgpack.unpackb(data, raw=False)
  if name not in DTYPES:
    raise ValueError(f'an array has dtype {name!r}; known are {list(DTYPES)}')
  if not all(type(n) is int and n >= 0 for n in shape):
    raise ValueError(f'an array has shape {shape}')
  if math.prod(shape) * DTYPES[name].itemsize != len(buffer):
    raise ValueError(f'{name}{shape} does not fit {len(buffer)} bytes')
  return np.frombuffer(buffer, DTYPES[name]).reshape(shape)


def _arrays(folder, tree) -> dict[str, StoredArray]:
  """{'a/b/c': array} of a nested index; None, an unused optimizer slot, is left out."""
  arrays, rest = {}, [((), tree)]
  while rest:
    path, node = rest.pop()
    name = '/'.join(path)
    if isinstance(node, dict) and _CHUNKED in node:
      arrays[name] = from_memory(_join_chunks(folder, name, node), f'{folder / INDEX}: {name}')
    elif isinstance(node, dict) and 'driver' in node:
      arrays[name] = _zarr(folder, name, node)
    elif isinstance(node, dict):
      rest += [((*path, key), child) for key, child in node.items()]
    elif isinstance(node, np.ndarray):
      arrays[name] = from_memory(node, f'{folder / INDEX}: {name}')
    elif node is not None:
      raise UserError(f'{folder / INDEX}: {name} is a {type(node).__name__}, not an array.')
  return dict(sorted(arrays.items()))


def _join_chunks(folder, name, node):
  """An array too large for one msgpack entry, which flax writes flat and in pieces."""
  try:
    shape = [node['shape'][str(i)] for i in range(len(node['shape']))]
    pieces = [node['chunks'][str(i)] for i in range(len(node['chunks']))]
    return np.concatenate(pieces).reshape(shape)
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(f'{folder / INDEX}: {name} is not a whole array: {error!r}. The file is '
                    'damaged.') from error


def _zarr(folder, name, spec) -> StoredArray:
  """The array that a tensorstore spec in the index stands for."""
  try:
    shape, dtype = tuple(spec['metadata']['shape']), spec['dtype']
    driver, relative = spec['driver'], spec['kvstore']['path']
    if driver != 'zarr' or dtype not in DTYPES:
      raise ValueError(f'driver {driver!r} with dtype {dtype!r}; expected is zarr with one of '
                       f'{list(DTYPES)}')
    if not all(type(n) is int and n >= 0 for n in shape):
      raise ValueError(f'shape {list(shape)}')
    location = _inside(folder, relative)
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(f'{folder / INDEX}: bad entry for {name}: {error}. The checkpoint is damaged '
                    'or was not written by T5X.') from error
  return StoredArray(shape=shape, dtype=DTYPES[dtype], source=f'{location} ({name})',
                     reader=_zarr_reader(location, shape, DTYPES[dtype]))


def _inside(folder, relative) -> pathlib.Path:
  """An array's folder. The driver that wrote it (file, gfile, gcs) does not matter for reading."""
  pure = pathlib.PurePosixPath(relative)
  location = folder / pure
  if pure.is_absolute() or '..' in pure.parts or not pure.parts or '\0' in relative:
    raise ValueError(f'the path {relative!r} leaves the checkpoint folder')
  if not location.resolve().is_relative_to(folder.resolve()):
    raise ValueError(f'the path {relative!r} is a link out of the checkpoint folder')
  return location


def _zarr_reader(location, shape, stored):
  def read(dtype):
    import tensorstore as ts
    array = _open_zarr(location, shape, stored)
    if not shape:
      return np.asarray(array.read().result()).astype(dtype, copy=False)
    step = rows_per_block(shape, stored.itemsize, array.chunk_layout.read_chunk.shape[0])
    cast = ts.cast(array, dtype)

    def read_into(block, start, stop):
      rows = cast[start:stop][ts.d[0].translate_to[0]]
      ts.array(block).write(rows).result()

    return read_rows(shape, dtype, step, read_into)
  return read


def _open_zarr(location, shape, stored):
  """Opens an array and compares it with the index."""
  import tensorstore as ts
  spec = {'driver': 'zarr', 'kvstore': {'driver': 'file', 'path': f'{location.resolve()}/'},
          # T5X writes every chunk, zeros too: one that is missing is lost, not zero.
          'fill_missing_data_reads': False}
  array = ts.open(spec, open=True, read=True).result()
  if array.fill_value is not None:
    # With a fill value a writer may leave out the chunks that equal it.
    array = ts.open({**spec, 'fill_missing_data_reads': True}, open=True, read=True).result()
  if array.shape != shape or array.dtype.numpy_dtype != stored:
    raise ValueError(f'.zarray says {array.dtype.name}{list(array.shape)} and the index '
                     f'{stored}{list(shape)}.')
  return array


def _step(folder, state) -> int | None:
  step = state.get('step')
  if step is None:
    return None
  if isinstance(step, dict):
    step = _arrays(folder, {'step': step})['step'].read()
  return int(np.asarray(step).reshape(()))


def _refuse_scanned(folder, arrays):
  scanned = [path for path in arrays if path.startswith(('encoder/encoder/', 'decoder/decoder/'))]
  if scanned:
    raise UserError(f'{folder} is a scanned T5X model (for example {scanned[0]}), which is not '
                    'read yet. Give a checkpoint with one set of parameters a layer.')
