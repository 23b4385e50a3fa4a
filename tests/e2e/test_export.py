"""What a run hands to others, and what others hand to a run."""

import json

import numpy as np
import pytest

from prompt_tuning import params as params_lib
from prompt_tuning.checkpoints import prompt_file, restore, t5x
from prompt_tuning.checkpoints.names import PROMPT
from prompt_tuning.cli import main


@pytest.fixture(scope='module', params=[{}, {'SCAN_LAYERS': True, 'PARAM_DTYPE': 'bfloat16'}],
                ids=['looped', 'scanned bf16'])
def run(request, train_argv, tmp_path_factory):
  """A run of 4 steps from a random base, evaluated at its end."""
  folder = tmp_path_factory.mktemp('run') / 'run'
  assert main.main(train_argv(folder, TRAIN_STEPS_RELATIVE=4, **request.param)) == 0
  return folder


def export(run, to, output, *flags):
  assert main.main(['export', f'--gin.MODEL_DIR={run}', f'--to={to}', f'--output={output}',
                    *flags]) == 0


def test_t5x_goes_on_where_the_run_ended(run, train_argv, tmp_path):
  export(run, 't5x', tmp_path)
  model = t5x.open_checkpoint(tmp_path / 'checkpoint_4')
  assert model.step == 4
  prompt = prompt_file.load_prompt(run / 'prompt.safetensors').array
  np.testing.assert_array_equal(model.arrays[PROMPT].read(), prompt)
  np.testing.assert_array_equal(
      prompt_file.load_prompt(tmp_path / 'numpy_checkpoints' / 'checkpoint_4').array, prompt)
  moments = {path: array.read() for path, array in model.optimizer_state.items()
             if path.startswith(PROMPT)}
  assert moments[f'{PROMPT}/v'].shape == prompt.shape and (moments[f'{PROMPT}/v'] > 0).all()
  # T5X's run is a base for the next one: the step counts on, the prompt is there.
  again = tmp_path / 'again'
  assert main.main(train_argv(
      again, INITIAL_CHECKPOINT_PATH=tmp_path, PROMPT_FILE=tmp_path, LEARNING_RATE=0,
      WEIGHT_DECAY=0, TRAIN_STEPS_RELATIVE=1)) == 0
  np.testing.assert_array_equal(prompt_file.load_prompt(again / 'prompt.safetensors').array, prompt)
  assert [int(p.name) for p in (again / 'checkpoints').iterdir() if p.name.isdigit()] == [5]


def test_peft_and_back(run, train_argv, tmp_path):
  export(run, 'peft', tmp_path / 'adapter')
  settings = json.loads((tmp_path / 'adapter' / 'adapter_config.json').read_text())
  assert settings['peft_type'] == 'PROMPT_TUNING' and settings['num_virtual_tokens'] == 3
  # An adapter folder is a PROMPT_FILE like any other.
  again = tmp_path / 'again'
  assert main.main(train_argv(again, PROMPT_FILE=tmp_path / 'adapter', LEARNING_RATE=0,
                              WEIGHT_DECAY=0, TRAIN_STEPS_RELATIVE=1)) == 0
  np.testing.assert_array_equal(
      prompt_file.load_prompt(again / 'prompt.safetensors').array,
      prompt_file.load_prompt(run / 'prompt.safetensors').array)


@pytest.mark.parametrize('to', ['t5x', 'peft', 'npy', 'safetensors'])
def test_dry_run(run, tmp_path, capsys, to):
  suffix = f'.{to}' if to in ('npy', 'safetensors') else ''
  export(run, to, tmp_path / f'x{suffix}', '--dry_run')
  out = capsys.readouterr().out
  assert 'Dry run' in out and '[3, 32]' in out and not any(tmp_path.iterdir())
  if to == 't5x':
    assert 'decoder/layers_0/mlp/wo/kernel' in out


def test_lora_merged_and_as_an_adapter(train_argv, tmp_path):
  """Trained on int8; merged into the base as it was, and trained on upon it."""
  run = tmp_path / 'run'
  assert main.main(train_argv(run, peft='peft/lora.gin', run='runs/finetune.gin',
                              PROMPT_LENGTH=None, TRAIN_STEPS_RELATIVE=2, PARAM_DTYPE='int8')) == 0
  for to in ('hf', 't5x', 'peft'):
    export(run, to, tmp_path / to)
  hf, merged = (restore.load_backbone(tmp_path / to).params for to in ('hf', 't5x'))
  assert params_lib.fingerprint(hf) == params_lib.fingerprint(merged)
  settings = json.loads((tmp_path / 'peft' / 'adapter_config.json').read_text())
  assert (settings['r'], settings['lora_alpha']) == (8, 16)
  again = tmp_path / 'again'
  assert main.main(train_argv(again, peft='peft/lora.gin', run='runs/finetune.gin',
                              PROMPT_LENGTH=None, PROMPT_FILE=tmp_path / 'peft', LEARNING_RATE=0,
                              WEIGHT_DECAY=0, TRAIN_STEPS_RELATIVE=1)) == 0
  ours, theirs = (prompt_file.load_prompt(folder / 'prompt.safetensors').leaves
                  for folder in (again, run))
  assert ours.keys() == theirs.keys() and len(ours) > 4
  for path in ours:
    np.testing.assert_array_equal(ours[path], theirs[path])


def test_an_adapter_of_another_scale_is_refused(train_argv, tmp_path, capsys):
  run = tmp_path / 'run'
  lora = dict(peft='peft/lora.gin', run='runs/finetune.gin', PROMPT_LENGTH=None,
              TRAIN_STEPS_RELATIVE=1)
  assert main.main(train_argv(run, **lora)) == 0
  argv = train_argv(tmp_path / 'again', PROMPT_FILE=run / 'prompt.safetensors', LORA_ALPHA=8,
                    **lora)
  assert main.main(argv) == 2
  assert 'LoRA.scale is 2.0 in the file and 1.0 in the configuration' in capsys.readouterr().err


@pytest.mark.parametrize('flags', [[], ['--dry_run']], ids=['real', 'dry'])
def test_a_prompt_has_no_place_in_weights(run, tmp_path, capsys, flags):
  assert main.main(['export', f'--gin.MODEL_DIR={run}', '--to=hf', f'--output={tmp_path / "x"}',
                    *flags]) == 2
  assert 'SoftPrompt cannot be merged' in capsys.readouterr().err
  assert not any(tmp_path.iterdir())
