"""Files that are there whole or not at all."""

import os
import pathlib
from collections.abc import Callable
from typing import BinaryIO

from prompt_tuning.errors import UserError


def write_atomically(path: str | os.PathLike, fill: Callable[[BinaryIO], object]):
  """Calls `fill(file)` on a temporary file beside `path` and renames it to `path`.

  Args:
    path: the file; its folder is made if absent.
    fill: writes the content, as bytes.

  Raises:
    UserError: the file cannot be written.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      with temporary.open('wb') as file:
        fill(file)
        file.flush()
        os.fsync(file.fileno())
      os.replace(temporary, path)
    finally:
      temporary.unlink(missing_ok=True)
  except OSError as error:
    raise UserError(f'Cannot write {path}: {error}. Give a folder that can be written and has '
                    'room.') from error
