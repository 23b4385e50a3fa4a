"""JSON that came from elsewhere: of limited size, one object, no name twice."""

import json
import pathlib

from prompt_tuning.errors import UserError

_MAX_BYTES = 10_000_000  # the index of the largest models has a tenth of that


def read(path: pathlib.Path) -> dict:
  """The object in a file.

  Raises:
    UserError: it cannot be read, is too large, or is no such JSON.
  """
  try:
    if path.stat().st_size > _MAX_BYTES:
      raise ValueError(f'it has more than {_MAX_BYTES:,} bytes')
    return parse(path.read_bytes())
  except (OSError, ValueError) as error:
    raise UserError(f'Cannot read {path}: {error}') from error


def parse(content: bytes) -> dict:
  """The object in bytes.

  Raises:
    ValueError: another value, a name that stands twice, or no JSON.
  """
  try:
    value = json.loads(content.decode('utf-8'), object_pairs_hook=_unique)
  except RecursionError:
    raise ValueError('it is nested too deeply') from None
  if not isinstance(value, dict):
    raise ValueError('it is not a JSON object')
  return value


def _unique(pairs) -> dict:
  """Two readers of a file with a name that stands twice may take different values."""
  found = {}
  for name, value in pairs:
    if name in found:
      raise ValueError(f'{name[:200]!r} stands twice')
    found[name] = value
  return found
