"""A packed run: exact when continued in the middle of an epoch, and measured alike unpacked."""

import json

import numpy as np
import pytest

from prompt_tuning.checkpoints import prompt_file
from prompt_tuning.cli import main

EQUAL = ('train/loss', 'train/accuracy', 'train/grad_norm', 'train/examples', 'train/tokens')
MEASURED = ('eval/loss_per_token', 'eval/accuracy')


def test_a_packed_run_continued_and_measured_unpacked(train_argv, texts, tmp_path, capsys):
  def run(name, steps=4, **options):
    assert main.main(train_argv(
        tmp_path / name, TRAIN_FILE=texts / 'train.jsonl', EVAL_FILE=texts / 'dev.jsonl',
        TASK_FEATURE_LENGTHS="{'inputs': 192, 'targets': 8}", METRICS='[]', BATCH_SIZE=16,
        DROPOUT_RATE=0.0, EVAL_PERIOD=2, WRITE_PERIOD=1, TRAIN_STEPS_RELATIVE=steps,
        PACKING=True, **options)) == 0
    return capsys.readouterr().err

  log = run('packed', EVAL_PACKING=True)
  assert 'FLOPs spent on padding:' in log and 'PACKING=True: packed, ' in log
  assert 'FLOPs of an evaluation:' in log and 'EVAL_PACKING=True: packed, ' in log
  run('stopped', steps=2, EVAL_PACKING=False)
  run('stopped', EVAL_PACKING=False)
  rows = [[json.loads(line) for line in
           (tmp_path / name / 'metrics.jsonl').read_text().splitlines()]
          for name in ('packed', 'stopped')]
  for kind, names, steps in (('train/loss', EQUAL, [1, 2, 3, 4]), (MEASURED[0], MEASURED, [2, 4])):
    packed, stopped = ([row for row in each if kind in row] for each in rows)
    assert [row['step'] for row in packed] == [row['step'] for row in stopped] == steps
    for one, other in zip(packed, stopped, strict=True):
      for name in names:
        assert one[name] == (other[name] if names is EQUAL else
                             pytest.approx(other[name], rel=1e-5)), name
  prompts = [prompt_file.load_prompt(tmp_path / name / 'prompt.safetensors').array
             for name in ('packed', 'stopped')]
  assert prompts[0].any()
  np.testing.assert_array_equal(*prompts)
