"""train -> resume -> eval -> infer -> export, through the command line."""

import functools
import json
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from e2e import jsonl

from benchmarks import chaos
from prompt_tuning import partitioning
from prompt_tuning.checkpoints import prompt_file, restore
from prompt_tuning.cli import config, main


@pytest.fixture(scope='module')
def whole(train_argv, tmp_path_factory):
  """A run of 8 steps."""
  model_dir = tmp_path_factory.mktemp('whole') / 'run'
  assert main.main(train_argv(model_dir)) == 0
  return model_dir


@pytest.fixture(scope='module')
def resumed(train_argv, tmp_path_factory):
  """The same, stopped after 4 steps and started again."""
  model_dir = tmp_path_factory.mktemp('resumed') / 'run'
  assert main.main(train_argv(model_dir, TRAIN_STEPS_RELATIVE=4)) == 0
  assert main.main(train_argv(model_dir)) == 0
  return model_dir


def test_artefacts(whole):
  assert {path.name for path in whole.iterdir() if not path.name.startswith('events')} == {
      'cache', 'checkpoints', 'config.gin', 'metrics.jsonl', 'operative_config.gin', 'predictions',
      'prompt.safetensors'}
  assert len(list(whole.glob('events.out.tfevents.*'))) == 1
  rows = jsonl.read(whole / 'metrics.jsonl')
  assert [row['step'] for row in rows] == [2, 4, 4, 6, 8, 8]
  assert {'train/loss', 'train/z_loss', 'train/accuracy', 'train/grad_norm', 'train/padding_share',
          'train/prompt/norm', 'train/prompt/distance'} <= set(rows[0])
  predictions = jsonl.read(whole / 'predictions' / 'step_8.jsonl')
  assert len(predictions) == 8
  assert {'id', 'inputs', 'targets', 'prediction'} <= set(predictions[0])
  assert predictions[0]['inputs'].startswith('say: ')


def test_prompt_file(whole):
  prompt = prompt_file.load_prompt(whole / 'prompt.safetensors')
  assert prompt.array.shape == (3, 32)
  assert prompt.metadata['method'] == 'SoftPrompt'
  assert prompt.metadata['task'] == 'local_text'
  assert len(prompt.metadata['base_fingerprint']) == 64


def test_same_command_again_changes_nothing(whole, train_argv):
  before = (whole / 'metrics.jsonl').read_text()
  assert main.main(train_argv(whole)) == 0
  assert (whole / 'metrics.jsonl').read_text() == before


@pytest.mark.parametrize(('name', 'value', 'words'), [
    ('INITIAL_CHECKPOINT_PATH', '/nowhere', ('/nowhere',)),
    ('BATCH_SIZE', 16, ('BATCH_SIZE: 8 there, 16 here', 'MODEL_DIR')),
    ('INPUT_TEMPLATE', 'tell: {text}', ("INPUT_TEMPLATE: 'say: {text}' there", 'PROMPT_FILE=')),
    ('TASK_FEATURE_LENGTHS', "{'inputs': 9, 'targets': 9}", ('TASK_FEATURE_LENGTHS',)),
    ('LEARNING_RATE', 0.2, ('LEARNING_RATE: 0.1 there, 0.2 here',)),
    ('optimizer.adafactor.decay_rate', 0.7, ('adafactor.decay_rate: 0.8 there, 0.7 here',)),
    ('optimizer.adafactor.beta1', 0.9, ('adafactor.beta1: None there, 0.9 here',)),
])
def test_refused_restart_changes_nothing(whole, train_argv, capsys, name, value, words):
  before = {path.name: path.read_bytes() for path in whole.iterdir() if path.is_file()}
  steps = sorted((whole / 'checkpoints').iterdir())
  assert main.main(train_argv(whole, **{name: value, 'TRAIN_STEPS_RELATIVE': 12})) == 2
  err = capsys.readouterr().err
  assert all(word in err for word in words), err
  assert before == {path.name: path.read_bytes() for path in whole.iterdir() if path.is_file()}
  assert sorted((whole / 'checkpoints').iterdir()) == steps


@pytest.mark.parametrize(('name', 'words'), [
    ('TRAIN_FILE', 'training data'), ('EVAL_FILE', 'evaluation data')])
def test_restart_on_other_data(whole, folder, train_argv, tmp_path, capsys, name, words):
  """The configuration may name another path: the content decides."""
  other = tmp_path / 'other.jsonl'
  source = {'TRAIN_FILE': 'train.jsonl', 'EVAL_FILE': 'dev.jsonl'}[name]
  other.write_text((folder / source).read_text().replace('fine', 'good'))
  assert main.main(train_argv(whole, **{name: other})) == 2
  assert f'{words} (task' in capsys.readouterr().err
  shutil.copy(folder / source, other)
  assert main.main(train_argv(whole, **{name: other})) == 0


def test_a_moved_run_goes_on(train_argv, tmp_path, capsys):
  """MODEL_DIR, periods and what is kept may be given anew."""
  assert main.main(train_argv(tmp_path / 'run', TRAIN_STEPS_RELATIVE=2)) == 0
  (tmp_path / 'run').rename(tmp_path / 'moved')
  capsys.readouterr()
  assert main.main(train_argv(
      tmp_path / 'moved', TRAIN_STEPS_RELATIVE=4, EVAL_PERIOD=2, SAVE_PERIOD=1, WRITE_PERIOD=1,
      KEEP_LAST=1, KEEP_BEST=0, KEEP_EVERY=2, EVAL_BATCH_SIZE=4, NUM_PARTITIONS=2,
      SKIP_NONFINITE_STEPS=3)) == 0
  assert 'Continuing from step 2' in capsys.readouterr().err
  assert sorted(path.name for path in (tmp_path / 'moved' / 'checkpoints').iterdir()) == ['2', '4']


def test_a_save_is_small(whole):
  """At most three times the trainable bytes and 64 KB, configuration and versions included."""
  step = whole / 'checkpoints' / '8'
  size = sum(path.stat().st_size for path in step.rglob('*') if path.is_file())
  assert 1000 < size <= 3 * (3 * 32 * 4) + 64 * 2**10
  saved = json.loads((step / 'run' / 'metadata').read_text())
  assert 'train.TrainConfig' in saved['info']['operative_config']
  assert saved['info']['config']['BATCH_SIZE'] == '8'
  assert saved['info']['plan']['cache'].startswith('local_text-train-')
  assert {'jax', 'optax', 'prompt_tuning'} <= saved['versions'].keys()


def test_versions_that_changed_are_told(train_argv, tmp_path, capsys):
  run = tmp_path / 'run'
  assert main.main(train_argv(run, TRAIN_STEPS_RELATIVE=1)) == 0
  file = run / 'checkpoints' / '1' / 'run' / 'metadata'
  saved = json.loads(file.read_text())
  saved['versions']['jax'] = '0.1'
  file.write_text(json.dumps(saved))
  assert main.main(train_argv(run, TRAIN_STEPS_RELATIVE=2)) == 0
  assert 'by other versions: jax 0.1 there' in capsys.readouterr().err


def test_asked_to_stop_in_an_evaluation(train_argv, folder, tmp_path, monkeypatch, capsys):
  """The evaluation is left where it is and done again by the next start."""
  whole, run = tmp_path / 'whole', tmp_path / 'run'
  argv = functools.partial(train_argv, EVAL_FILE=folder / 'train.jsonl', EVAL_BATCH_SIZE=8)
  assert main.main(argv(whole)) == 0
  placed, place = [], partitioning.shard_batch

  def signal_at_the_fifth(batch, mesh):
    placed.append(batch)
    if len(placed) == 5:  # four steps, then the first of the evaluation's two batches
      signal.raise_signal(signal.SIGTERM)
    return place(batch, mesh)
  with monkeypatch.context() as patch:
    patch.setattr(partitioning, 'shard_batch', signal_at_the_fifth)
    assert main.main(argv(run)) == 75
  assert len(placed) == 5
  assert 'Stopped at step 4 and saved' in capsys.readouterr().err
  assert not (run / 'predictions').exists()
  assert [row['step'] for row in jsonl.read(run / 'metrics.jsonl')] == [2, 4]
  assert main.main(argv(run)) == 0
  rows = [[{name: value for name, value in row.items() if name not in chaos.CLOCKS}
           for row in jsonl.read(model_dir / 'metrics.jsonl')] for model_dir in (whole, run)]
  assert len(rows[0]) == 6 and rows[0] == rows[1]


def test_a_loss_that_is_not_finite(train_argv, tmp_path, capsys):
  """A rate at the end of float32 makes the prompt infinite: the second step's loss is NaN."""
  run = tmp_path / 'run'
  argv = train_argv(run, LEARNING_RATE=3.4e38, WRITE_PERIOD=4)
  for _ in range(2):  # the same command meets the same step
    assert main.main(argv) == 1
    err = capsys.readouterr().err
    assert 'Step 2 was not applied: loss nan' in err and 'SKIP_NONFINITE_STEPS' in err
    assert [path.name for path in (run / 'checkpoints').iterdir()] == ['1']
    bad, = jsonl.read(run / 'nonfinite.jsonl')
    assert bad['step'] == 2 and bad['batch'] == 1 and bad['loss'] == 'nan'
    assert len(bad['examples']) == len(set(bad['examples'])) == 8
    assert (run / 'metrics.jsonl').read_text() == ''


def test_steps_that_are_left_out(train_argv, tmp_path, capsys):
  """Up to a limit, the run goes on; afterwards it ends, and a higher limit takes it further."""
  run = tmp_path / 'run'
  argv = functools.partial(train_argv, run, LEARNING_RATE=3.4e38, EVAL_PERIOD=None, WRITE_PERIOD=1,
                           TRAIN_STEPS_RELATIVE=5)
  assert main.main(argv(SKIP_NONFINITE_STEPS=2)) == 1
  assert [bad['step'] for bad in jsonl.read(run / 'nonfinite.jsonl')] == [2, 3, 4]
  assert max(int(path.name) for path in (run / 'checkpoints').iterdir()) == 3
  capsys.readouterr()
  assert main.main(argv(SKIP_NONFINITE_STEPS=4)) == 0
  assert [bad['step'] for bad in jsonl.read(run / 'nonfinite.jsonl')] == [2, 3, 4, 5]
  assert 'Continuing from step 3' in capsys.readouterr().err


def test_restart_with_another_seed(train_argv, tmp_path, capsys):
  """The base is random here and has its seed in its fingerprint, so the order's seed is changed."""
  assert main.main(train_argv(tmp_path / 'run', TRAIN_STEPS_RELATIVE=1)) == 0
  argv = train_argv(tmp_path / 'run', **{'data.DataConfig.seed': 5})
  assert main.main(argv) == 2
  assert 'data.DataConfig.seed: 0 there, 5 here' in capsys.readouterr().err


def test_best_evaluation_before_the_first_step(train_argv, tmp_path, capsys):
  """A start that stays the best is what eval takes, and the prompt file holds it."""
  run = tmp_path / 'run'
  assert main.main(train_argv(run, EVAL_AT_START=True, BEST_METRIC='accuracy', BEST_MODE='max',
                              EVAL_STEPS=1, TRAIN_STEPS_RELATIVE=2, LEARNING_RATE=1e-7)) == 0
  assert {path.name for path in (run / 'checkpoints').iterdir()} == {'0', '2'}
  assert (run / 'prompt.safetensors').is_file()
  capsys.readouterr()
  assert main.main(['eval', f'--gin.MODEL_DIR={run}']) == 0
  assert 'trained leaves of step 0.' in capsys.readouterr().err
  shutil.rmtree(run / 'checkpoints' / '0')
  assert main.main(['eval', f'--gin.MODEL_DIR={run}']) == 0
  assert 'step 0, which is no longer there: the latest' in capsys.readouterr().err


def test_sampling(train_argv, tmp_path, capsys):
  """Answers are drawn in all three verbs, the same ones for the same RANDOM_SEED."""
  run = tmp_path / 'run'
  assert main.main(train_argv(run, TRAIN_STEPS_RELATIVE=1, DECODE_STRATEGY='sample',
                              TEMPERATURE=2.0, TOP_K=50, MAX_DECODE_LENGTH=6)) == 0
  (tmp_path / 'in.txt').write_text('fine\nfine\n' * 20)
  answers = []
  for seed in (0, 0, 1):
    capsys.readouterr()
    assert main.main(['infer', f'--gin.MODEL_DIR={run}', f'--input={tmp_path / "in.txt"}',
                      f'--gin.infer.InferConfig.seed={seed}', '--gin.EVAL_BATCH_SIZE=8']) == 0
    lines = capsys.readouterr().out.splitlines()
    answers.append([json.loads(line)['prediction'] for line in lines])
  assert answers[0] == answers[1] != answers[2]
  assert len(set(answers[0])) > 1
  assert main.main(['eval', f'--gin.MODEL_DIR={run}']) == 0


def test_eval_of_a_run_on_another_task(whole, tmp_path, capsys):
  """A gin file goes on top of the run's configuration."""
  (tmp_path / 'more.gin').write_text("EVAL_STEPS = 1\nEVAL_BATCH_SIZE = 8\n")
  assert main.main(['eval', f'--gin_file={tmp_path / "more.gin"}', f'--gin.MODEL_DIR={whole}',
                    f'--gin.EVAL_OUTPUT_DIR={tmp_path / "out"}']) == 0
  assert len(jsonl.read(tmp_path / 'out' / 'predictions.jsonl')) == 8
  assert main.main(['eval', '--gin_file=tasks/demo_sentiment.gin', f'--gin.MODEL_DIR={whole}',
                    '--gin.EVAL_STEPS=1', f'--gin.EVAL_OUTPUT_DIR={tmp_path / "other"}',
                    "--gin.TASK_FEATURE_LENGTHS={'inputs': 99, 'targets': 9}"]) == 0
  assert not jsonl.read(tmp_path / 'other' / 'predictions.jsonl')[0]['inputs'].startswith('say: ')


def test_resumed_run_equals_whole_run(whole, resumed):
  rows = [[{name: value for name, value in row.items() if name not in chaos.CLOCKS}
           for row in jsonl.read(run / 'metrics.jsonl')] for run in (whole, resumed)]
  assert len(rows[0]) == 6
  assert rows[0] == rows[1]
  arrays = [prompt_file.load_prompt(run / 'prompt.safetensors').array for run in (whole, resumed)]
  np.testing.assert_array_equal(*arrays)
  assert arrays[0].any()


def test_eval_takes_all_from_the_run(whole, capsys):
  assert main.main(['eval', f'--gin.MODEL_DIR={whole}', '--gin.RANK_LABELS=True']) == 0
  values = json.loads(capsys.readouterr().out)
  assert set(values) == {'accuracy', 'rank/accuracy'}
  assert json.loads((whole / 'eval' / 'metrics.json').read_text()) == values
  best = max(row['eval/accuracy'] for row in jsonl.read(whole / 'metrics.jsonl')
             if 'eval/accuracy' in row)
  assert values['accuracy'] == best
  assert len(jsonl.read(whole / 'eval' / 'predictions.jsonl')) == 8


def test_eval_of_a_prompt_file(whole, train_argv, tmp_path, capsys):
  argv = train_argv(None, run='runs/eval.gin', INITIAL_CHECKPOINT_PATH=None,
                    TRAIN_STEPS_RELATIVE=None, EVAL_PERIOD=None, WRITE_PERIOD=None,
                    LEARNING_RATE=None, CHECKPOINT_PATH='random',
                    PROMPT_FILE=whole / 'prompt.safetensors', EVAL_OUTPUT_DIR=tmp_path / 'out',
                    RANK_LABELS=True)
  assert main.main(['eval', *argv[1:]]) == 0
  values = json.loads(capsys.readouterr().out)
  assert main.main(['eval', f'--gin.MODEL_DIR={whole}', '--gin.RANK_LABELS=True']) == 0
  assert json.loads(capsys.readouterr().out) == values
  assert (tmp_path / 'out' / 'predictions.jsonl').is_file()


def test_infer(whole, tmp_path, capsys, monkeypatch):
  lines = 'fine 111\n\n{"text": "poor 222"}\n{"inputs": "say: poor 222"}\n'
  (tmp_path / 'in.txt').write_text(lines)
  out = tmp_path / 'out.jsonl'
  assert main.main(['infer', f'--gin.MODEL_DIR={whole}', f'--input={tmp_path / "in.txt"}',
                    f'--output={out}', '--gin.RANK_LABELS=True']) == 0
  rows = jsonl.read(out)
  assert [row['inputs'] for row in rows] == ['say: fine 111', 'say: poor 222', 'say: poor 222']
  assert all(set(row) == {'inputs', 'prediction', 'scores'} for row in rows)
  assert set(rows[0]['scores']) == {'yes', 'no'}
  assert rows[1] == rows[2]
  with (tmp_path / 'in.txt').open() as file:
    monkeypatch.setattr(sys, 'stdin', file)
    assert main.main(['infer', f'--gin.MODEL_DIR={whole}']) == 0
  assert len([json.loads(line) for line in capsys.readouterr().out.splitlines()]) == 3


def test_infer_needs_no_training_file(train_argv, folder, tmp_path):
  files = {name: tmp_path / f'{name}.jsonl' for name in ('train', 'dev')}
  for name, path in files.items():
    shutil.copy(folder / f'{name}.jsonl', path)
  assert main.main(train_argv(tmp_path / 'run', TRAIN_FILE=files['train'], EVAL_FILE=files['dev'],
                              TRAIN_STEPS_RELATIVE=1)) == 0
  for path in files.values():
    path.unlink()
  (tmp_path / 'in.txt').write_text('{"text": "fine 111"}\n')
  assert main.main(['infer', f'--gin.MODEL_DIR={tmp_path / "run"}',
                    f'--input={tmp_path / "in.txt"}', f'--output={tmp_path / "out.jsonl"}']) == 0
  assert jsonl.read(tmp_path / 'out.jsonl')[0]['inputs'] == 'say: fine 111'


@pytest.mark.parametrize('file_format', ['npy', 'safetensors'])
def test_export_prompt(whole, tmp_path, file_format):
  output = tmp_path / f'prompt.{file_format}'
  assert main.main(['export', f'--gin.MODEL_DIR={whole}', f'--to={file_format}',
                    f'--output={output}']) == 0
  np.testing.assert_array_equal(
      prompt_file.load_prompt(output).array,
      prompt_file.load_prompt(whole / 'prompt.safetensors').array)


def test_model_tuning_and_its_export(train_argv, tmp_path, capsys):
  """The whole model is trained, exported, and is the base of a prompt."""
  run = tmp_path / 'run'
  assert main.main(train_argv(run, peft='peft/model_tuning.gin', run='runs/finetune.gin',
                              PROMPT_LENGTH=None, TRAIN_STEPS_RELATIVE=4)) == 0
  assert not (run / 'prompt.safetensors').exists()
  assert main.main(['eval', f'--gin.MODEL_DIR={run}', '--gin.RANK_LABELS=True']) == 0
  tuned = json.loads(capsys.readouterr().out)
  assert main.main(['export', f'--gin.MODEL_DIR={run}', '--to=hf',
                    f'--output={tmp_path / "hf"}']) == 0
  assert restore.load_backbone(tmp_path / 'hf').config.emb_dim == 32
  argv = train_argv(None, peft=None, run='runs/eval.gin', INITIAL_CHECKPOINT_PATH=None,
                    TRAIN_STEPS_RELATIVE=None, EVAL_PERIOD=None, WRITE_PERIOD=None,
                    LEARNING_RATE=None, PROMPT_LENGTH=None, CHECKPOINT_PATH=tmp_path / 'hf',
                    RANK_LABELS=True)
  assert main.main(['eval', *argv[1:]]) == 0
  assert json.loads(capsys.readouterr().out) == tuned


@pytest.mark.parametrize('peft', ['peft/lora.gin', 'peft/prefix.gin'])
def test_other_methods(train_argv, tmp_path, peft, capsys):
  length = 2 if 'prefix' in peft else None
  assert main.main(train_argv(tmp_path / 'run', peft=peft, run='runs/finetune.gin',
                              PROMPT_LENGTH=length, TRAIN_STEPS_RELATIVE=2)) == 0
  assert len(prompt_file.load_prompt(tmp_path / 'run' / 'prompt.safetensors').leaves) > 1
  assert main.main(['eval', f'--gin.MODEL_DIR={tmp_path / "run"}']) == 0
  assert 'accuracy' in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize('peft', ['peft/prompt.gin', 'peft/lora.gin'])
def test_every_option_at_once(train_argv, tmp_path, peft, capsys):
  """Scanned and rematerialised layers, bfloat16 or int8, model parallelism, micro-batches."""
  run = tmp_path / 'run'
  length = 3 if 'prompt' in peft else None
  assert main.main(train_argv(
      run, peft=peft, PROMPT_LENGTH=length, TRAIN_STEPS_RELATIVE=2, SCAN_LAYERS=True,
      REMAT_POLICY='full', PARAM_DTYPE='int8' if 'lora' in peft else 'bfloat16',
      ACTIVATION_DTYPE='bfloat16', NUM_PARTITIONS=2, NUM_MICROBATCHES=2,
      GRADIENT_CLIP_NORM=1.0, LOSS_NORMALIZING_FACTOR='AVERAGE_PER_SEQUENCE',
      LABEL_SMOOTHING=0.1, DECODE_STRATEGY='beam', BEAM_SIZE=2)) == 0
  leaves = prompt_file.load_prompt(run / 'prompt.safetensors').leaves
  assert not [path for path in leaves if '/layers/' in path]
  assert main.main(['eval', f'--gin.MODEL_DIR={run}']) == 0
  assert 'accuracy' in json.loads(capsys.readouterr().out)


def test_warm_start(whole, train_argv, tmp_path):
  """PROMPT_FILE is where training starts: after no step, the prompt is still the file's."""
  run = tmp_path / 'run'
  assert main.main(train_argv(run, PROMPT_FILE=whole / 'prompt.safetensors', LEARNING_RATE=0,
                              WEIGHT_DECAY=0, TRAIN_STEPS_RELATIVE=1)) == 0
  np.testing.assert_array_equal(
      prompt_file.load_prompt(run / 'prompt.safetensors').array,
      prompt_file.load_prompt(whole / 'prompt.safetensors').array)


@pytest.mark.parametrize('verb', ['train', 'eval', 'infer', 'export'])
def test_dry_run_touches_no_file(whole, train_argv, tmp_path, capsys, verb):
  argv = {'train': train_argv(tmp_path / 'run'),
          'export': ['export', f'--gin.MODEL_DIR={whole}', '--to=npy',
                     f'--output={tmp_path / "x.npy"}']}
  before = sorted(whole.rglob('*'))
  assert main.main([*argv.get(verb, [verb, f'--gin.MODEL_DIR={whole}']), '--dry_run']) == 0
  out = capsys.readouterr().out
  assert ('nothing is written' if verb == 'export' else 'trainable 96') in out
  assert list(tmp_path.iterdir()) == []
  assert sorted(whole.rglob('*')) == before


def test_without_tensorflow(train_argv, tmp_path):
  """Training and evaluating a local_text task where TensorFlow and SeqIO cannot be imported."""
  code = f"""
import sys
for name in ('tensorflow', 'tensorflow_datasets', 'tensorflow_text', 'seqio', 't5'):
  sys.modules[name] = None  # an import of it fails
from prompt_tuning.cli import main
argv = {train_argv(tmp_path / 'run', TRAIN_STEPS_RELATIVE=2)!r}
assert main.main(argv) == 0
assert main.main(['eval', '--gin.MODEL_DIR={tmp_path / "run"}']) == 0
"""
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                        cwd=pathlib.Path(__file__).parents[2])
  assert done.returncode == 0, done.stderr
  assert 'accuracy' in json.loads(done.stdout)


def test_config_gin_is_complete(whole):
  """The saved configuration needs no other file and no override."""
  config.parse([str(whole / 'config.gin')])
  assert config.macro('PROMPT_LENGTH') == 3
