"""Files and folders that are there whole or not at all."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
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


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Gives a temporary folder beside `path`, which becomes `path` when the block ends well.

  Args:
    path: a folder that does not exist or is empty.

  Raises:
    UserError: the folder holds something already or cannot be written.
  """
  # A rename would replace a link, not what it leads to.
  path = pathlib.Path(os.path.realpath(path))
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    if path.is_symlink():
      raise UserError(f'{path} is a link that leads to itself: give a new folder.')
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
      raise UserError(f'{path} exists and is not an empty folder: give a new one.')
    temporary.mkdir(parents=True)
    try:
      yield temporary
      os.replace(temporary, path)
    finally:
      shutil.rmtree(temporary, ignore_errors=True)
  except OSError as error:
    raise UserError(f'Cannot write {path}: {error}. Give a folder that can be written and has '
                    'room.') from error
