"""Written checkpoints: in the reference's form, and what T5X's own way of reading makes of them."""

import json
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tensorstore
from flax import serialization, traverse_util

from prompt_tuning.checkpoints import prompt_file, t5x, t5x_writer
from prompt_tuning.checkpoints.names import PROMPT
from prompt_tuning.errors import UserError
from prompt_tuning.training import optimizer

SMALL = {'encoder/a/kernel': np.arange(6, dtype=np.float32).reshape(2, 3),
         PROMPT: np.arange(8, dtype=np.float32).reshape(4, 2)}


@pytest.fixture
def golden(golden_dir):
  return golden_dir / 't5x_small'


@pytest.fixture
def rewritten(golden, tmp_path):
  """The reference checkpoint, read and written again."""
  model = t5x.open_checkpoint(golden / 'ckpt_prompt_gzip')
  slots = {name: model.optimizer_state[f'{PROMPT}/{name}'] for name in ('v', 'v_row', 'v_col', 'm')}
  return t5x_writer.write_checkpoint(tmp_path / 'out', model.arrays, step=7,
                                     optimizer_state={PROMPT: slots})


def leaves(folder):
  """{path: leaf} of an index; a tensorstore spec is a leaf."""
  index = serialization.msgpack_restore((folder / 'checkpoint').read_bytes())
  return traverse_util.flatten_dict(
      index, sep='/', is_leaf=lambda _, node: 'driver' in node or 'kvstore' in node)


def restore_as_t5x_does(folder):
  """Reads a checkpoint the way of T5X's load_t5x_checkpoint, without this package."""
  flat = leaves(folder)
  assert flat.pop('version') == 3
  restored = {}
  for path, leaf in flat.items():
    if isinstance(leaf, dict):
      assert set(leaf) >= {'driver', 'kvstore', 'metadata'}
      spec = tensorstore.Spec(leaf).to_json()
      del spec['metadata']['chunks'], spec['metadata']['compressor']
      spec['kvstore']['path'] = str(folder / spec['kvstore']['path'])
      store = tensorstore.open(spec, open=True).result()
      assert tuple(spec['metadata']['shape']) == store.shape
      leaf = store.read().result()
    restored[path.removeprefix('optimizer/')] = leaf
  return restored


def inventory(folder):
  rows = {}
  for path, leaf in leaves(folder).items():
    if isinstance(leaf, dict):
      rows[path] = {'stored': 'tensorstore', 'spec': tensorstore.Spec(leaf).to_json()}
    elif isinstance(leaf, np.ndarray):
      rows[path] = {'stored': 'msgpack', 'dtype': leaf.dtype.name, 'shape': list(leaf.shape)}
    else:
      rows[path] = {'stored': 'msgpack', 'value': str(leaf)}
  return rows


def test_form_is_the_reference(rewritten, golden):
  reference = json.loads((golden / 'ckpt_prompt_gzip_inventory.json').read_text())
  assert len(reference) == 111
  for row in reference.values():
    if row['stored'] == 'tensorstore':
      row['spec']['metadata']['compressor'] = None  # the one difference
  assert inventory(rewritten) == reference
  theirs = golden / 'ckpt_prompt_gzip'
  files = {p.relative_to(theirs) for p in theirs.rglob('*') if p.is_file()}
  assert {p.relative_to(rewritten.parent) for p in rewritten.parent.rglob('*')
          if p.is_file()} == files
  compared = 0
  for file in files:
    ours = (rewritten.parent / file).read_bytes()
    if file.name == '.zarray':
      described = json.loads((theirs / file).read_text()) | {'compressor': None}
      assert json.loads(ours) == described, file
      compared += 1
    elif file.name == PROMPT.replace('/', '.'):
      assert ours == (theirs / file).read_bytes()
      compared += 1
  assert compared == 55


def test_t5x_restores_it(rewritten, golden):
  with np.load(golden / 'ckpt_prompt_expected.npz') as expected:
    restored = restore_as_t5x_does(rewritten)
    compared = 0
    for path, value in restored.items():
      if path.startswith('target/'):
        assert value.tobytes() == expected[path].tobytes()
        compared += 1
    assert compared == 53
    state = f'state/param_states/{PROMPT}'
    assert restored[f'{state}/v'].tobytes() == expected['prompt_v'].tobytes()
  assert restored['state/step'] == 7 and restored['state/step'].dtype == np.int32
  # T5X walks the parameters and their states together: same keys, None where nothing is kept.
  frozen = [path for path, value in restored.items() if path.startswith('state/') and value is None]
  assert len(frozen) == 52


def test_t5x_fits_it_to_its_train_state(rewritten):
  """T5X puts what it read into a tree of its own; flax refuses one with other keys."""
  serialization.register_serialization_state(
      tensorstore.Spec, lambda spec: spec.to_json(), lambda _, node: (
          tensorstore.Spec(node) if isinstance(node, dict) else node), override=True)
  unwritten = tensorstore.Spec({'driver': 'zarr', 'kvstore': {'driver': 'memory'}})
  params = {path.removeprefix('target/') for path in restore_as_t5x_does(rewritten)
            if path.startswith('target/')}
  slots = {f'{PROMPT}/{name}' for name in ('m', 'v', 'v_col', 'v_row')}
  own = {**{f'target/{path}': unwritten for path in params}, 'state/step': unwritten,
         **{f'state/param_states/{path}': None for path in params - {PROMPT}},
         **{f'state/param_states/{path}': unwritten for path in slots}}
  index = serialization.msgpack_restore((rewritten / 'checkpoint').read_bytes())
  restored = serialization.from_state_dict(
      traverse_util.unflatten_dict(own, sep='/'), index['optimizer'])
  flat = traverse_util.flatten_dict(restored, sep='/')
  assert flat.keys() == own.keys() and len(own) == 53 + 1 + 52 + 4
  for path, leaf in flat.items():
    in_zarr = path.startswith('target/') or path.endswith('/v')
    assert isinstance(leaf, tensorstore.Spec if in_zarr else np.ndarray | None), path


def test_round_trip(rewritten, golden):
  before, after = t5x.open_checkpoint(golden / 'ckpt_prompt_raw'), t5x.open_checkpoint(rewritten)
  assert after.step == 7 and after.config == before.config
  assert after.arrays.keys() == before.arrays.keys() and len(after.arrays) == 53
  for path, array in after.arrays.items():
    assert array.read().tobytes() == before.arrays[path].read().tobytes()
  assert {p: a.read().tobytes() for p, a in after.optimizer_state.items()} == {
      p: a.read().tobytes() for p, a in before.optimizer_state.items()}


def test_dtypes_and_several_chunks(tmp_path, monkeypatch):
  monkeypatch.setattr(t5x_writer, '_CHUNK_BYTES', 60)
  values = np.random.default_rng(0).normal(size=(12, 10))
  arrays = {f'a/{name}': values.astype(np.dtype(name)) for name in ('float32', 'bfloat16', 'int32')}
  arrays |= {'a/scalar': np.float32(3.5), 'a/jax': jnp.arange(5.0)}
  folder = t5x_writer.write_checkpoint(tmp_path, arrays)
  restored = restore_as_t5x_does(folder)
  for path, array in arrays.items():
    assert restored[f'target/{path}'].tobytes() == np.asarray(array).tobytes()
    assert restored[f'target/{path}'].dtype == array.dtype
  assert leaves(folder)['optimizer/target/a/float32']['metadata']['chunks'] == [4, 2]
  assert len(list((folder / 'target.a.float32').glob('[0-9]*'))) == 15
  assert folder.name == 'checkpoint_0' and not (tmp_path / 'numpy_checkpoints').exists()


def test_numpy_prompt(tmp_path):
  prompt = SMALL[PROMPT].astype(ml_dtypes.bfloat16)
  t5x_writer.write_checkpoint(tmp_path, {**SMALL, PROMPT: prompt}, step=3)
  file = tmp_path / 'numpy_checkpoints' / 'checkpoint_3' / 'encoder.prompt.prompt.prompt'
  assert np.load(file).dtype == np.dtype('V2')
  assert prompt_file.load_prompt(file).array.tobytes() == prompt.tobytes()


def broken():
  raise ValueError('lost')


def test_nothing_is_left_of_a_failed_write(tmp_path):
  stored = t5x.StoredArray(shape=(2,), dtype=np.dtype(np.float32), source='there',
                           reader=lambda dtype: broken())
  with pytest.raises(UserError, match='Cannot read there'):
    t5x_writer.write_checkpoint(tmp_path, {**SMALL, 'z': stored}, step=1)
  assert [p for p in tmp_path.rglob('*') if p.name != 'numpy_checkpoints'] == []


def test_existing_is_kept(tmp_path):
  folder = t5x_writer.write_checkpoint(tmp_path, SMALL, step=1)
  before = (folder / 'checkpoint').read_bytes()
  with pytest.raises(UserError, match='checkpoint_1 exists'):
    t5x_writer.write_checkpoint(tmp_path, {'x': np.zeros(2)}, step=1)
  assert (folder / 'checkpoint').read_bytes() == before


@pytest.mark.parametrize('folder, arrays, step, message', [
    ('gs://bucket/x', SMALL, 0, 'local folders only'),
    ('x', SMALL, -1, 'whole number'),
    ('x', SMALL, 1.5, 'whole number'),
    ('x', {'a': np.zeros(2, np.complex64)}, 0, 'complex64'),
])
def test_refused(tmp_path, monkeypatch, folder, arrays, step, message):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match=message):
    t5x_writer.write_checkpoint(folder, arrays, step=step)
  assert not list(pathlib.Path('x').glob('checkpoint*'))


@pytest.mark.parametrize('name', ['prompt_5x4', 'prompt_100x160', 'prompt_128x130',
                                  'kernel_130x128', 'scale_16'])
def test_adafactor_slots_are_the_reference(golden_dir, name):
  with np.load(golden_dir / 'adafactor' / 'adafactor_pure.npz') as reference:
    params = {'x': {'y': jnp.asarray(reference[f'{name}/param0'])}}
    config = json.loads((golden_dir / 'adafactor' / 'adafactor_pure.json').read_text())
    shapes = config['anchor_prompt']['state_shapes'][name]
    transform = optimizer.adafactor(0.3)
    state = transform.init(params)
    for i in range(3):
      gradient = {'x': {'y': jnp.asarray(reference[f'{name}/grad{i}'])}}
      updates, state = jax.jit(transform.update)(gradient, state, params)
      params = jax.tree.map(jnp.add, params, updates)
    slots = t5x_writer.adafactor_slots(state, params)
    assert slots.keys() == {'x/y'}
    assert {slot: list(value.shape) for slot, value in slots['x/y'].items()} == shapes
    compared = 0
    for slot, value in slots['x/y'].items():
      key = f'anchor_prompt/{name}/{slot}_final'
      if key in reference.files:
        np.testing.assert_allclose(value, reference[key], rtol=1e-5, atol=1e-12)
        compared += 1
    assert compared > 0


def test_slots_of_stacked_layers_and_momentum():
  leaf = jnp.arange(12.0).reshape(2, 3, 2)
  wide = jnp.ones((2, 128, 130))
  trained = {'encoder': {'layers': {'lora': {'a': leaf, 'w': wide}}}}
  transform = optimizer.adafactor(0.3, beta1=0.9)
  _, state = transform.update(trained, transform.init(trained), trained)
  slots = t5x_writer.adafactor_slots(state, trained)
  shapes = {path: {slot: value.shape for slot, value in own.items()} for path, own in slots.items()}
  small = {'v': (3, 2), 'v_row': (1,), 'v_col': (1,), 'm': (3, 2)}
  large = {'v': (1,), 'v_row': (128,), 'v_col': (130,), 'm': (128, 130)}
  assert shapes == {'encoder/layers_0/lora/a': small, 'encoder/layers_1/lora/a': small,
                    'encoder/layers_0/lora/w': large, 'encoder/layers_1/lora/w': large}
  np.testing.assert_allclose(slots['encoder/layers_1/lora/a']['v'], np.square(leaf[1]), rtol=1e-6)


def test_factored_slots_are_arrays_of_their_own(tmp_path):
  prompt = jnp.ones((128, 130))
  slots = t5x_writer.adafactor_slots(
      optimizer.adafactor().init({'p': prompt}), {'p': prompt})
  folder = t5x_writer.write_checkpoint(tmp_path, {'p': prompt}, optimizer_state=slots)
  rows = inventory(folder)
  where = {slot: rows[f'optimizer/state/param_states/p/{slot}']['stored']
           for slot in ('m', 'v', 'v_row', 'v_col')}
  assert where == {'m': 'msgpack', 'v': 'msgpack', 'v_row': 'tensorstore', 'v_col': 'tensorstore'}


def test_state_that_t5x_has_no_place_for(tmp_path, caplog):
  state = optimizer.adamw().init({'p': jnp.ones((2, 2))})
  assert t5x_writer.adafactor_slots(state, {'p': jnp.ones((2, 2))}) == {}
  assert 'not Adafactor' in caplog.text
  slots = {'lora/a': {'v': np.ones(3)}}
  folder = t5x_writer.write_checkpoint(tmp_path, SMALL, optimizer_state=slots)
  assert 'lora/a' in caplog.text
  assert restore_as_t5x_does(folder)['state/param_states/encoder/a/kernel'] is None
