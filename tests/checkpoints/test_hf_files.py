"""Shards, their index, and links of Hugging Face folders: what is followed and what is refused."""

import json

import pytest
import safetensors.numpy
from checkpoints.hf_models import V11, abstract, equal, random_params

from prompt_tuning.checkpoints import hf, restore
from prompt_tuning.errors import UserError


def shards_of(folder):
  """Splits model.safetensors in two and writes the index."""
  weights = safetensors.numpy.load_file(folder / 'model.safetensors')
  (folder / 'model.safetensors').unlink()
  index = {}
  for number, part in enumerate((list(weights)[::2], list(weights)[1::2])):
    name = f'model-0000{number + 1}-of-00002.safetensors'
    safetensors.numpy.save_file({k: weights[k] for k in part}, folder / name)
    index.update(dict.fromkeys(part, name))
  return index


def write_index(folder, index):
  (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': index}))


def test_sharded_files(folder):
  write_index(folder, shards_of(folder))
  read, _ = restore.read_params(folder, abstract(V11))
  assert equal(read, random_params(V11)) == 61


@pytest.mark.parametrize('shard', ['../model.safetensors', '/etc/passwd', '..', 'a/b', 7, ''])
def test_index_that_leaves_the_folder(folder, shard):
  write_index(folder, {**shards_of(folder), 'shared.weight': shard})
  with pytest.raises(UserError, match='no file name of this folder'):
    hf.open_folder(folder)


def test_index_with_a_name_that_no_file_has(folder):
  write_index(folder, {**shards_of(folder), 'shared.weight': 'a\0b'})
  with pytest.raises(UserError, match='Cannot follow'):
    hf.open_folder(folder)


def test_index_that_promises_too_much(folder):
  index = shards_of(folder)
  write_index(folder, {**index, 'more.weight': index['shared.weight']})
  with pytest.raises(UserError, match=r'does not hold more\.weight'):
    hf.open_folder(folder)


def test_index_without_a_shard(folder):
  write_index(folder, shards_of(folder))
  (folder / 'model-00002-of-00002.safetensors').unlink()
  with pytest.raises(UserError, match=r'model-00002-of-00002\.safetensors'):
    hf.open_folder(folder)


@pytest.mark.parametrize('content', ['{}', '[]', '{"weight_map": []}', '{"weight_map"', '\0'])
def test_index_that_is_none(folder, content):
  shards_of(folder)
  (folder / 'model.safetensors.index.json').write_text(content)
  with pytest.raises(UserError, match=r'model\.safetensors\.index\.json'):
    hf.open_folder(folder)


FILES = ('config.json', 'model.safetensors', 'tokenizer_config.json', 'spiece.model',
         'model.safetensors.index.json', 'model-00001-of-00002.safetensors')


def linked(folder, name, place, text):
  """Moves a file to `place` and leaves a link with `text` behind; false where it is not there."""
  if name.startswith('model-') or name.endswith('.index.json'):
    write_index(folder, shards_of(folder))
  elif not (folder / name).exists():
    (folder / name).write_text('{}')
  place.parent.mkdir(parents=True, exist_ok=True)
  (folder / name).rename(place)
  (folder / name).symlink_to(text)


@pytest.mark.parametrize('name', FILES)
def test_a_link_out_of_the_folder_is_refused(folder, tmp_path, name):
  linked(folder, name, tmp_path / 'elsewhere', '../elsewhere')
  with pytest.raises(UserError, match=rf'{name} is a link out of its folder, to .*elsewhere'):
    hf.open_folder(folder)


def test_a_link_inside_of_the_folder_is_followed(folder):
  linked(folder, 'model.safetensors', folder / 'weights', 'weights')
  assert len(hf.open_folder(folder).arrays) == 61


def test_a_loop_of_links(folder):
  (folder / 'spiece.model').symlink_to('spiece.model')
  with pytest.raises(UserError, match=r'Cannot follow .*spiece\.model'):
    hf.open_folder(folder)


BLOB = '0123456789abcdef' * 4


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('blob', [BLOB, BLOB[:40]])
def test_snapshot_of_the_hub_cache(folder, tmp_path, name, blob):
  cache = tmp_path / 'models--google--t5'
  snapshot = cache / 'snapshots' / 'main'
  snapshot.parent.mkdir(parents=True)
  folder.rename(snapshot)
  linked(snapshot, name, cache / 'blobs' / blob, f'../../blobs/{blob}')
  assert len(hf.open_folder(snapshot).arrays) == 61


@pytest.mark.parametrize('home, place, text', [
    ('snapshots/main', 'blobs/secret', '../../blobs/secret'),  # no hash
    ('snapshots/main', f'blobs/x/{BLOB}', f'../../blobs/x/{BLOB}'),
    ('snapshots/main', f'../blobs/{BLOB}', f'../../../blobs/{BLOB}'),
    ('other/main', f'blobs/{BLOB}', f'../../blobs/{BLOB}'),
    ('snapshots/a/b', f'snapshots/blobs/{BLOB}', f'../../blobs/{BLOB}'),
])
def test_what_is_not_quite_the_hub_cache(folder, tmp_path, home, place, text):
  cache = tmp_path / 'models--google--t5'
  (cache / home).parent.mkdir(parents=True)
  folder.rename(cache / home)
  linked(cache / home, 'model.safetensors', cache / place, text)
  with pytest.raises(UserError, match='is a link out of its folder'):
    hf.open_folder(cache / home)


def test_a_blob_that_is_a_link_itself(folder, tmp_path):
  snapshot = tmp_path / 'm' / 'snapshots' / 'main'
  snapshot.parent.mkdir(parents=True)
  folder.rename(snapshot)
  linked(snapshot, 'model.safetensors', tmp_path / 'elsewhere', f'../../blobs/{BLOB}')
  (tmp_path / 'm' / 'blobs').mkdir()
  (tmp_path / 'm' / 'blobs' / BLOB).symlink_to(tmp_path / 'elsewhere')
  with pytest.raises(UserError, match='is a link out of its folder, to .*elsewhere'):
    hf.open_folder(snapshot)
