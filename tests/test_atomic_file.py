"""A file or folder is there whole or not at all."""

import pytest

from prompt_tuning.atomic_file import new_folder, write_atomically
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


@pytest.mark.parametrize('exists', [False, True])
def test_new_folder(tmp_path, exists):
  path = tmp_path / 'deep' / 'folder'
  if exists:
    path.mkdir(parents=True)
  with new_folder(path) as temporary:
    (temporary / 'file').write_text('text')
    assert temporary.parent == path.parent and not (path / 'file').exists()
  assert (path / 'file').read_text() == 'text'
  assert list(path.parent.iterdir()) == [path]


def test_new_folder_through_a_link(tmp_path):
  (tmp_path / 'there').mkdir()
  (tmp_path / 'link').symlink_to('there')
  with new_folder(tmp_path / 'link') as temporary:
    (temporary / 'file').write_text('text')
  assert (tmp_path / 'link').is_symlink() and (tmp_path / 'there' / 'file').exists()


@pytest.mark.parametrize('error, raised', [(RuntimeError, RuntimeError), (OSError, UserError)])
def test_folder_that_fails_leaves_nothing(tmp_path, error, raised):
  with pytest.raises(raised, match='stop'), new_folder(tmp_path / 'folder') as temporary:
    (temporary / 'file').write_text('text')
    raise error('stop')
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('taken', ['file', 'folder'])
def test_folder_that_is_not_new(tmp_path, taken):
  (tmp_path / 'folder').mkdir()
  (tmp_path / 'folder' / 'file').write_text('text')
  path = tmp_path / 'folder' if taken == 'folder' else tmp_path / 'folder' / 'file'
  with pytest.raises(UserError, match='not an empty folder: give a new one'), new_folder(path):
    raise AssertionError('the block must not run')
  assert (tmp_path / 'folder' / 'file').read_text() == 'text'
