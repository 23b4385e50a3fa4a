"""Scanned T5X models: stacked on axis 1 with heads apart, seen as one parameter a layer."""

import jax
import numpy as np
import pytest
import tensorstore

from prompt_tuning import params as params_lib
from prompt_tuning.checkpoints import hf, restore, scanned, t5x, t5x_writer, zarr_array
from prompt_tuning.checkpoints.stored import from_memory
from prompt_tuning.errors import UserError
from prompt_tuning.models.t5 import T5, T5Config
from prompt_tuning.peft.model import init_params

HEADS, HEAD_DIM, LAYERS = 3, 5, {'encoder': 3, 'decoder': 2}
CONFIG = T5Config(
    vocab_size=50, emb_dim=16, num_heads=HEADS, head_dim=HEAD_DIM, mlp_dim=24,
    num_encoder_layers=3, num_decoder_layers=2, relative_attention_per_layer=True)


@pytest.fixture(scope='module')
def params():
  """Per-layer parameters of a small model with a position bias a layer."""
  tree = jax.device_get(init_params(T5(config=CONFIG), jax.random.key(0)))
  return {path: np.asarray(leaf) for path, leaf in params_lib.flatten(tree).items()}


def split_heads(path, kernel):
  if 'attention/out/' in path:
    return kernel.reshape(HEADS, HEAD_DIM, -1)
  return kernel.reshape(-1, HEADS, HEAD_DIM) if 'attention/' in path else kernel


def stack(params, axis=1, heads=True, inside=None, bias='relpos_bias'):
  """The arrays of the scanned network with these parameters."""
  out = {}
  for path, leaf in params.items():
    stack_name, *rest = path.split('/')
    if not rest[0].startswith('layers_'):
      out[path] = leaf
    elif rest[0] == 'layers_0':
      tail = '/'.join(rest[1:])
      layers = [params[f'{stack_name}/layers_{i}/{tail}'] for i in range(LAYERS[stack_name])]
      layers = [split_heads(path, layer) if heads else layer for layer in layers]
      name = f'{stack_name}/{inside or stack_name}/{tail.replace("relpos_bias", bias)}'
      out[name] = np.stack(layers, axis)
  return out


def check(folder, params):
  model = t5x.open_checkpoint(folder)
  assert model.config == CONFIG
  assert model.arrays.keys() == params.keys()
  compared = 0
  for path, array in model.arrays.items():
    value = array.read()
    assert value.shape == params[path].shape
    assert value.tobytes() == params[path].tobytes(), path
    compared += 1
  assert compared == 4 + 3 * 10 + 2 * 15
  return model


@pytest.mark.parametrize('form', [
    {}, {'heads': False}, {'axis': 0}, {'inside': 'layers', 'bias': 'relative_posemb'}],
    ids=['T5X', 'Flaxformer', 'axis 0', 'first T5X'])
def test_every_value(params, tmp_path, form):
  stacked = stack(params, **form)
  t5x_writer.write_checkpoint(tmp_path, stacked, step=9)
  assert check(tmp_path, params).step == 9


def test_shapes_are_those_of_t5x(params):
  stacked = stack(params)
  assert {path: stacked[f'encoder/encoder/{path}'].shape for path in (
      'attention/query/kernel', 'attention/out/kernel', 'relpos_bias/rel_embedding',
      'pre_mlp_layer_norm/scale', 'mlp/wi_0/kernel')} == {
          'attention/query/kernel': (16, 3, 3, 5), 'attention/out/kernel': (3, 3, 5, 16),
          'relpos_bias/rel_embedding': (3, 3, 32), 'pre_mlp_layer_norm/scale': (16, 3),
          'mlp/wi_0/kernel': (16, 3, 24)}


def test_as_many_layers_as_the_width_take_axis_1():
  scale = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
  arrays = {'token_embedder/embedding': np.zeros((50, 16), np.float32),
            'encoder/encoder/pre_mlp_layer_norm/scale': scale}
  layers = scanned.per_layer(
      {path: from_memory(array, path) for path, array in arrays.items()}, 'here')
  np.testing.assert_array_equal(layers['encoder/layers_3/pre_mlp_layer_norm/scale'].read(),
                                scale[:, 3])


def test_shared_bias_of_a_scanned_model(params, tmp_path):
  stacked = {path: leaf for path, leaf in stack(params).items() if 'relpos_bias' not in path}
  stacked |= {f'{side}/relpos_bias/rel_embedding': np.ones((HEADS, 32), np.float32)
              for side in LAYERS}
  t5x_writer.write_checkpoint(tmp_path, stacked)
  assert not t5x.open_checkpoint(tmp_path).config.relative_attention_per_layer


def test_unscanned_with_heads_apart(params, tmp_path):
  apart = {path: split_heads(path, leaf) for path, leaf in params.items()}
  assert apart['encoder/layers_0/attention/out/kernel'].ndim == 3
  t5x_writer.write_checkpoint(tmp_path, apart)
  check(tmp_path, params)


@pytest.fixture
def reads(monkeypatch):
  """(start, stop) of every read of layers."""
  seen, real = [], zarr_array.ZarrArray.layers

  def layers(self, axis, start, stop, dtype):
    seen.append((start, stop))
    return real(self, axis, start, stop, dtype)

  monkeypatch.setattr(zarr_array.ZarrArray, 'layers', layers)
  return seen


def test_backbone_of_a_scanned_checkpoint(params, tmp_path, reads):
  t5x_writer.write_checkpoint(tmp_path, stack(params))
  looped = restore.load_backbone(tmp_path)
  assert len(reads) == 10 + 15  # each stacked array once, whatever the order of the parameters
  scanned_model = restore.load_backbone(tmp_path, scan_layers=True)
  assert looped.config == CONFIG and looped.fingerprint == scanned_model.fingerprint
  flat = params_lib.flatten(looped.params)
  assert flat.keys() == params.keys()
  for path, leaf in flat.items():
    np.testing.assert_array_equal(leaf, params[path])


def kernels(folder):
  arrays = t5x.open_checkpoint(folder).arrays
  return [arrays[f'encoder/layers_{i}/mlp/wi_0/kernel'] for i in range(3)]


def test_layers_that_share_chunks_are_read_together(params, tmp_path, reads, monkeypatch):
  t5x_writer.write_checkpoint(tmp_path, stack(params))
  for array in kernels(tmp_path):
    array.read()
  assert reads == [(0, 3)]
  reads.clear()
  monkeypatch.setattr(scanned, 'WINDOW_BYTES', 2 * 16 * 24 * 4 + 1)
  for array in kernels(tmp_path):
    array.read()
  assert reads == [(0, 2), (2, 3)]
  reads.clear()
  for array, i in zip(reversed(kernels(tmp_path)), (2, 1, 0), strict=True):
    assert array.read().tobytes() == params[f'encoder/layers_{i}/mlp/wi_0/kernel'].tobytes()
  assert reads == [(2, 3), (1, 3), (0, 2)]


def test_conversion_reads_each_stack_once(params, tmp_path, reads):
  t5x_writer.write_checkpoint(tmp_path / 't5x', stack(params))
  model = t5x.open_checkpoint(tmp_path / 't5x')
  restore.fingerprint(model)
  assert len(reads) == 25
  hf.write_folder(tmp_path / 'hf', model.config, model.arrays)
  assert len(reads) == 50
  written = hf.open_folder(tmp_path / 'hf').arrays
  bias = 'encoder/layers_2/relpos_bias/rel_embedding'
  assert written[bias].read().tobytes() == params[bias].tobytes()


def test_one_stack_at_a_time_waits_in_memory(params, tmp_path, reads):
  t5x_writer.write_checkpoint(tmp_path, stack(params))
  arrays = t5x.open_checkpoint(tmp_path).arrays
  for path in sorted(arrays):  # layer by layer
    assert arrays[path].read().tobytes() == params[path].tobytes()
  assert 25 < len(reads) <= 3 * 10 + 2 * 15


def test_a_layer_with_chunks_of_its_own_is_read_alone(params, tmp_path, reads):
  stacked = stack(params)
  folder = t5x_writer.write_checkpoint(tmp_path, stacked)
  kernel = folder / 'target.encoder.encoder.mlp.wi_0.kernel'
  tensorstore.open({
      'driver': 'zarr', 'kvstore': {'driver': 'file', 'path': f'{kernel}/'}, 'dtype': 'float32',
      'metadata': {'shape': [16, 3, 24], 'chunks': [16, 1, 24], 'compressor': {'id': 'gzip'}},
  }, create=True, delete_existing=True).result().write(
      stacked['encoder/encoder/mlp/wi_0/kernel']).result()
  for other in ('0.0.0', '0.2.0'):
    (kernel / other).write_bytes(b'not gzip, should it be read' * 10)
  value = kernels(tmp_path)[1].read()
  assert value.tobytes() == params['encoder/layers_1/mlp/wi_0/kernel'].tobytes()
  assert reads == [(1, 2)]
  with pytest.raises(UserError, match='wi_0/kernel., layer 2'):
    kernels(tmp_path)[2].read()


def test_layers_inside_the_index(params, tmp_path, monkeypatch):
  """An old checkpoint: everything in the msgpack file."""
  monkeypatch.setattr(t5x_writer, '_write_array', lambda folder, name, array: np.array(array))
  t5x_writer.write_checkpoint(tmp_path, stack(params))
  check(tmp_path, params)


@pytest.mark.parametrize('change, message', [
    ({'encoder/encoder/mlp/wi_0/kernel': np.zeros((16, 4, 24), np.float32)}, '3 layers are'),
    ({'encoder/encoder/mlp/wi_0/kernel': np.zeros(16, np.float32)}, '3 layers are expected'),
    ({'token_embedder/embedding': np.zeros((50, 8), np.float32)}, 'which axis counts'),
])
def test_layers_that_disagree(params, tmp_path, change, message):
  t5x_writer.write_checkpoint(tmp_path, {**stack(params), **change})
  with pytest.raises(UserError, match=message):
    t5x.open_checkpoint(tmp_path)
