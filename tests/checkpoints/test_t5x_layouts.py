"""Every layout of T5X checkpoints that is known, built on the spot and read to the last bit."""

import pathlib

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore
from flax import serialization

from prompt_tuning import params as params_lib
from prompt_tuning.checkpoints import restore, stored, t5x
from prompt_tuning.checkpoints.location import Location, locate
from prompt_tuning.checkpoints.names import PROMPT
from prompt_tuning.errors import UserError

ORBAX = {'zarr': {'use_ocdbt': False}, 'OCDBT': {'use_ocdbt': True},
         'zarr3': {'use_ocdbt': False, 'use_zarr3': True},
         'OCDBT of zarr3': {'use_ocdbt': True, 'use_zarr3': True}}


@pytest.fixture(scope='module')
def target(golden_dir):
  """{path: array} of the reference checkpoint."""
  with np.load(golden_dir / 't5x_small' / 'ckpt_prompt_expected.npz') as arrays:
    return {path.removeprefix('target/'): arrays[path] for path in arrays.files
            if path.startswith('target/')}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  monkeypatch.setattr(stored, 'BLOCK_BYTES', 1000)


def zarr(folder, name, array, *, driver='file', path='{}/', compressor='gzip', chunks=1,
         beside=False, bare=False):
  """Writes an array; returns its entry in the index. `chunks`: how many along each axis."""
  own = name.replace('/', '.')
  metadata = {'shape': list(array.shape), 'chunks': [-(-n // chunks) for n in array.shape],
              'compressor': compressor and {'id': compressor}}
  spec = {'driver': 'zarr', 'dtype': array.dtype.name, 'metadata': metadata}
  inside = folder / (path.format(own).strip('/') if path.startswith('in_') else own)
  tensorstore.open({**spec, 'kvstore': {'driver': 'file', 'path': f'{inside}/'}},
                   create=True).result().write(array).result()
  kvstore = {'driver': driver, **({'bucket': 't5x-dummy-bucket'} if driver == 'gcs' else {})}
  place = {'path': path.format(own, folder=folder)}
  if bare:
    return {'driver': 'zarr', 'kvstore': kvstore | place}
  return {**spec, 'kvstore': kvstore, **place} if beside else {**spec, 'kvstore': kvstore | place}


def write(folder, index):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'checkpoint').write_bytes(serialization.msgpack_serialize(index))


def build(folder, target, inline=lambda path: False, state=None, top=False, **form):
  """A checkpoint with the arrays that `inline` picks inside the index, the others in zarr."""
  folder.mkdir(parents=True)
  leaves = {path: array if inline(path) else zarr(folder, f'target/{path}', array, **form)
            for path, array in target.items()}
  root = {'target': params_lib.unflatten(leaves),
          'state': {'step': np.asarray(7, np.int32), 'param_states': None} | (state or {})}
  write(folder, root if top else {'version': 3, 'optimizer': root})


def check(path, target, step=7):
  model = t5x.open_checkpoint(path)
  assert model.step == step and model.arrays.keys() == target.keys()
  compared = 0
  for name, array in model.arrays.items():
    value = array.read()
    assert value.dtype == target[name].dtype and value.shape == target[name].shape
    assert value.tobytes() == target[name].tobytes(), name
    compared += 1
  assert compared == 53
  return model


SMALL = ('scale', 'rel_embedding')
FORMS = {
    'all in the index': {'inline': lambda path: True},
    'norms and biases in the index': {'inline': lambda path: path.endswith(SMALL)},
    'all in zarr': {},
    'without optimizer': {'top': True},
    **{f'compressor {name}': {'compressor': name} for name in ('zstd', 'blosc', 'bz2', 'zlib')},
    'not compressed': {'compressor': None},
    'many chunks': {'chunks': 3},
    'many chunks, not compressed': {'chunks': 3, 'compressor': None},
    'gfile': {'driver': 'gfile'},
    'gcs': {'driver': 'gcs'},
    'no slash': {'path': '{}'},
    'path beside the kvstore': {'beside': True, 'driver': 'gcs'},
    'folder in the checkpoint': {'path': 'in_it/{}/'},
    'folder of the writer': {'path': 'checkpoint_7/{}/'},
    'absolute path': {'path': '{folder}/{}/'},
    'first orbax': {'bare': True, 'top': True, 'path': '/elsewhere/checkpoint_7.orbax-tmp-1/{}'},
    'absolute path of the writer': {'path': '/elsewhere/checkpoint_7.tmp-1/{}/'},
}


@pytest.mark.parametrize('form', FORMS.values(), ids=FORMS)
def test_every_value(target, tmp_path, form):
  build(tmp_path / 'checkpoint_7', target, **form)
  check(tmp_path, target)


def test_bfloat16(target, tmp_path):
  rounded = {path: array.astype(ml_dtypes.bfloat16) for path, array in target.items()}
  build(tmp_path / 'checkpoint_7', rounded, inline=lambda path: path.endswith(SMALL), chunks=2)
  model = check(tmp_path, rounded)
  widened = model.arrays[PROMPT].read(np.float32)
  assert widened.tobytes() == rounded[PROMPT].astype(np.float32).tobytes()


def test_arrays_in_pieces(target, tmp_path, monkeypatch):
  monkeypatch.setattr(serialization, 'MAX_CHUNK_SIZE', 1000)
  build(tmp_path / 'checkpoint_7', target, inline=lambda path: True)
  assert b'__msgpack_chunked_array__' in (tmp_path / 'checkpoint_7' / 'checkpoint').read_bytes()
  check(tmp_path, target)


STATES = {
    'none': {'param_states': None},
    'None for each': {'param_states': {'encoder': {'prompt': None}}},
    'slots': {'param_states': {'x': {'m': np.zeros(1, np.float32), 'v': np.ones((2, 3))}}},
    'optax': {'param_states': {'0': {'count': 3, 'v': {'x': np.ones(2)}}, '1': {}}},
    'step of rank 1': {'step': np.asarray([7], np.int32)},
    'step as a number': {'step': 7},
    'step as a scalar': {'step': np.int64(7)},
}


@pytest.mark.parametrize('state', STATES.values(), ids=STATES)
def test_forms_of_the_state(target, tmp_path, state):
  build(tmp_path / 'checkpoint_7', target, inline=lambda path: True, state=state)
  model = check(tmp_path, target)
  expected = {path: np.asarray(leaf) for path, leaf in
              params_lib.flatten(state.get('param_states') or {}).items() if leaf is not None}
  assert model.optimizer_state.keys() == {path for path, leaf in expected.items() if leaf.size}
  for path, array in model.optimizer_state.items():
    np.testing.assert_array_equal(array.read(), expected[path])


def test_no_state_at_all(target, tmp_path):
  write(tmp_path / 'checkpoint_7', {'target': params_lib.unflatten(target)})
  assert check(tmp_path, target, step=None).optimizer_state == {}


def save(folder, target, **options):
  """What orbax as installed makes of T5X's train state."""
  state = {'step': np.asarray(7, np.int32), 'param_states': {
      'p': {'v': np.ones((2, 3), np.float32), 'unused': None}}}
  ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)).save(
      folder, {'target': params_lib.unflatten(target), 'state': state})


@pytest.mark.parametrize('options', ORBAX.values(), ids=ORBAX)
@pytest.mark.parametrize('inside', ['state', ''])
def test_orbax(target, tmp_path, inside, options):
  folder = tmp_path / 'checkpoint_7'
  save(folder / inside, target, **options)
  (tmp_path / 'checkpoint_9.orbax-checkpoint-tmp-1' / 'state').mkdir(parents=True)
  for path in (tmp_path, folder, folder / inside):
    assert t5x.is_checkpoint(path)
  model = check(tmp_path, target)
  assert {path: array.shape for path, array in model.optimizer_state.items()} == {'p/v': (2, 3)}
  assert t5x.find(folder / inside, 7) == t5x.find(tmp_path)


@pytest.mark.parametrize('inside', ['state', ''])
def test_orbax_with_placeholders(target, tmp_path, inside):
  """As the first versions wrote: a msgpack file that names the arrays beside it."""
  folder = tmp_path / 'checkpoint_7' / inside
  for path, array in target.items():
    zarr(folder, f'target/{path}', array)
  zarr(folder, 'state/param_states/p/v', np.ones((2, 3), np.float32))
  named = {path: 'PLACEHOLDER://target.' + path.replace('/', '.') for path in target}
  write(folder, {'target': params_lib.unflatten(named), 'state': {
      'step': np.asarray(7, np.int32),
      'param_states': {'p': {'v': 'PLACEHOLDER://state.param_states.p.v', 'unused': None}}}})
  for path in (tmp_path, folder / 'checkpoint'):
    assert list(check(path, target).optimizer_state) == ['p/v']
  (folder / 'target.decoder.decoder_norm.scale' / '.zarray').unlink()
  with pytest.raises(UserError, match=r"'target.decoder.decoder_norm.scale'.*is not there"):
    t5x.open_checkpoint(tmp_path)


def test_orbax_chunk_that_is_lost_is_not_zero(target, tmp_path):
  for name in ('zarr', 'zarr3'):
    folder = tmp_path / name / 'checkpoint_7'
    save(folder, target, **ORBAX[name])
    lost = [file for file in (folder / 'target.token_embedder.embedding').rglob('*')
            if file.is_file() and file.name not in ('.zarray', 'zarr.json')]
    assert len(lost) == 1
    lost[0].unlink()
    array = t5x.open_checkpoint(folder).arrays['token_embedder/embedding']
    with pytest.raises(UserError, match='Cannot read .*token_embedder'):
      array.read()


def test_orbax_of_something_else(tmp_path):
  ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).save(tmp_path / 'x', {'a': np.zeros(2)})
  with pytest.raises(UserError, match='no `target`'):
    t5x.open_checkpoint(tmp_path / 'x')


@pytest.mark.parametrize('path, spec', [
    ('gs://bucket-1/models/base/', {'driver': 'gcs', 'bucket': 'bucket-1', 'path': 'models/base/'}),
    (pathlib.Path('gs://bucket-1/a'), {'driver': 'gcs', 'bucket': 'bucket-1', 'path': 'a/'}),
    ('gs://bucket-1', {'driver': 'gcs', 'bucket': 'bucket-1', 'path': ''}),
    ('file:///models/base', {'driver': 'file', 'path': '/models/base/'}),
    ('/models/base/', {'driver': 'file', 'path': '/models/base/'}),
])
def test_kvstore_of_a_location(path, spec):
  assert locate(path).kvstore() == spec
  tensorstore.KvStore.Spec(spec)


def test_parts_of_a_bucket():
  location = locate('gs://bucket-1/a/checkpoint_7/checkpoint')
  assert str(location.parent) == 'gs://bucket-1/a/checkpoint_7'
  assert location.parent.name == 'checkpoint_7'
  assert location.parent.child('target.x/').kvstore() == {
      'driver': 'gcs', 'bucket': 'bucket-1', 'path': 'a/checkpoint_7/target.x/'}
  with pytest.raises(ValueError, match='leaves the checkpoint folder'):
    location.inside('../../b')
  with pytest.raises(UserError, match='gs://bucket'):
    locate('s3://bucket/x')


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """Serves gs://bucket-1 from a folder; yields the specifications that were asked for."""
  asked = []

  def redirect(real):
    def opened(spec, *args, **kwargs):
      asked.append(spec)
      return real(local(spec), *args, **kwargs)
    return opened

  def local(spec):
    if not isinstance(spec, dict):
      return spec
    if spec.get('driver') == 'gcs':
      assert spec['bucket'] == 'bucket-1'
      return {'driver': 'file', 'path': f'{tmp_path}/{spec["path"]}'}
    return {key: local(value) for key, value in spec.items()}

  monkeypatch.setattr(tensorstore, 'open', redirect(tensorstore.open))
  monkeypatch.setattr(tensorstore.KvStore, 'open',
                      staticmethod(redirect(tensorstore.KvStore.open)))
  return asked


@pytest.mark.parametrize('form', [{}, {'driver': 'gcs'}, {'inline': lambda path: True}],
                         ids=['file', 'gcs', 'all in the index'])
def test_read_from_a_bucket(target, tmp_path, bucket, form):
  build(tmp_path / 'models' / 'checkpoint_7', target, **form)
  build(tmp_path / 'models' / 'checkpoint_3', {})
  (tmp_path / 'models' / 'checkpoint_9.tmp-123').mkdir()
  bucket.clear()
  assert t5x.is_checkpoint('gs://bucket-1/models') and not bucket
  check('gs://bucket-1/models', target)
  check('gs://bucket-1/models/checkpoint_7/checkpoint', target)
  assert restore.open_model('gs://bucket-1/models').source == 'gs://bucket-1/models/checkpoint_7'
  arrays = [spec for spec in bucket if spec['driver'] == 'zarr']
  if 'inline' not in form:
    assert arrays[0]['kvstore'].keys() == {'driver', 'bucket', 'path'}
    assert arrays[0]['kvstore']['path'].startswith('models/checkpoint_7/target.')
  assert bool(arrays) == ('inline' not in form)


@pytest.mark.parametrize('options', ORBAX.values(), ids=ORBAX)
def test_orbax_from_a_bucket(target, tmp_path, bucket, options):
  save(tmp_path / 'models' / 'checkpoint_7' / 'state', target, **options)
  check('gs://bucket-1/models', target)


def test_nothing_in_the_bucket(bucket):
  with pytest.raises(UserError, match='gs://bucket-1/none holds no T5X checkpoint'):
    t5x.open_checkpoint('gs://bucket-1/none')


def test_bucket_that_does_not_answer(monkeypatch):
  def opened(spec, context=None):
    if context is not None:  # the first question
      assert context['gcs_request_retries'].to_json()['max_retries'] == 5
    raise ValueError('no network')
  monkeypatch.setattr(tensorstore.KvStore, 'open', staticmethod(opened))
  with pytest.raises(UserError, match='Cannot list gs://bucket-1/none: no network.* credentials'):
    t5x.open_checkpoint('gs://bucket-1/none')
  with pytest.raises(OSError, match='no network'):
    Location('a', 'bucket-1').open('checkpoint')
