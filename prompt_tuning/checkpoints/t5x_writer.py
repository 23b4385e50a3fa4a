"""Writes native T5X checkpoints that T5X itself restores, with a numpy prompt beside them.

The form is that of t5x/checkpoints.py, version 3, on local disks: a msgpack index, one zarr array
a parameter; of the optimizer, only what a trained parameter uses. Arrays are not compressed, which
T5X reads as well: gzip takes 8 % off float32 weights and minutes off a user. The numpy prompt is
that of google-research/prompt-tuning (train/utils.py): numpy_checkpoints/checkpoint_N/ and the
prompt's path with dots.
"""

import contextlib
import itertools
import logging
import math
import pathlib
from collections.abc import Mapping

import numpy as np

from prompt_tuning import params as params_lib
from prompt_tuning.atomic_file import new_folder, write_atomically
from prompt_tuning.checkpoints import names
from prompt_tuning.checkpoints.location import locate
from prompt_tuning.checkpoints.stored import DTYPES, StoredArray
from prompt_tuning.errors import UserError

_VERSION = 3
_CHUNK_BYTES = 64 * 2**20  # T5X's own
_UNUSED = (1,)  # the shape of a slot that the optimizer does not use for a parameter
_log = logging.getLogger(__name__)


def write_checkpoint(
    folder,
    arrays: Mapping,
    *,
    step: int = 0,
    optimizer_state: Mapping[str, Mapping | None] | None = None,
) -> pathlib.Path:
  """Writes `folder`/checkpoint_{step}: there whole or not at all.

  Args:
    folder: local folder of checkpoints; made if absent.
    arrays: {per-layer path: array or StoredArray}, read and written one by one, each with its
      dtype.
    step: the training step of the parameters.
    optimizer_state: {path: Adafactor's v, v_row, v_col and m}, see `adafactor_slots`; a parameter
      that is not named, or None, is frozen.

  Returns:
    The checkpoint_{step} folder.

  Raises:
    UserError: it exists already, cannot be written, or a StoredArray cannot be read.
  """
  location = locate(folder)
  if location.bucket is not None:
    raise UserError(f'{folder}: checkpoints are written to local folders only; copy it to the '
                    'bucket afterwards.')
  if type(step) is not int or step < 0:
    raise UserError(f'The step of a checkpoint is {step!r}: give a whole number from 0 on.')
  final = location.local / f'checkpoint_{step}'
  with contextlib.ExitStack() as stack:
    temporary = stack.enter_context(new_folder(final))
    if names.PROMPT in arrays:
      beside = location.local / 'numpy_checkpoints' / final.name
      prompt_folder = stack.enter_context(new_folder(beside))
    target = {path: _write_array(temporary, f'target/{path}', array)
              for path, array in arrays.items()}
    slots = _write_slots(temporary, target, optimizer_state or {})
    _write_index(temporary, step, target, slots)
    if names.PROMPT in arrays:
      prompt = _host(arrays[names.PROMPT])
      write_atomically(prompt_folder / names.PROMPT.replace('/', '.'),
                       lambda file: np.save(file, prompt, allow_pickle=False))
  return final


def adafactor_slots(opt_state, trainable) -> dict[str, dict[str, np.ndarray]]:
  """T5X's names and shapes for the state of this package's Adafactor.

  Args:
    opt_state: of training/optimizer.adafactor.
    trainable: the tree of trained parameters, looped or scanned.

  Returns:
    {per-layer path: {'v', 'v_row', 'v_col', 'm'}}; what is not used has shape (1,). Empty, with a
    warning, for another optimizer: T5X would not understand its state.
  """
  import jax
  import optax
  kinds = (optax.FactoredState, optax.EmaState)
  parts = [part for part in jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, kinds))
           if isinstance(part, kinds)]
  factored = [part for part in parts if isinstance(part, optax.FactoredState)]
  if len(factored) != 1:
    _log.warning('The optimizer is not Adafactor: its state is left out of the T5X checkpoint.')
    return {}
  trees = {name: params_lib.flatten(getattr(factored[0], name)) for name in ('v', 'v_row', 'v_col')}
  momentum = [part.ema for part in parts if isinstance(part, optax.EmaState)]
  trees['m'] = params_lib.flatten(momentum[0]) if momentum else {}
  slots = {}
  for path, leaf in params_lib.flatten(trainable).items():
    own = {name: np.asarray(tree.get(path, np.zeros(_UNUSED, np.float32)))
           for name, tree in trees.items()}
    disk = params_lib.disk_paths(path, leaf.shape[0] if leaf.ndim else 0)
    if disk == [path]:
      slots[path] = own
    else:
      slots |= {layer: {name: slot if slot.shape == _UNUSED else slot[i]
                        for name, slot in own.items()} for i, layer in enumerate(disk)}
  return slots


def _host(array) -> np.ndarray:
  return array.read() if isinstance(array, StoredArray) else np.asarray(array)


def _write_array(folder, name, array) -> dict:
  """Writes one zarr array; returns what the index says of it."""
  import tensorstore as ts
  host = _host(array)
  if host.dtype.name not in DTYPES:
    raise UserError(f'{name} has dtype {host.dtype}; a T5X checkpoint holds {list(DTYPES)}.')
  inside, chunks = name.replace('/', '.') + '/', _chunks(host.shape, host.itemsize)
  spec = {
      'driver': 'zarr', 'dtype': host.dtype.name, 'kvstore': {'driver': 'file', 'path': inside},
      'metadata': {'chunks': chunks, 'compressor': None, 'shape': list(host.shape)}}
  place = {'driver': 'file', 'path': f'{folder}/{inside}'}
  try:
    store = ts.open({**spec, 'kvstore': place}, create=True, open=False).result()
    # One chunk at a time: of a whole array tensorstore takes a copy.
    for corner in itertools.product(*map(range, [0] * host.ndim, host.shape, chunks)):
      part = tuple(slice(start, start + size)
                   for start, size in zip(corner, chunks, strict=True))
      store[part].write(host[part]).result()
  except Exception as error:  # tensorstore's errors have no common class
    raise UserError(f'Cannot write {name} into {folder.parent}: {error}. Give a folder that can be '
                    'written and has room.') from error
  return spec


def _chunks(shape, itemsize) -> list[int]:
  """Equal chunks of at most `_CHUNK_BYTES`; the longest axes are divided first, as in T5X."""
  chunk = [max(1, n) for n in shape]
  while math.prod(chunk) * itemsize > _CHUNK_BYTES:
    axis = chunk.index(max(chunk))
    chunk[axis] = next(n for n in range(chunk[axis] - 1, 0, -1) if shape[axis] % n == 0)
  return chunk


def _write_slots(folder, target, optimizer_state) -> dict:
  """{path: what the index says of the optimizer's state} of every parameter; frozen ones: None."""
  left_out = sorted(set(optimizer_state) - set(target))
  if left_out:
    _log.warning('The checkpoint does not hold %s: the optimizer state of these %d parameters is '
                 'left out.', ', '.join(left_out[:3]), len(left_out))
  return {path: _slots(folder, path, optimizer_state.get(path)) for path in target}


def _slots(folder, path, slots):
  if slots is None:
    return None
  return {name: _host(slot) if slot.shape == _UNUSED
          else _write_array(folder, f'state/param_states/{path}/{name}', slot)
          for name, slot in sorted(slots.items())}


def _write_index(folder, step, target, slots):
  from flax import serialization
  index = {'version': _VERSION, 'optimizer': {
      'state': {'param_states': params_lib.unflatten(slots), 'step': np.asarray(step, np.int32)},
      'target': params_lib.unflatten(target)}}
  content = serialization.msgpack_serialize(index)
  write_atomically(folder / 'checkpoint', lambda file: file.write(content))
