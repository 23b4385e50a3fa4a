"""`train --dry_run` with MESH: the compiled step's figures and the verdict."""

import pytest

from benchmarks import scale
from prompt_tuning.cli import dry_run as dry_run_lib
from prompt_tuning.cli import footprint, main
from prompt_tuning.errors import UserError


@pytest.fixture
def dry_run(tmp_path, capsys):
  """Runs a tiny model; returns the exit code and all that was printed."""
  (tmp_path / 'train.jsonl').write_text('{"text": "good", "label": "yes"}\n' * 8)
  bindings = dict(
      INITIAL_CHECKPOINT_PATH='random', VOCABULARY='bytes', TRAIN_FILE=tmp_path / 'train.jsonl',
      EVAL_FILE=tmp_path / 'train.jsonl', MODEL_DIR=tmp_path / 'run', BATCH_SIZE=8,
      SCAN_LAYERS=True, PARAMETER_PARTITIONING_DIMS=2)
  shape = dict(emb_dim=16, num_heads=4, head_dim=4, mlp_dim=24, num_encoder_layers=1,
               num_decoder_layers=1)

  def run(**more):
    flags = [f'--gin.{name}={value}' for name, value in {**bindings, **more}.items()]
    flags += [f'--gin.t5.T5Config.{name}={value}' for name, value in shape.items()]
    files = ('models/byt5_small.gin', 'peft/prompt.gin', 'tasks/local_text.gin', 'runs/train.gin')
    code = main.main(['train', '--dry_run', *(f'--gin_file={file}' for file in files), *flags])
    return code, ''.join(capsys.readouterr())
  return run


def test_compiled_for_a_mesh(dry_run, tmp_path):
  code, out = dry_run(MESH='2x4', DEVICE_MEMORY='0.1MB')
  assert code == 0
  assert "Devices: 8 cpu, mesh {'data': 2, 'model': 4}" in out
  for words in ('compiled for 8 virtual devices', 'FLOPs of matrix products', 'all-reduce: ',
                'all-gather: ', "With PACKING='auto'", 'Verdict (compiled): does not fit',
                'Less memory: '):
    assert words in out, words
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('mesh', ['8x1', '4x2'])
def test_closed_form_of_a_fully_sharded_model(mesh):
  """Much of a small model's memory on many devices is what they have of each other."""
  cell = 'small', mesh, 'float32', 'model_tuning'
  sizes = dry_run_lib.estimate(*scale.configure(*cell))
  together = scale.measure(*cell)['together']
  assert sum(sizes.values()) == pytest.approx(together, rel=0.1)
  assert sizes['parameters gathered from other devices'] > 0.1 * together


def test_estimated_without_a_mesh(dry_run):
  code, out = dry_run(DEVICE_MEMORY='16GiB')
  assert code == 0
  assert 'compiled' not in out and 'Verdict (estimated): fits' in out


@pytest.mark.parametrize('bindings, words', [
    (dict(MESH='4x8'), 'needs 32 virtual devices and this process has started with 8'),
    (dict(MESH='big'), "as in '4x8'"), (dict(MESH='8x1', BATCH_SIZE=12), 'give a multiple of 8'),
    (dict(DEVICE_MEMORY='much'), "as in '16GiB' or '80GB'")])
def test_refused(dry_run, bindings, words):
  code, out = dry_run(**bindings)
  assert code == 2 and words in out


def test_of_another_verb_takes_virtual_devices_too(capsys):
  argv = ['eval', '--dry_run', '--gin.CHECKPOINT_PATH=demo', *(f'--gin_file={file}' for file in (
      'models/from_checkpoint.gin', 'peft/prompt.gin', 'tasks/sst2.gin', 'runs/eval.gin'))]
  assert main.main([*argv, '--gin.MESH=2x2']) == 0
  assert "Devices: 4 cpu, mesh {'data': 2, 'model': 2}" in capsys.readouterr().out
  assert main.main([*argv, '--gin.MESH=4x8']) == 2
  assert 'needs 32 virtual devices' in capsys.readouterr().err


def test_memory_size():
  sizes = {'16GiB': 2**34, '80 GB': 80 * 10**9, '1.5gib': 3 * 2**29, 1000: 1000, '512MB': 512e6}
  assert {given: footprint.memory_size(given) for given in sizes} == sizes
  with pytest.raises(UserError, match='DEVICE_MEMORY'):
    footprint.memory_size('-1GB')
