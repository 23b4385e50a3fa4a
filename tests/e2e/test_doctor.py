"""`prompt-tuning doctor` catches deliberate mistakes and finds nothing wrong with what ships."""

import json

import pytest

from prompt_tuning.cli import doctor, main

FROZEN = """\
from __gin__ import dynamic_registration

import optax

include 'runs/train.gin'

OPTIMIZER = @optax.set_to_zero()
"""


@pytest.fixture
def examined(train_argv, tmp_path, capsys):
  """Runs the doctor; (exit code, what it printed)."""
  def run(**changes):
    argv = train_argv(tmp_path / 'run', **changes)
    code = main.main(['doctor', *argv[1:]])
    printed = capsys.readouterr()
    assert 'Traceback' not in printed.err
    return code, ' '.join((printed.out or printed.err).split())
  return run


@pytest.fixture
def without_steps(monkeypatch):
  """Leaves out what compiles the model, for mistakes that are found without it."""
  monkeypatch.setattr(doctor, '_probe', lambda *_: [])
  monkeypatch.setattr(doctor, '_ask_untuned', lambda *_: [])


def demo_argv(peft, run, folder):
  return ['doctor', '--gin_file=models/demo.gin', f'--gin_file={peft}',
          '--gin_file=tasks/demo_nli.gin', f'--gin_file={run}', f'--gin.MODEL_DIR={folder}']


def rows_file(tmp_path, rows):
  path = tmp_path / 'rows.jsonl'
  path.write_text(''.join(json.dumps({'text': text, 'label': label}) + '\n'
                          for text, label in rows))
  return path


def test_the_demo(tmp_path, capsys):
  """All checks; the other methods are tried without steps below."""
  assert main.main(demo_argv('peft/prompt.gin', 'runs/demo.gin', tmp_path)) == 0
  out = ' '.join(capsys.readouterr().out.split())
  assert out.endswith(' 0 problems, 0 warnings.')
  for topic in ('trained parameters', 'class balance', 'score to beat', 'vocabulary', 'gradient',
                'untuned answers'):
    assert f'note {topic}: ' in out
  assert [path.name for path in tmp_path.iterdir()] == ['cache']


@pytest.mark.usefixtures('without_steps')
@pytest.mark.parametrize(('peft', 'run'), [
    ('peft/prefix.gin', 'runs/demo.gin'), ('peft/model_tuning.gin', 'runs/demo_finetune.gin')])
def test_the_demo_with_other_methods(peft, run, tmp_path, capsys):
  assert main.main(demo_argv(peft, run, tmp_path)) == 0
  assert capsys.readouterr().out.endswith('\n0 problems, 0 warnings.\n')


@pytest.mark.usefixtures('without_steps')
def test_a_learning_rate_of_zero(examined):
  code, out = examined(LEARNING_RATE=0.0)
  assert code == 1
  assert 'problem learning rate: The optimizer does not answer to the gradient' in out
  assert 'cause The rate is 0' in out and 'next Raise LEARNING_RATE' in out
  assert '1 problem, 0 warnings.' in out


@pytest.mark.usefixtures('without_steps')
def test_everything_frozen(examined, folder):
  (folder / 'frozen.gin').write_text(FROZEN)
  code, out = examined(run='frozen.gin')
  assert code == 1
  assert 'problem learning rate: ' in out and 'it freezes all' in out


def test_a_pattern_that_matches_nothing(examined):
  code, out = examined(peft='peft/lora.gin', PROMPT_LENGTH=None, LORA_TARGETS='.*/nothing')
  assert code == 1
  assert 'problem refused: ' in out and "'(?:.*/nothing)/lora/[ab]'" in out


def test_a_vocabulary_that_is_too_large(examined):
  from prompt_tuning.checkpoints import restore
  code, out = examined(VOCABULARY=restore.demo_folder() / 'spiece.model')
  assert code == 1
  assert 'problem refused: The vocabulary has 3100 ids and the model 384' in out


@pytest.mark.usefixtures('without_steps')
def test_a_vocabulary_of_another_model(examined):
  code, out = examined(model='models/demo.gin', INITIAL_CHECKPOINT_PATH='demo', VOCABULARY='bytes')
  assert code == 1
  assert 'problem vocabulary: ByteVocabulary' in out and 'their pieces differ' in out


def test_labels_that_are_unknown(examined, tmp_path):
  rows = rows_file(tmp_path, [('fine', 'yes'), ('poor', 'no'), ('bad', 'never')] * 4)
  code, out = examined(TRAIN_FILE=rows)
  assert code == 1
  assert 'problem refused: ' in out and "'never'" in out


def test_labels_in_place_of_the_examples(examined):
  code, out = examined(CLASS_LABELS="['good', 'bad']")
  assert code == 2  # the first row shows it, while the command line is read
  assert "'good'" in out and "'yes'" in out


def test_targets_cut_to_one_token(examined):
  code, out = examined(TASK_FEATURE_LENGTHS="{'inputs': 32, 'targets': 1}")
  assert code == 1
  assert 'problem refused: ' in out and 'cuts targets to 1' in out


@pytest.mark.usefixtures('without_steps')
def test_all_examples_of_one_class(examined, tmp_path):
  rows = rows_file(tmp_path, [(f'fine {i}', 'yes') for i in range(8)])
  code, out = examined(TRAIN_FILE=rows)
  assert code == 1
  assert "problem one class: All 8 examples of train that were looked at are 'yes'." in out


@pytest.mark.usefixtures('without_steps')
def test_duplicates(examined, folder):
  code, out = examined(EVAL_FILE=folder / 'train.jsonl')
  assert code == 0
  assert 'warning duplicates: 16 of 16 examples of validation' in out


def test_dry_run(tmp_path, capsys):
  argv = demo_argv('peft/prompt.gin', 'runs/demo.gin', tmp_path / 'run')
  assert main.main([*argv, '--dry_run']) == 0
  assert 'trainable 512' in capsys.readouterr().out
  assert not (tmp_path / 'run').exists()


def test_train_says_what_the_doctor_says_and_goes_on(train_argv, tmp_path, capsys):
  assert main.main(train_argv(
      tmp_path / 'run', LEARNING_RATE=0.0, TRAIN_STEPS_RELATIVE=4)) == 0
  err = capsys.readouterr().err
  assert 'Problem: learning rate: ' in err
  assert 'Note: score to beat: ' in err
  assert 'Warning: prompt not moving: After step 2' in err


def test_train_without_the_doctor(train_argv, tmp_path, capsys):
  assert main.main(train_argv(
      tmp_path / 'run', LEARNING_RATE=0.0, TRAIN_STEPS_RELATIVE=2, DOCTOR=False)) == 0
  err = capsys.readouterr().err
  assert 'step 2/2' in err
  assert 'learning rate' not in err and 'prompt not moving' not in err
