"""Run checkpoints: every bit back, small, the best and the newest kept, damage survived."""

import logging
import pathlib
import resource
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prompt_tuning.checkpoints.run import RunCheckpoints
from prompt_tuning.errors import UserError

PROMPT = jnp.asarray(np.random.default_rng(0).normal(size=(100, 64)), jnp.float32)
OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adafactor(0.3, min_dim_size_to_factor=128, momentum=None))


def state(seed=0):
  trainable = {'encoder': {'prompt': {'prompt': {'prompt': PROMPT + seed}}}}
  with jax.numpy_dtype_promotion('standard'):
    opt_state = OPTIMIZER.init(trainable)
    _, opt_state = OPTIMIZER.update(jax.tree.map(jnp.sin, trainable), opt_state, trainable)
  return {'trainable': trainable, 'opt_state': opt_state, 'rng': jax.random.key(seed),
          'old_rng': jax.random.PRNGKey(seed), 'step': jnp.asarray(seed, jnp.int32)}


def bits(leaf):
  leaf = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
  leaf = np.asarray(leaf)
  return leaf.dtype, leaf.shape, leaf.tobytes()


def equal(a, b) -> int:
  """Compares structure and bits; returns how many leaves were compared."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  leaves = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
  assert all(bits(x) == bits(y) for x, y in leaves)
  return len(leaves)


def size(folder) -> int:
  return sum(p.stat().st_size for p in pathlib.Path(folder).rglob('*') if p.is_file())


@pytest.fixture
def checkpoints(tmp_path):
  with RunCheckpoints(tmp_path / 'run', keep_last=2) as opened:
    yield opened


def test_round_trip(checkpoints):
  info = {'data_index': 320, 'history': [{'step': 7, 'loss': 0.1 + 0.2}], 'text': 'ü'}
  assert checkpoints.save(7, state(7), info, score=0.5)
  restored = checkpoints.restore(state(0))
  assert restored.step == 7 and restored.info == info
  assert equal(restored.arrays, state(7)) >= 8
  assert isinstance(restored.arrays['opt_state'], tuple)


def test_resume_from_a_new_process(tmp_path):
  with RunCheckpoints(tmp_path / 'run') as first:
    assert first.latest_step() is None and first.best_step() is None and first.info() == {}
    first.save(3, state(3), {'data_index': 96}, score=0.5)
  with RunCheckpoints(tmp_path / 'run') as second:
    assert second.latest_step() == second.best_step() == 3 and second.score(3) == 0.5
    assert second.info() == {'data_index': 96}
    like = jax.eval_shape(lambda: state(0))
    assert equal(second.restore(like).arrays, state(3)) >= 8


def test_odd_leaves(checkpoints):
  tree = {
      'bf16': jnp.arange(5, dtype=jnp.bfloat16) / jnp.asarray(3, jnp.bfloat16),
      'host': np.arange(4, dtype=np.int64), 'half': np.arange(3).astype(ml_dtypes.bfloat16),
      'empty': jnp.zeros((0, 3)), 'scalar': jnp.asarray(1.5), 'flag': np.asarray(True),
      'nan': jnp.asarray([np.nan, -0.0, np.inf, 1e-45], jnp.float32), 'none': None,
      'list': [jnp.ones(2), (jnp.zeros(1),)], 'dotted.name/slash': jnp.ones(1)}
  checkpoints.save(1, tree)
  restored = checkpoints.restore(tree).arrays
  assert equal(restored, tree) == 10
  assert isinstance(restored['host'], np.ndarray) and isinstance(restored['bf16'], jax.Array)


def test_a_save_is_small(checkpoints):
  trainable_bytes = PROMPT.nbytes
  checkpoints.save(1, state(1), {'data_index': 1, 'history': [{'loss': 0.1}] * 20})
  checkpoints.wait()
  assert size(checkpoints.directory) < 2 * trainable_bytes + 16 * 2**10


def test_saved_values_survive_donation(checkpoints):
  values = {'x': jnp.arange(100_000, dtype=jnp.float32)}
  expected = np.asarray(values['x']).copy()
  checkpoints.save(1, values)
  step = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
  for _ in range(5):
    values['x'] = step(values['x'])
  values['x'].block_until_ready()
  restored = checkpoints.restore({'x': jax.ShapeDtypeStruct((100_000,), jnp.float32)})
  np.testing.assert_array_equal(restored.arrays['x'], expected)


def scored(folder, scores, **options):
  with RunCheckpoints(folder, **options) as opened:
    for step, score in scores.items():
      opened.save(step, {'x': jnp.asarray(float(step))}, score=score)
    opened.wait()
    return opened.all_steps(), opened.best_step()


@pytest.mark.parametrize('options, kept, best', [
    ({'keep_last': 1}, [20, 60], 20),
    ({'keep_last': 2, 'keep_best': 0}, [50, 60], None),
    ({'keep_last': 1, 'keep_best': 2}, [20, 40, 60], 20),
    ({'keep_last': 1, 'maximize': False}, [10, 60], 10),
    ({'keep_last': 1, 'keep_every': 30}, [20, 30, 60], 20),
])
def test_what_is_kept(tmp_path, options, kept, best):
  scores = {10: 0.1, 20: 0.9, 30: float('nan'), 40: 0.9, 50: None, 60: 0.5}
  steps, best_step = scored(tmp_path / 'run', scores, **options)
  assert steps == kept
  assert sorted(int(p.name) for p in (tmp_path / 'run').iterdir()) == kept
  assert best_step == (best if best is not None else 60)


def test_the_best_of_an_earlier_process_is_kept(tmp_path):
  scored(tmp_path / 'run', {1: 0.9, 2: 0.1})
  steps, best = scored(tmp_path / 'run', {3: 0.2, 4: 0.3})
  assert steps == [1, 4] and best == 1
  with RunCheckpoints(tmp_path / 'run', create=False) as reader:
    assert reader.restore({'x': jnp.zeros(())}, reader.best_step()).arrays['x'] == 1


def test_the_same_step_is_not_written_twice(checkpoints):
  assert checkpoints.save(1, {'x': jnp.ones(1)})
  assert not checkpoints.save(1, {'x': jnp.zeros(1)})
  assert checkpoints.restore({'x': jnp.zeros(1)}).arrays['x'] == 1


def test_a_step_that_is_replaced(checkpoints):
  checkpoints.save(1, {'x': jnp.ones(1)}, {'a': 1})
  assert checkpoints.save(1, {'x': jnp.zeros(1)}, {'a': 2}, score=0.5, replace=True)
  restored = checkpoints.restore({'x': jnp.ones(1)})
  assert restored.arrays['x'] == 0 and restored.info == {'a': 2}
  assert checkpoints.best_step() == 1
  assert [path.name for path in checkpoints.directory.iterdir()] == ['1']


def test_killed_while_a_step_is_replaced(tmp_path):
  """Whether or not the new one has become whole, one of the two is there."""
  with RunCheckpoints(tmp_path / 'run') as first:
    first.save(1, {'x': jnp.ones(1)})
  shutil.copytree(tmp_path / 'run' / '1', tmp_path / 'new')
  (tmp_path / 'run' / '1').rename(tmp_path / 'run' / 'replaced_1')
  with RunCheckpoints(tmp_path / 'run') as second:
    assert second.restore({'x': jnp.zeros(1)}).arrays['x'] == 1
  shutil.copytree(tmp_path / 'new', tmp_path / 'run' / 'replaced_1')
  with RunCheckpoints(tmp_path / 'run') as third:
    assert third.all_steps() == [1]
  assert [path.name for path in (tmp_path / 'run').iterdir()] == ['1']


def test_versions(checkpoints):
  checkpoints.save(1, {'x': jnp.ones(1)})
  versions = checkpoints.restore({'x': jnp.ones(1)}).versions
  assert versions['jax'] == jax.__version__
  assert {'prompt_tuning', 'jaxlib', 'optax', 'orbax-checkpoint', 'python'} <= versions.keys()


def test_training_goes_on_while_a_save_is_written(checkpoints):
  """A save of 64 MB returns before the disk has it."""
  values = {'x': np.random.default_rng(0).normal(size=2**23)}
  checkpoints.save(1, values)
  assert not (checkpoints.directory / '1').exists()
  checkpoints.wait()
  assert (checkpoints.directory / '1').is_dir()


@pytest.fixture
def large_files_forbidden():
  """A limit on the size of a file, which the system enforces as it does a full disk."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_save_that_does_not_fit(tmp_path, large_files_forbidden):
  noise = np.random.default_rng(0).normal(size=20_000)
  with RunCheckpoints(tmp_path / 'run') as first:
    first.save(1, {'x': noise})
    first.wait()
    large_files_forbidden(50_000)
    first.save(2, {'x': noise})
    with pytest.raises(UserError, match='Saving to .*run failed: File too large. The checkpoints'):
      first.save(3, {'x': noise})
    large_files_forbidden(-1)
  with RunCheckpoints(tmp_path / 'run') as second:
    assert equal(second.restore({'x': noise}).arrays, {'x': noise}) == 1
    assert second.all_steps() == [1]


def test_a_folder_that_is_gone(checkpoints):
  checkpoints.save(1, {'x': jnp.ones(1)})
  checkpoints.wait()
  shutil.rmtree(checkpoints.directory)
  with pytest.raises(UserError, match='the folder is gone'):
    checkpoints.save(2, {'x': jnp.ones(1)})
  assert not checkpoints.directory.exists()


def test_a_file_in_place_of_the_folder(checkpoints):
  checkpoints.save(1, {'x': jnp.ones(1)})
  checkpoints.wait()
  shutil.rmtree(checkpoints.directory)
  checkpoints.directory.write_text('')
  with pytest.raises(UserError, match='Saving to .* failed'):
    checkpoints.save(2, {'x': jnp.ones(1)})


def test_part_of_a_checkpoint(checkpoints):
  checkpoints.save(7, state(7))
  like = {'trainable': state(0)['trainable']}
  assert equal(checkpoints.restore(like, partial=True).arrays,
               {'trainable': state(7)['trainable']}) == 1
  with pytest.raises(UserError, match='opt_state/.* is left over'):
    checkpoints.restore(like)


@pytest.mark.parametrize('like, message', [
    ({'x': jnp.zeros(4), 'more': jnp.zeros(1)}, 'more is not in it'),
    ({'x': jnp.zeros(5)}, r'x is float32\[4\] in it and float32\[5\] in this run'),
    ({'x': jnp.zeros(4, jnp.bfloat16)}, r'x is float32\[4\] in it and bfloat16\[4\]'),
    ({'y': jnp.zeros(4)}, 'y is not in it; x is left over'),
    ({'x': jax.random.key(0)}, r'uint32\[2\] in this run'),
])
def test_another_structure_is_refused(checkpoints, like, message):
  checkpoints.save(1, {'x': jnp.zeros(4)})
  with pytest.raises(UserError, match=message):
    checkpoints.restore(like)


def test_steps_that_are_not_there(checkpoints):
  with pytest.raises(UserError, match='holds no checkpoint'):
    checkpoints.restore({})
  checkpoints.save(1, {'x': jnp.zeros(4)})
  with pytest.raises(UserError, match=r'holds no step 5; it holds \[1\]'):
    checkpoints.restore({'x': jnp.zeros(4)}, 5)


def damage(folder):
  """Cuts every data file of a step short."""
  files = [p for p in folder.rglob('*') if p.is_file()]
  assert len(files) > 5
  for file in files:
    file.write_bytes(file.read_bytes()[:file.stat().st_size // 2])


def test_damaged_newest_falls_back(tmp_path, caplog):
  with RunCheckpoints(tmp_path / 'run', keep_last=2) as first:
    first.save(1, state(1), {'data_index': 1}, score=0.9)
    first.save(2, state(2), {'data_index': 2}, score=0.1)
  damage(tmp_path / 'run' / '2')
  with RunCheckpoints(tmp_path / 'run', keep_last=2) as second:
    with caplog.at_level(logging.WARNING):
      restored = second.restore(state(0))
    assert restored.step == 1 and restored.info == {'data_index': 1}
    assert equal(restored.arrays, state(1)) >= 8
    assert 'run/2 cannot be read' in caplog.text
    assert second.all_steps() == [1] and second.best_step() == 1
    # The damaged folder is aside: its step can be written anew and it pushes nothing out.
    assert second.save(2, state(5))
    assert equal(second.restore(state(0)).arrays, state(5)) >= 8
  assert len(list((tmp_path / 'run').glob('damaged_2_*'))) == 1


def test_a_reader_leaves_a_damaged_step_alone(tmp_path):
  with RunCheckpoints(tmp_path / 'run', keep_last=2) as first:
    first.save(1, state(1), {'data_index': 1})
    first.save(2, state(2))
  damage(tmp_path / 'run' / '2')
  with RunCheckpoints(tmp_path / 'run', create=False) as reader:
    assert reader.restore(state(0)).step == 1
    with pytest.raises(UserError, match='run/2 cannot be read'):
      reader.restore(state(0), 2)
    with pytest.raises(UserError, match='run/2 cannot be read'):
      reader.info(2)
    assert reader.info() == {'data_index': 1}
  assert (tmp_path / 'run' / '2').is_dir()


def test_unfinished_saves_are_ignored_and_cleared(tmp_path):
  unfinished = tmp_path / 'run' / '9.orbax-checkpoint-tmp'
  unfinished.mkdir(parents=True)
  with RunCheckpoints(tmp_path / 'run', create=False) as reader:
    assert reader.all_steps() == []
  assert unfinished.exists()
  with RunCheckpoints(tmp_path / 'run') as writer:
    writer.save(1, {'x': jnp.zeros(1)})
    writer.wait()
    assert writer.all_steps() == [1]
  assert not unfinished.exists()


def test_reading_makes_no_folder(tmp_path):
  with RunCheckpoints(tmp_path / 'none', create=False) as reader:
    assert reader.latest_step() is None
  assert not (tmp_path / 'none').exists()


def test_placed_as_their_counterparts(checkpoints):
  mesh = Mesh(np.array(jax.devices()), ('data',))
  sharding = NamedSharding(mesh, PartitionSpec('data'))
  value = jax.device_put(jnp.arange(16.0), sharding)
  checkpoints.save(1, {'x': value})
  other = NamedSharding(Mesh(np.array(jax.devices()[:2]), ('data',)), PartitionSpec('data'))
  for target in (sharding, other):
    like = {'x': jax.ShapeDtypeStruct((16,), jnp.float32, sharding=target)}
    restored = checkpoints.restore(like).arrays['x']
    assert restored.sharding == target
    np.testing.assert_array_equal(restored, np.arange(16.0))
  assert not checkpoints.restore({'x': jnp.zeros(16)}).arrays['x'].committed


@pytest.mark.parametrize('options', [
    {'keep_last': 0}, {'keep_best': -1}, {'keep_every': 0}])
def test_options_are_checked(tmp_path, options):
  with pytest.raises(UserError, match='keep_last is'):
    RunCheckpoints(tmp_path, **options)


def test_a_folder_that_cannot_be_made(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='Cannot use .*file/run for checkpoints'):
    RunCheckpoints(tmp_path / 'file' / 'run')
