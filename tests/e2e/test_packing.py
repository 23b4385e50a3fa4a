"""A packed run: exact when continued, and the same numbers as with one example a row."""

import json

import numpy as np
import pytest

from prompt_tuning.checkpoints import prompt_file
from prompt_tuning.cli import main

EQUAL = ('train/loss', 'train/accuracy', 'train/grad_norm', 'train/examples', 'train/tokens')


def test_packing_changes_nothing_but_the_rows(train_argv, texts, tmp_path, capsys):
  def run(name, steps=4, **options):
    assert main.main(train_argv(
        tmp_path / name, TRAIN_FILE=texts / 'train.jsonl', EVAL_FILE=texts / 'dev.jsonl',
        TASK_FEATURE_LENGTHS="{'inputs': 192, 'targets': 8}", METRICS='[]', BATCH_SIZE=16,
        DROPOUT_RATE=0.0, EVAL_PERIOD=2, WRITE_PERIOD=1, TRAIN_STEPS_RELATIVE=steps,
        **options)) == 0
    return capsys.readouterr().err

  log = run('packed', PACKING=True)
  assert 'FLOPs spent on padding:' in log and 'Batches are packed (PACKING=True)' in log
  run('stopped', steps=2, PACKING=True)
  run('stopped', PACKING=True)
  run('single', PACKING=False, MAX_BUCKETS=1)
  rows = {name: [json.loads(line) for line in
                 (tmp_path / name / 'metrics.jsonl').read_text().splitlines()]
          for name in ('packed', 'stopped', 'single')}
  steps = [[row for row in rows[name] if 'train/loss' in row] for name in rows]
  assert [[row['step'] for row in each] for each in steps] == [[1, 2, 3, 4]] * 3
  for packed, stopped, single in zip(*steps, strict=True):
    for name in EQUAL:
      assert packed[name] == stopped[name]
      assert packed[name] == pytest.approx(single[name], rel=1e-4), name
    assert packed['train/padding_share'] < single['train/padding_share']
  prompts = [prompt_file.load_prompt(tmp_path / name / 'prompt.safetensors').array
             for name in ('packed', 'stopped')]
  assert prompts[0].any()
  np.testing.assert_array_equal(*prompts)
