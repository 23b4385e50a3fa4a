"""Checkpoints that T5X wrote through orbax (t5x/checkpoints.py, OrbaxCheckpointManagerInterface).

A folder, `checkpoint_N/state` or checkpoint_N itself, with one zarr array a parameter, named with
dots (`target.encoder.layers_0.attention.query.kernel`), in folders or in an OCDBT database. Older
versions of orbax kept small values in a msgpack file `checkpoint`, where 'PLACEHOLDER://name'
stands for an array; newer ones have no such file, and names and None in `_METADATA`.
"""

from prompt_tuning.checkpoints import json_file, zarr_array
from prompt_tuning.checkpoints.location import Location, list_keys
from prompt_tuning.errors import UserError

ITEM = 'state'  # the item of a checkpoint_N that holds T5X's train state
_DATABASE = 'manifest.ocdbt'
_METADATA = '_METADATA'
_PLACEHOLDER = 'PLACEHOLDER://'
_DRIVERS = {'.zarray': 'zarr', 'zarr.json': 'zarr3'}


def is_root(folder: Location) -> bool:
  """Whether orbax wrote this folder."""
  return folder.holds(_DATABASE) or folder.holds(_METADATA)


def has_placeholders(index) -> bool:
  """Whether a msgpack file names arrays in orbax's way."""
  rest = [index]
  while rest:
    node = rest.pop()
    if isinstance(node, dict):
      rest += node.values()
    elif isinstance(node, str) and node.startswith(_PLACEHOLDER):
      return True
  return False


def fill(folder: Location, index: dict) -> dict:
  """Puts the arrays of a folder into its index.

  Args:
    folder: what orbax wrote.
    index: content of its msgpack file; empty where it has none.

  Returns:
    Nested dict whose arrays are ZarrArrays.

  Raises:
    UserError: an array that the index names is not there, or cannot be opened.
  """
  arrays = _arrays(folder)
  if not index:
    tree = {}
    for name, array in arrays.items():
      *parents, leaf = name.split('.')
      node = tree
      for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
          raise UserError(f'{folder}: {name} lies inside another array. The checkpoint is damaged.')
      node[leaf] = array
    return tree
  return _replaced(folder, index, arrays)


def _replaced(folder, node, arrays):
  if isinstance(node, dict):
    return {key: _replaced(folder, child, arrays) for key, child in node.items()}
  if not isinstance(node, str) or not node.startswith(_PLACEHOLDER):
    return node
  name = node.removeprefix(_PLACEHOLDER)
  if name not in arrays:
    raise UserError(f'{folder}: the array {name!r}, which its index names, is not there. The '
                    'checkpoint is incomplete: copy or download it again.')
  return arrays[name]


def _arrays(folder) -> dict[str, zarr_array.ZarrArray]:
  """Every array of the folder by its dotted name."""
  ocdbt = folder.holds(_DATABASE)
  kvstore = folder.kvstore()
  keys = list_keys({'driver': 'ocdbt', 'base': kvstore} if ocdbt else kvstore, str(folder))
  complete = _metadata(folder).get('store_array_data_equal_to_fill_value') is True
  found = {}
  for key in keys:
    name, _, file = key.rpartition('/')
    if name and file in _DRIVERS:
      if not ocdbt:
        _check(folder, name)
      found[name] = {'root': folder, 'path': name, 'driver': _DRIVERS[file], 'ocdbt': ocdbt,
                     'complete': complete}
  return zarr_array.open_all(found)


def _check(folder, name):
  try:
    folder.inside(name)
  except (ValueError, OSError) as error:
    raise UserError(f'{folder}: bad array {name!r}: {error}.') from error


def _metadata(folder) -> dict:
  """What orbax says of the folder as a whole; nothing in old ones."""
  if not folder.holds(_METADATA):
    return {}
  try:
    with folder.open(_METADATA) as file:
      return json_file.parse(file.read())
  except (ValueError, OSError) as error:
    raise UserError(f'{folder.child(_METADATA)} cannot be read: {error}. The checkpoint is '
                    'damaged.') from error
