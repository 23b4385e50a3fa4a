"""A run over several padded lengths, stopped and continued, equals one that was not stopped."""

import json

import jax
import numpy as np

from benchmarks import chaos
from prompt_tuning.checkpoints import prompt_file
from prompt_tuning.cli import main, resume


def test_stopped_run_equals_whole_run(train_argv, texts, tmp_path, capsys, monkeypatch):
  def run(name, steps):
    assert main.main(train_argv(
        tmp_path / name, TRAIN_FILE=texts / 'train.jsonl', EVAL_FILE=texts / 'dev.jsonl',
        TASK_FEATURE_LENGTHS="{'inputs': 192, 'targets': 8}", MAX_BUCKETS=4, METRICS='[]',
        EVAL_PERIOD=4, WRITE_PERIOD=1, TRAIN_STEPS_RELATIVE=steps)) == 0

  run('whole', 8)
  run('stopped', 4)
  fresh, restore = [], resume.restore
  monkeypatch.setattr(resume, 'restore', lambda checkpoints, start, *rest: (
      fresh.append(start), restore(checkpoints, start, *rest))[1])
  run('stopped', 8)
  leaves = jax.tree.leaves((fresh[0].state.trainable, fresh[0].state.opt_state))
  assert leaves and all(leaf.is_deleted() for leaf in leaves)  # else both states fill the memory
  assert 'shapes 40x4, 72x4, 104x4, 136x4.' in capsys.readouterr().err
  rows = [[{name: value for name, value in json.loads(line).items() if name not in chaos.CLOCKS}
           for line in (tmp_path / name / 'metrics.jsonl').read_text().splitlines()]
          for name in ('whole', 'stopped')]
  assert [row['step'] for row in rows[0]] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]
  assert rows[0] == rows[1]
  # The prompt file holds the best evaluation's: that of the last step, after the stop.
  assert rows[0][-1]['eval/loss_per_token'] < rows[0][4]['eval/loss_per_token']
  prompts = [prompt_file.load_prompt(tmp_path / name / 'prompt.safetensors').array
             for name in ('whole', 'stopped')]
  assert prompts[0].any()
  np.testing.assert_array_equal(*prompts)
