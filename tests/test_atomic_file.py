"""A file is there whole or not at all."""

import pytest

from prompt_tuning.atomic_file import write_atomically
from prompt_tuning.errors import UserError


def test_written_in_a_new_folder(tmp_path):
  path = tmp_path / 'new' / 'folder' / 'file'
  write_atomically(path, lambda file: file.write(b'text'))
  assert path.read_bytes() == b'text'
  assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize('error, raised', [(RuntimeError, RuntimeError), (OSError, UserError)])
def test_failed_write_keeps_the_old_file(tmp_path, error, raised):
  path = tmp_path / 'file'
  path.write_bytes(b'old')

  def broken(file):
    file.write(b'new')
    raise error('stop')

  with pytest.raises(raised, match='stop'):
    write_atomically(path, broken)
  assert path.read_bytes() == b'old'
  assert list(tmp_path.iterdir()) == [path]


def test_place_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='Cannot write .*file/below.*Give a folder'):
    write_atomically(tmp_path / 'file' / 'below', lambda file: file.write(b''))
