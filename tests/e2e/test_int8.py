"""A run on a base in int8: stopped and continued, evaluated, and used."""

import numpy as np
import pytest
from e2e import jsonl

from prompt_tuning.checkpoints import prompt_file
from prompt_tuning.cli import main

INT8 = {'PARAM_DTYPE': 'int8', 'SCAN_LAYERS': True}


@pytest.fixture(scope='module')
def runs(train_argv, tmp_path_factory):
  """Folders of a run in one go and of one that was stopped half-way."""
  folder = tmp_path_factory.mktemp('int8')
  for name, steps in (('whole', 8), ('stopped', 4), ('stopped', 8)):
    assert main.main(train_argv(folder / name, TRAIN_STEPS_RELATIVE=steps, **INT8)) == 0
  return folder / 'whole', folder / 'stopped'


def losses(run):
  return [row['train/loss'] for row in jsonl.read(run / 'metrics.jsonl') if 'train/loss' in row]


def test_resumed_run_equals_whole_run(runs):
  assert len(losses(runs[0])) == 4
  assert losses(runs[0]) == losses(runs[1])
  prompts = [prompt_file.load_prompt(run / 'prompt.safetensors').array for run in runs]
  assert prompts[0].any()
  np.testing.assert_array_equal(*prompts)


def test_the_base_is_read_in_int8_again(runs, tmp_path):
  """Evaluation and inference keep the run's int8; the float base gives other scores."""
  (tmp_path / 'in.txt').write_text('fine 111\npoor 222\n')

  def scores(name, *flags):
    out = tmp_path / f'{name}.jsonl'
    assert main.main(['infer', f'--gin.MODEL_DIR={runs[0]}', f'--input={tmp_path / "in.txt"}',
                      f'--output={out}', '--gin.RANK_LABELS=True', *flags]) == 0
    return np.array([list(row['scores'].values()) for row in jsonl.read(out)])

  small = scores('run')
  np.testing.assert_array_equal(small, scores('int8', '--gin.PARAM_DTYPE=int8'))
  wide = scores('float32', '--gin.PARAM_DTYPE=float32')
  assert 0 < np.abs(small - wide).max() < 0.05 * np.abs(wide).max()
  assert main.main(['eval', f'--gin.MODEL_DIR={runs[0]}',
                    f'--gin.EVAL_OUTPUT_DIR={tmp_path / "eval"}']) == 0
  again = jsonl.read(tmp_path / 'eval' / 'predictions.jsonl')
  assert again in [jsonl.read(path) for path in (runs[0] / 'predictions').iterdir()]
