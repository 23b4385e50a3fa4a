"""Folders from the Hugging Face hub: no link in them leads to a file elsewhere."""

import pathlib
import re

from prompt_tuning.errors import UserError

_CACHED = re.compile(r'\.\./\.\./blobs/[0-9a-f]{40,64}')


def member(folder: pathlib.Path, name: str) -> pathlib.Path:
  """Path of a file in the folder, which may not be a link out of it.

  One kind of link is followed: snapshots/REVISION/NAME -> ../../blobs/HASH, as the cache of the
  Hugging Face hub keeps every file (huggingface_hub, guide "Manage the cache").

  Raises:
    UserError: it is a link out of the folder.
  """
  path = folder / name
  try:
    home, target = folder.resolve(), path.resolve()
    cached = (path.is_symlink() and home.parent.name == 'snapshots'
              and _CACHED.fullmatch(path.readlink().as_posix())
              and target.parent == home.parent.parent / 'blobs')
  except (OSError, RuntimeError, ValueError) as error:  # a loop of links; a NUL in the name
    raise UserError(f'Cannot follow {str(path)[:1000]!r}: {str(error)[:200]}') from error
  if not cached and not target.is_relative_to(home):
    raise UserError(f'{path} is a link out of its folder, to {target}. Copy the file into the '
                    'folder.')
  return path
