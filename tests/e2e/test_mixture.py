"""Mixtures and few-shot runs through the command line."""

import json

import numpy as np
import pytest

from prompt_tuning.checkpoints import prompt_file
from prompt_tuning.cli import main

TASKS = ('demo_nli', 'demo_sentiment')
METRICS = {f'{task}/accuracy' for task in TASKS}


@pytest.fixture
def argv(train_argv, tmp_path):
  """The command line of a run on a mixture of two tasks."""
  def build(name, **options):
    unused = dict.fromkeys(('TRAIN_FILE', 'EVAL_FILE', 'INPUT_TEMPLATE', 'CLASS_LABELS'))
    settings = {'MIXTURE_TASKS': list(TASKS), 'EVAL_STEPS': 1, 'EVAL_PERIOD': 2, 'WRITE_PERIOD': 1,
                'TASK_FEATURE_LENGTHS': "{'inputs': 64, 'targets': 10}"}
    return train_argv(tmp_path / name, task='tasks/mixture.gin', **unused | settings | options)
  return build


def of_steps(folder, kind):
  rows = map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines())
  clocks = ('per_second', 'time')
  return [{k: v for k, v in row.items() if not k.endswith(clocks)}
          for row in rows if any(name.startswith(f'{kind}/') for name in row)]


def test_a_mixture_of_a_few_examples(argv, tmp_path, capsys):
  options = dict(MIXTURE_RATES='[3, 1]', PACKING=True, BEST_METRIC='demo_nli/accuracy',
                 CACHE_DIR=tmp_path / 'cache', FEW_SHOT_EXAMPLES=6, FEW_SHOT_DEV=True)
  for name, steps in (('whole', 4), ('parts', 2), ('parts', 4)):
    assert main.main(argv(name, TRAIN_STEPS_RELATIVE=steps, **options)) == 0
  log = capsys.readouterr().err
  assert ('An epoch of demo_nli+demo_sentiment: 18 of the 12 examples of demo_nli, 6 of the 12 '
          'examples of demo_sentiment.') in log
  assert 'class balance: demo_sentiment: train' in log
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  for kind, steps in (('train', [1, 2, 3, 4]), ('eval', [2, 4])):
    assert [row['step'] for row in of_steps(whole, kind)] == steps
    assert of_steps(whole, kind) == of_steps(parts, kind)
  np.testing.assert_array_equal(*(
      prompt_file.load_prompt(folder / 'prompt.safetensors').array for folder in (whole, parts)))
  found = {name.removeprefix('eval/'): value for name, value in of_steps(whole, 'eval')[-1].items()}
  assert set(found) == {'step', 'average'} | METRICS
  assert found['average'] == np.mean([found[name] for name in METRICS])

  chosen = json.loads((whole / 'few_shot.json').read_text())
  for task in TASKS:
    train, dev = chosen['train'][task], chosen['dev'][task]
    assert len({*train, *dev}) == len(train) + len(dev) == 24
    rows = (whole / 'predictions' / task / 'step_4.jsonl').read_text().splitlines()
    assert len(rows) == 8 and {json.loads(row)['id'] for row in rows} <= set(dev)
  info = json.loads((whole / 'checkpoints' / '4' / 'run' / 'metadata').read_text())['info']
  assert info['few_shot'] == chosen and info['plan']['draws'] == [18, 6]

  for name, value, there in (('MIXTURE_RATES', '[1, 1]', '[3, 1]'), ('FEW_SHOT_SEED', 8, 0)):
    assert main.main(argv('parts', **options | {name: value})) == 2
    assert f'{name}: {there} there, {value} here' in capsys.readouterr().err

  again = [f'--gin.MODEL_DIR={whole}', f'--gin_search_paths={argv("x")[1].split("=")[1]}']
  assert main.main(['eval', *again]) == 0
  values = json.loads(capsys.readouterr().out)
  assert set(values) == {'average', *METRICS}
  predictions = (whole / 'eval' / 'demo_nli' / 'predictions.jsonl').read_text().splitlines()
  assert not {json.loads(row)['id'] for row in predictions} & set(chosen['dev']['demo_nli'])
  lines = tmp_path / 'lines.txt'
  lines.write_text('the film is a joy\n')
  infer = ['infer', *again, f'--input={lines}', f'--output={tmp_path / "answers.jsonl"}']
  assert main.main(infer) == 2
  assert 'is a mixture' in capsys.readouterr().err
  assert main.main([*infer, "--gin.MIXTURE_TASKS=['demo_sentiment']"]) == 0
  assert len((tmp_path / 'answers.jsonl').read_text().splitlines()) == 1


def test_the_doctor_looks_at_each_task(argv, capsys):
  main.main(['doctor', *argv('none')[1:]])
  out = capsys.readouterr().out
  assert 'refused' not in out
  for task in TASKS:
    assert f'class balance: {task}: train' in ' '.join(out.split())
