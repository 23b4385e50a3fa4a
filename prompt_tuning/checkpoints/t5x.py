"""T5X's checkpoints: native ones and those that T5X wrote through orbax.

Native: a msgpack index named `checkpoint` beside one zarr folder an array (t5x/checkpoints.py,
version 3); old ones hold arrays in the index itself. Orbax: see t5x_orbax. The index is decoded to
plain data, nothing in it is ever executed; arrays are read when they are asked for. For writing see
t5x_writer.
"""

import re

import numpy as np

from prompt_tuning.checkpoints import msgpack_index, scanned, t5x_orbax, zarr_array
from prompt_tuning.checkpoints import shapes as shapes_lib
from prompt_tuning.checkpoints.location import Location, locate
from prompt_tuning.checkpoints.stored import DTYPES, StoredArray, StoredModel, from_memory
from prompt_tuning.checkpoints.zarr_array import ZarrArray
from prompt_tuning.errors import UserError

INDEX = 'checkpoint'
_FOLDER = re.compile(r'checkpoint_(\d+)')


def open_checkpoint(path, step: int | None = None) -> StoredModel:
  """Opens a checkpoint without reading its arrays.

  Args:
    path: a checkpoint_N folder, its parent, or the file `checkpoint` inside it; local or
      gs://bucket/...
    step: which checkpoint_N of a parent folder; None takes the latest.

  Returns:
    The model: parameters of `target` by per-layer path, the step, and the optimizer's state for
    each parameter under the file's own paths.

  Raises:
    UserError: nothing there, not a T5X checkpoint, or a damaged one.
  """
  folder = find(path, step)
  index = _read_index(folder)
  root = index.get('optimizer', index)
  state = root.get('state') or {} if isinstance(root, dict) else {}
  if not isinstance(root, dict) or not isinstance(root.get('target'), dict):
    raise UserError(f'{folder} holds no parameters (no `target`); it has {list(index)}. Expected '
                    'is what T5X writes.')
  if not isinstance(state, dict):
    raise UserError(f'{folder}: `state` is a {type(state).__name__}, not a map.')
  arrays = scanned.per_layer(_leaves(folder, root['target'], 'target'), str(folder))
  slots = _leaves(folder, state.get('param_states') or {}, 'state/param_states')
  return StoredModel(
      source=str(folder),
      arrays=arrays,
      config=shapes_lib.config_from_shapes({p: a.shape for p, a in arrays.items()}, str(folder)),
      assumed=shapes_lib.ASSUMED,
      step=_step(folder, state.get('step')),
      optimizer_state={name: _stored(slot) for name, slot in slots.items()})


def is_checkpoint(path) -> bool:
  """Whether `path` looks like something `open_checkpoint` opens; a bucket is not asked."""
  location = locate(path)
  return location.bucket is not None or _is_index(location) or bool(_candidates(location))


def find(path, step: int | None = None) -> Location:
  """The folder of one checkpoint; see `open_checkpoint`."""
  location = locate(path)
  folders = _candidates(location.parent if _is_index(location) else location)
  if not folders:
    raise UserError(f'{path} holds no T5X checkpoint. Give a checkpoint_N folder, the folder '
                    f'above it, or the file `{INDEX}` inside it.')
  if step is None:
    return folders[max(folders, key=lambda n: -1 if n is None else n)]
  if step not in folders:
    raise UserError(f'{path} holds no checkpoint of step {step}; it holds '
                    f'{sorted(n for n in folders if n is not None) or [location.name]}.')
  return folders[step]


def _is_index(location):
  return location.path.rpartition('/')[2] == INDEX and location.parent.holds(INDEX)


def _candidates(location) -> dict[int | None, Location]:
  """{step by the folder's name: folder with the index}."""
  if (root := _root(location)) is not None:
    outer = root.parent if root.name == t5x_orbax.ITEM else root
    named = _FOLDER.fullmatch(outer.name)
    return {int(named.group(1)) if named else None: root}
  # A folder such as checkpoint_7.tmp-123 is a save that was not finished.
  named = {name: found for name in location.folders() if (found := _FOLDER.fullmatch(name))}
  roots = {int(found.group(1)): _root(location.child(name)) for name, found in named.items()}
  return {step: root for step, root in roots.items() if root is not None}


def _root(folder) -> Location | None:
  """Where a checkpoint's index lies: in its folder, or in orbax's folder of the state."""
  for place in (folder, folder.child(t5x_orbax.ITEM)):
    if place.holds(INDEX) or t5x_orbax.is_root(place):
      return place
  return None


def _read_index(folder) -> dict:
  """Nested dicts whose leaves are arrays, specifications of arrays, numbers and None."""
  if not t5x_orbax.is_root(folder):
    index = msgpack_index.read(folder, INDEX)
    return t5x_orbax.fill(folder, index) if t5x_orbax.has_placeholders(index) else index
  index = msgpack_index.read(folder, INDEX) if folder.holds(INDEX) else {}
  return t5x_orbax.fill(folder, index)


def _leaves(folder, tree, inside) -> dict[str, StoredArray | ZarrArray]:
  """{'a/b/c': array} of a nested index; None, an unused optimizer slot, is left out."""
  arrays, rest = {}, [((), tree)]
  while rest:
    path, node = rest.pop()
    name = '/'.join(path)
    if isinstance(node, dict) and isinstance(node.get('driver'), str):
      arrays[name] = _zarr(folder, name, node)
    elif isinstance(node, dict):
      rest += [((*path, key), child) for key, child in node.items()]
    elif isinstance(node, StoredArray | ZarrArray):
      arrays[name] = node
    elif isinstance(node, int | float):
      arrays[name] = from_memory(np.asarray(node), f'{folder.child(INDEX)}: {name}')
    elif node is not None:
      raise UserError(f'{folder.child(INDEX)}: {inside}/{name} is a {type(node).__name__}, not an '
                      'array.')
  return dict(sorted(arrays.items()))


def _stored(leaf) -> StoredArray:
  return leaf.stored() if isinstance(leaf, ZarrArray) else leaf


def _zarr(folder, name, spec) -> ZarrArray:
  """The array that a tensorstore spec in the index stands for.

  Only its place in the folder counts: the driver that wrote it (file, gfile, gcs) and a bucket are
  those of the writer.
  """
  try:
    if spec['driver'] != 'zarr':
      raise ValueError(f'driver {spec["driver"]!r}; expected is zarr')
    # Beside the kvstore, not in it: tensorstore before 0.1.14.
    path = _place(folder, spec['kvstore']['path'] if 'path' in spec['kvstore'] else spec['path'])
    if 'metadata' not in spec:  # the first versions of orbax
      return zarr_array.open_all({name: {'root': folder, 'path': path}})[name]
    shape, dtype = spec['metadata']['shape'], spec['dtype']
    if dtype not in DTYPES:
      raise ValueError(f'dtype {dtype!r}; expected is one of {list(DTYPES)}')
    if not all(type(n) is int and n >= 0 for n in shape):
      raise ValueError(f'shape {list(shape)}')
  except UserError:  # of an array that is opened to tell its shape
    raise
  except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
    raise UserError(f'{folder.child(INDEX)}: bad entry for {name}: {error}. The checkpoint is '
                    'damaged or was not written by T5X.') from error
  if dtype == 'uint16':
    raise UserError(f'{folder.child(INDEX)}: {name} is uint16, as T5X wrote bfloat16 before '
                    'version 3 of its format. Let T5X read it and save it again.')
  return ZarrArray(root=folder, path=path, name=name, shape=tuple(shape), dtype=DTYPES[dtype])


def _place(folder, path) -> str:
  """Where the array lies: as written, or without the folders that its writer put in front."""
  own = path.rstrip('/').rpartition('/')[2]
  if folder.bucket is None and own not in ('', '.', '..') and folder.child(own).local.is_dir():
    if path.startswith('/') or not folder.inside(path).local.exists():
      path = own
  folder.inside(path)
  return path.rstrip('/')


def _step(folder, step) -> int | None:
  if step is None:
    return None
  leaf = _leaves(folder, {'step': step}, 'state').get('step')
  if leaf is None or leaf.shape not in ((), (1,)) or leaf.dtype.kind not in 'iu':
    raise UserError(f'{folder}: state/step is no whole number. The checkpoint is damaged.')
  return int(_stored(leaf).read().reshape(()))
