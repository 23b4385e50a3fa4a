"""Arrays in files: read in blocks, cast on the way, put where jax takes them over."""

import io
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prompt_tuning import params as params_lib
from prompt_tuning.checkpoints import restore, safetensors_file, stored
from prompt_tuning.errors import UserError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def array_of(values, source='x'):
  return stored.StoredArray(shape=values.shape, dtype=values.dtype, source=source,
                            reader=lambda dtype: values.astype(dtype))


@pytest.mark.parametrize('shape', [(), (0,), (7,), (3, 5), (257, 129), (2, 3, 150)])
def test_empty_is_aligned(shape):
  for dtype in (np.float32, BFLOAT16, np.bool_):
    array = stored.empty(shape, dtype)
    assert array.shape == shape and array.dtype == dtype and array.flags.c_contiguous
    assert array.ctypes.data % 64 == 0 or not array.size


@pytest.mark.parametrize('shape', [(3, 5), (300, 129), (129, 300), (4, 150, 3), (0, 5)])
def test_row_major(shape):
  array = np.random.default_rng(0).normal(size=shape)
  assert stored.row_major(array) is array
  found = stored.row_major(array.T)
  assert found.flags.c_contiguous and np.array_equal(found, array.T)


@pytest.mark.parametrize('shape', [(10**15, 0), (0, 10**15)])
def test_shapes_that_hold_nothing_take_no_time(shape):
  read = stored.flat_reader(lambda: io.BytesIO(b''), 0, shape, np.dtype(np.float32))
  assert read(BFLOAT16).shape == shape
  rows = stored.read_rows(shape, BFLOAT16, 1, lambda *_: pytest.fail('nothing is to be read'))
  assert rows.shape == shape


def test_a_number_that_is_none_is_cast_silently():
  values = np.array([np.nan, np.inf, -np.inf, 3.4e38], np.float32)
  found = array_of(values).read('bfloat16').astype(np.float32)
  assert np.isnan(found[0]) and np.array_equal(found[1:], [np.inf, -np.inf, np.inf])


def test_a_long_error_is_cut_short():
  def reader(dtype):
    raise ValueError('x' * 10**6)
  with pytest.raises(UserError, match=r'Cannot read the file \(shape \[2\]') as caught:
    stored.StoredArray(shape=(2,), dtype=BFLOAT16, source='the file', reader=reader).read()
  assert len(str(caught.value)) < 2000


def test_an_error_is_told_once():
  def reader(dtype):
    raise OSError('lost')
  array = stored.StoredArray(shape=(2, 3), dtype=np.dtype(np.float32), source='file: x',
                             reader=reader)
  with pytest.raises(UserError) as error:
    array.transposed().scaled(2.0).read()
  assert str(error.value).count('Cannot read file: x') == 1


def test_reading_takes_the_result_and_a_block(tmp_path):
  values = np.ones((4, 2**20), np.float32)
  safetensors_file.write(tmp_path / 'x.safetensors', {'x': values})
  array = safetensors_file.read(tmp_path / 'x.safetensors')[0]['x']
  tracemalloc.start()
  found = array.read('bfloat16')
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert np.array_equal(found.astype(np.float32), values)
  assert found.nbytes <= peak < found.nbytes + 1.2 * stored.BLOCK_BYTES


def test_parameters_are_not_copied_on_a_cpu(tmp_path, monkeypatch):
  made = []
  empty = stored.empty
  monkeypatch.setattr(stored, 'empty', lambda *args: made.append(empty(*args)) or made[-1])
  values = np.arange(64, dtype=np.float32).reshape(4, 16)
  safetensors_file.write(tmp_path / 'x.safetensors', {'a': values})
  model = stored.StoredModel(
      source='x', arrays=safetensors_file.read(tmp_path / 'x.safetensors')[0], config=None)
  params, _ = restore.read_params(model, {'a': jax.ShapeDtypeStruct((4, 16), np.float32)})
  assert len(made) == 1
  assert params['a'].unsafe_buffer_pointer() == made[0].ctypes.data
  assert np.array_equal(params['a'], values)


@pytest.mark.parametrize('spec, pieces', [
    (PartitionSpec(), 1), (PartitionSpec(None, 'x'), 8), (PartitionSpec('x'), 8)])
def test_devices_of_a_cpu_hold_one_copy_together(tmp_path, spec, pieces):
  values = np.random.default_rng(0).normal(size=(64, 96)).astype(np.float32)
  safetensors_file.write(tmp_path / 'x.safetensors', {'a': values, 'b': np.ascontiguousarray(
      values.T)})
  arrays = safetensors_file.read(tmp_path / 'x.safetensors')[0]
  model = stored.StoredModel(
      source='x', config=None, arrays={'a': arrays['a'], 'b': arrays['b'].transposed()})
  sharding = NamedSharding(Mesh(np.array(jax.devices()), ('x',)), spec)
  shapes = {name: jax.ShapeDtypeStruct((64, 96), np.float32) for name in 'ab'}
  params, _ = restore.read_params(model, shapes, shardings=dict.fromkeys('ab', sharding))
  for array in params_lib.flatten(params).values():
    assert np.array_equal(array, values)
    places = {shard.data.unsafe_buffer_pointer(): shard.data.nbytes
              for shard in array.addressable_shards}
    assert len(array.addressable_shards) == 8 and len(places) == pieces
    assert sum(places.values()) == values.nbytes
