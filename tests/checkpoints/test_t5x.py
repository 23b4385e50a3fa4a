"""T5X native checkpoints: both reference layouts bit for bit, and damaged ones refused."""

import json
import shutil

import ml_dtypes
import msgpack
import numpy as np
import pytest
import tensorstore
from flax import serialization

from prompt_tuning.checkpoints import stored, t5x
from prompt_tuning.errors import UserError

LAYOUTS = ('ckpt_prompt_gzip', 'ckpt_prompt_raw')


@pytest.fixture(params=LAYOUTS)
def checkpoint(request, golden_dir):
  return golden_dir / 't5x_small' / request.param


@pytest.fixture
def copy(golden_dir, tmp_path):
  """A checkpoint that a test may damage."""
  source = golden_dir / 't5x_small' / 'ckpt_prompt_raw' / 'checkpoint_7'
  return shutil.copytree(source, tmp_path / 'checkpoint_7')


@pytest.fixture(scope='module')
def expected(golden_dir):
  with np.load(golden_dir / 't5x_small' / 'ckpt_prompt_expected.npz') as arrays:
    return dict(arrays)


def rewrite(folder, change):
  """Applies `change` to the decoded index, whose arrays stay as they are."""
  path = folder / 'checkpoint'
  index = serialization.msgpack_restore(path.read_bytes())
  change(index)
  path.write_bytes(serialization.msgpack_serialize(index))


def test_every_value(checkpoint, expected, golden_dir, monkeypatch):
  monkeypatch.setattr(stored, 'BLOCK_BYTES', 1000)  # several blocks an array
  names = json.loads((golden_dir / 't5x_small' / 'ckpt_prompt_names.json').read_text())
  model = t5x.open_checkpoint(checkpoint)
  targets = {name.removeprefix('target/') for name in names if name.startswith('target/')}
  assert model.arrays.keys() == targets
  compared = 0
  for path, array in model.arrays.items():
    reference = expected['target/' + path]
    value = array.read()
    assert [list(value.shape), value.dtype.name] == names['target/' + path]
    assert value.tobytes() == reference.tobytes(), path
    compared += 1
  assert compared == 53


def test_step_and_optimizer_state(checkpoint, expected):
  model = t5x.open_checkpoint(checkpoint)
  assert model.step == int(expected['step']) == 7
  prompt = 'encoder/prompt/prompt/prompt'
  assert {p: a.shape for p, a in model.optimizer_state.items()} == {
      f'{prompt}/m': (1,), f'{prompt}/v': (6, 32), f'{prompt}/v_col': (1,), f'{prompt}/v_row': (1,)}
  v = model.optimizer_state[f'{prompt}/v'].read()
  assert v.tobytes() == expected['prompt_v'].tobytes()


def test_shape_is_read_off_the_arrays(checkpoint):
  config = t5x.open_checkpoint(checkpoint).config
  assert (config.vocab_size, config.emb_dim, config.num_heads, config.head_dim, config.mlp_dim,
          config.num_encoder_layers, config.num_decoder_layers) == (256, 32, 4, 8, 64, 2, 2)
  assert config.mlp_activations == ('gelu', 'linear') and not config.logits_via_embedding


@pytest.mark.parametrize('inside', ['', 'checkpoint_7', 'checkpoint_7/checkpoint'])
def test_forms_of_the_path(checkpoint, inside):
  assert t5x.is_checkpoint(checkpoint / inside)
  assert t5x.find(checkpoint / inside).local == checkpoint / 'checkpoint_7'
  assert t5x.find(str(checkpoint / inside), 7).local == checkpoint / 'checkpoint_7'
  assert t5x.find(f'file://{checkpoint / inside}').local == checkpoint / 'checkpoint_7'


def test_latest_and_by_step(copy):
  shutil.copytree(copy, copy.parent / 'checkpoint_10')
  (copy.parent / 'checkpoint_99').mkdir()  # without an index: unfinished
  assert t5x.find(copy.parent).name == 'checkpoint_10'
  assert t5x.find(copy.parent, 7).name == 'checkpoint_7'
  with pytest.raises(UserError, match=r'no checkpoint of step 8; it holds \[7, 10\]'):
    t5x.find(copy.parent, 8)


def test_casting_while_reading(checkpoint, expected):
  path = 'token_embedder/embedding'
  value = t5x.open_checkpoint(checkpoint).arrays[path].read(ml_dtypes.bfloat16)
  assert value.tobytes() == expected['target/' + path].astype(ml_dtypes.bfloat16).tobytes()


def test_arrays_inside_the_index(copy, expected):
  def inline(index):
    target = index['optimizer']['target']
    target['decoder']['decoder_norm']['scale'] = expected['target/decoder/decoder_norm/scale']
    table = expected['target/token_embedder/embedding']
    target['token_embedder']['embedding'] = {
        '__msgpack_chunked_array__': True, 'shape': {'0': 256, '1': 32},
        'chunks': {str(i): part for i, part in enumerate(np.split(table.reshape(-1), 4))}}
    target['encoder']['encoder_norm']['scale'] = np.arange(32).astype(ml_dtypes.bfloat16)
  rewrite(copy, inline)
  arrays = t5x.open_checkpoint(copy).arrays
  for path in ('decoder/decoder_norm/scale', 'token_embedder/embedding'):
    assert arrays[path].read().tobytes() == expected['target/' + path].tobytes()
  assert arrays['encoder/encoder_norm/scale'].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize('driver', ['file', 'gfile', 'gcs'])
@pytest.mark.parametrize('compressor', [None, {'id': 'zstd'}, {'id': 'gzip', 'level': 1}])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_other_ways_to_store_an_array(copy, driver, compressor, dtype):
  values = np.random.default_rng(0).normal(size=(300, 32)).astype(np.dtype(dtype))
  metadata = {'shape': [300, 32], 'chunks': [70, 20], 'compressor': compressor}
  spec = {'driver': 'zarr', 'dtype': dtype, 'metadata': metadata}
  kvstore = {'driver': 'file', 'path': str(copy / 'target.other') + '/'}
  tensorstore.open({**spec, 'kvstore': kvstore}, create=True).result().write(values).result()
  stored_as = {'driver': driver, 'path': 'target.other',
               **({'bucket': 'somewhere'} if driver == 'gcs' else {})}
  rewrite(copy, lambda index: entry(index).update({**spec, 'kvstore': stored_as}))
  array = t5x.open_checkpoint(copy).arrays['token_embedder/embedding']
  assert array.read().tobytes() == values.tobytes() and array.dtype == values.dtype


def entry(index):
  return index['optimizer']['target']['token_embedder']['embedding']


@pytest.mark.parametrize('path', [
    '../outside/', '/etc', 'a/../../b', '', '.', 'link/', 'nul\0/'])
def test_path_that_leaves_the_folder(copy, path):
  (copy.parent / 'outside').mkdir()
  (copy / 'link').symlink_to(copy.parent / 'outside')
  rewrite(copy, lambda index: entry(index)['kvstore'].update(path=path))
  with pytest.raises(UserError, match='bad entry for token_embedder/embedding'):
    t5x.open_checkpoint(copy).arrays['token_embedder/embedding'].read()


@pytest.mark.parametrize('change', [
    {'dtype': 'complex99'}, {'driver': 'json'}, {'metadata': {}}, {'kvstore': 'x'},
    {'metadata': {'shape': [-1, 32]}}, {'metadata': {'shape': ['256', 32]}},
    {'kvstore': {'path': 7}}, {'metadata': 3}])
def test_bad_entry(copy, change):
  rewrite(copy, lambda index: entry(index).update(change))
  with pytest.raises(UserError, match='bad entry for token_embedder/embedding'):
    t5x.open_checkpoint(copy)


def test_bfloat16_of_the_first_versions(copy):
  rewrite(copy, lambda index: entry(index).update(dtype='uint16'))
  with pytest.raises(UserError, match='token_embedder/embedding is uint16.* save it again'):
    t5x.open_checkpoint(copy)


def test_index_and_array_disagree(copy):
  rewrite(copy, lambda index: entry(index)['metadata'].update(shape=[10**9, 32]))
  array = t5x.open_checkpoint(copy).arrays['token_embedder/embedding']
  with pytest.raises(UserError, match=r'Cannot read .*token_embedder/embedding.*The array says'):
    array.read()


def rewrite_array(folder, **change):
  file = folder / 'target.token_embedder.embedding' / '.zarray'
  file.write_text(json.dumps(json.loads(file.read_text()) | change))


@pytest.mark.parametrize('change', [
    {'shape': [10**9, 32]}, {'shape': [10**17, 32]}, {'shape': [10**9, 32], 'fill_value': 0.0},
    {'shape': [10**7, 32], 'chunks': [10**7, 32], 'compressor': {'id': 'gzip', 'level': 1}}])
def test_shape_that_the_files_cannot_hold(copy, change):
  rewrite_array(copy, **change)
  rewrite(copy, lambda index: entry(index)['metadata'].update(shape=change['shape']))
  array = t5x.open_checkpoint(copy).arrays['token_embedder/embedding']
  with pytest.raises(UserError, match='Cannot read .*token_embedder/embedding.*cannot hold'):
    array.read()


def test_chunk_of_an_absurd_size(copy):
  rewrite_array(copy, chunks=[10**14, 1000])  # tensorstore would end the process
  array = t5x.open_checkpoint(copy).arrays['token_embedder/embedding']
  with pytest.raises(UserError, match='Cannot read .*token_embedder/embedding.*chunks of'):
    array.read()


@pytest.mark.parametrize('what', ['chunk', 'array'])
def test_link_out_of_the_checkpoint(copy, what):
  linked = copy / 'target.token_embedder.embedding'
  linked = linked if what == 'array' else linked / '3.0'
  linked.rename(copy.parent / 'elsewhere')
  linked.symlink_to(copy.parent / 'elsewhere')
  with pytest.raises(UserError, match='token_embedder.embedding.*link out of the checkpoint'):
    t5x.open_checkpoint(copy).arrays['token_embedder/embedding'].read()


def test_linked_checkpoint(copy, expected):
  """A link to the checkpoint as a whole is the user's own."""
  (copy.parent / 'linked').symlink_to(copy)
  array = t5x.open_checkpoint(copy.parent / 'linked').arrays['token_embedder/embedding']
  assert array.read().tobytes() == expected['target/token_embedder/embedding'].tobytes()


@pytest.mark.parametrize('step', ['seven', [7], 7.5, {'a': 1}])
def test_step_that_is_no_number(copy, step):
  rewrite(copy, lambda index: index['optimizer']['state'].update(step=step))
  with pytest.raises(UserError, match='state'):
    t5x.open_checkpoint(copy)


@pytest.mark.parametrize('damage', ['missing', 'truncated', 'no .zarray'])
def test_damaged_array(copy, damage):
  chunks = copy / 'target.token_embedder.embedding'
  if damage == 'missing':
    (chunks / '3.0').unlink()
  elif damage == 'truncated':
    (chunks / '3.0').write_bytes((chunks / '3.0').read_bytes()[:100])
  else:
    (chunks / '.zarray').unlink()
  array = t5x.open_checkpoint(copy).arrays['token_embedder/embedding']
  with pytest.raises(UserError, match='Cannot read .*token_embedder/embedding'):
    array.read()


def bad_extension(code, payload):
  return msgpack.packb({'optimizer': {'target': {'x': msgpack.ExtType(code, payload)}}})


@pytest.mark.parametrize('raw', [
    b'', b'model_checkpoint_path: "model.ckpt-1"', msgpack.packb([1]), msgpack.packb({'a': 1})[:-1],
    bad_extension(1, msgpack.packb(([10**12], 'float32', b'abc'))),
    bad_extension(1, msgpack.packb(([1], 'object', b'12345678'))),
    bad_extension(1, msgpack.packb(([-1], 'uint8', b'x'))),
    bad_extension(2, b''), b'\x81\xa1a' * 5000])
def test_not_an_index(tmp_path, raw):
  (tmp_path / 'checkpoint').write_bytes(raw)
  with pytest.raises(UserError, match='is not the msgpack index'):
    t5x.open_checkpoint(tmp_path)


def test_index_without_parameters(tmp_path):
  (tmp_path / 'checkpoint').write_bytes(msgpack.packb({'optimizer': {'state': {}}}))
  with pytest.raises(UserError, match='no `target`'):
    t5x.open_checkpoint(tmp_path)


def test_nothing_there(tmp_path):
  with pytest.raises(UserError, match='holds no T5X checkpoint'):
    t5x.open_checkpoint(tmp_path / 'none')


def test_opening_reads_no_array(copy):
  for chunk in copy.glob('*/[0-9]*'):
    chunk.unlink()
  assert len(t5x.open_checkpoint(copy).arrays) == 53
