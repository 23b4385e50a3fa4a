"""The container: equal to the reference library's, and suspicious of its header."""

import json
import struct
import weakref

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from prompt_tuning.checkpoints import safetensors_file, stored
from prompt_tuning.errors import UserError

ARRAYS = {
    'a/b': np.arange(12, dtype=np.float32).reshape(3, 4),
    'scalar': np.asarray(2.5, np.float32),
    'empty': np.zeros((0, 3), np.float32),
    'half': np.arange(6, dtype=np.float32).astype(ml_dtypes.bfloat16).reshape(2, 3),
    'int': np.arange(5, dtype=np.int64),
    'transposed': np.arange(12, dtype=np.float32).reshape(3, 4).T,
}


def same(a, b):
  return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_round_trip(tmp_path):
  safetensors_file.write(tmp_path / 'x.safetensors', ARRAYS, {'task': 'sst2'})
  arrays, metadata = safetensors_file.read(tmp_path / 'x.safetensors')
  assert metadata == {'task': 'sst2'}
  assert arrays.keys() == ARRAYS.keys()
  assert all(same(arrays[name].read(), ARRAYS[name]) for name in ARRAYS)
  assert [p.name for p in tmp_path.iterdir()] == ['x.safetensors']


def test_reference_library_reads_ours(tmp_path):
  safetensors_file.write(tmp_path / 'x.safetensors', ARRAYS, {'task': 'sst2'})
  theirs = safetensors.numpy.load_file(tmp_path / 'x.safetensors')
  assert theirs.keys() == ARRAYS.keys()
  assert all(same(theirs[name], ARRAYS[name]) for name in ARRAYS)
  with safetensors.safe_open(tmp_path / 'x.safetensors', 'numpy') as file:
    assert file.metadata() == {'task': 'sst2'}


def test_we_read_the_reference_library(tmp_path):
  plain = {name: np.ascontiguousarray(array) for name, array in ARRAYS.items()}
  safetensors.numpy.save_file(plain, tmp_path / 'x.safetensors')
  arrays, metadata = safetensors_file.read(tmp_path / 'x.safetensors')
  assert metadata == {} and arrays.keys() == plain.keys()
  assert all(same(arrays[name].read(), plain[name]) for name in plain)


def test_reads_in_blocks_and_casts(tmp_path, monkeypatch):
  array = np.random.default_rng(0).normal(size=(37, 5)).astype(np.float32)
  safetensors_file.write(tmp_path / 'x.safetensors', {'x': array})
  monkeypatch.setattr(stored, 'BLOCK_BYTES', 100)
  entry = safetensors_file.read(tmp_path / 'x.safetensors')[0]['x']
  assert same(entry.read(), array)
  assert same(entry.read(ml_dtypes.bfloat16), array.astype(ml_dtypes.bfloat16))
  assert same(np.ascontiguousarray(entry.transposed().read()), np.ascontiguousarray(array.T))
  assert same(entry.scaled(0.5).read(), array * np.float32(0.5))


def test_writes_one_array_at_a_time(tmp_path):
  values = np.arange(2**18, dtype=np.float32).reshape(2**9, 2**9)
  held = []

  def reader(dtype):
    assert not any(array() is not None for array in held), 'the array before is still in memory'
    array = values.astype(dtype)
    held.append(weakref.ref(array))
    return array

  entry = stored.StoredArray(shape=values.shape, dtype=values.dtype, source='x', reader=reader)
  arrays = {'a': entry, 'b': entry.transposed(), 'c': entry, 'd': jax.numpy.asarray(values)}
  safetensors_file.write(tmp_path / 'x.safetensors', arrays)
  found = safetensors.numpy.load_file(tmp_path / 'x.safetensors')
  assert len(held) == 3 and found.keys() == arrays.keys()
  assert all(same(found[name], values.T if name == 'b' else values) for name in arrays)


def test_nothing_is_left_where_an_array_cannot_be_read(tmp_path):
  def reader(dtype):
    raise OSError('lost')
  entry = stored.StoredArray(shape=(2,), dtype=np.dtype(np.float32), source='there', reader=reader)
  with pytest.raises(UserError, match='Cannot read there .*lost'):
    safetensors_file.write(tmp_path / 'x.safetensors', {'a': np.ones(10**5), 'b': entry})
  assert not list(tmp_path.iterdir())


def test_transposed_arrays_are_written_block_by_block(tmp_path, monkeypatch):
  monkeypatch.setattr(stored, 'BLOCK_BYTES', 100)
  arrays = {name: np.random.default_rng(0).normal(size=shape).T
            for name, shape in {'a': (37, 5), 'b': (5, 37), 'c': (2, 3, 41), 'd': (0, 3)}.items()}
  safetensors_file.write(tmp_path / 'x.safetensors', arrays)
  found = safetensors.numpy.load_file(tmp_path / 'x.safetensors')
  assert found.keys() == arrays.keys()
  assert all(same(found[name], array) for name, array in arrays.items())


@pytest.mark.parametrize('offsets, match', [
    ([[0, 48], [0, 48]], 'begins at byte 0'), ([[0, 48], [24, 72]], 'begins at byte 24'),
    ([[0, 48], [52, 100]], 'begins at byte 52'), ([[4, 52], [52, 100]], 'begins at byte 4'),
    ([[0, 48], [48, 96]], 'the end of the file begins at byte 100')])
def test_overlaps_and_holes(tmp_path, offsets, match):
  header = {name: {'dtype': 'F32', 'shape': [12], 'data_offsets': span}
            for name, span in zip('ab', offsets, strict=True)}
  text = json.dumps(header).encode()
  path = tmp_path / 'x.safetensors'
  path.write_bytes(struct.pack('<Q', len(text)) + text + b'\0' * 100)
  with pytest.raises(UserError, match=match):
    safetensors_file.read(path)
  with pytest.raises(safetensors.SafetensorError):
    safetensors.numpy.load_file(path)


def damaged(path, change):
  """Writes a file whose header was changed, its data as before."""
  safetensors_file.write(path, {'x': np.arange(12, dtype=np.float32).reshape(3, 4)})
  raw = path.read_bytes()
  length = struct.unpack('<Q', raw[:8])[0]
  header = json.loads(raw[8:8 + length])
  change(header)
  text = json.dumps(header).encode()
  path.write_bytes(struct.pack('<Q', len(text)) + text + raw[8 + length:])


@pytest.mark.parametrize('change', [
    {'dtype': 'F8'}, {'shape': [3, 5]}, {'shape': [10**9, 10**9]}, {'shape': [-3, -4]},
    {'shape': '34'}, {'data_offsets': [0, 10**12]}, {'data_offsets': [48, 0]},
    {'data_offsets': [True, 48]}, {'data_offsets': 7}, {'dtype': ['F32']}])
def test_header_that_lies(tmp_path, change):
  path = tmp_path / 'x.safetensors'
  damaged(path, lambda header: header['x'].update(change))
  with pytest.raises(UserError, match=r'x\.safetensors: x: bad header entry'):
    safetensors_file.read(path)


@pytest.mark.parametrize('raw', [
    b'', b'short', struct.pack('<Q', 10**15) + b'{}', struct.pack('<Q', 2) + b'[]',
    struct.pack('<Q', 4) + b'{"a"', struct.pack('<Q', 2) + b'\xff\xfe'])
def test_not_a_safetensors_file(tmp_path, raw):
  path = tmp_path / 'x.safetensors'
  path.write_bytes(raw)
  with pytest.raises(UserError, match='is not a safetensors file'):
    safetensors_file.read(path)


def test_file_that_shrinks_after_opening(tmp_path):
  path = tmp_path / 'x.safetensors'
  safetensors_file.write(path, {'x': np.zeros((3, 4), np.float32)})
  entry = safetensors_file.read(path)[0]['x']
  path.write_bytes(path.read_bytes()[:-4])
  with pytest.raises(UserError, match=r'Cannot read .*x\.safetensors: x .*ends early'):
    entry.read()


def test_unwritable_folder(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='Cannot write'):
    safetensors_file.write(tmp_path / 'file' / 'x.safetensors', ARRAYS)
