"""Published text in T5's vocabulary: train, evaluate, start again from the prompt."""

import gzip
import itertools
import json

import numpy as np
import pytest

from prompt_tuning.checkpoints import prompt_file
from prompt_tuning.cli import main

# As many rows as T5's table has; the rest as small as can be.
OVERRIDES = {'VOCABULARY': None, 'TRAIN_FILE': None, 'EVAL_FILE': None, 'INPUT_TEMPLATE': None,
             'CLASS_LABELS': None, 'TRAIN_STEPS_RELATIVE': 3, 'EVAL_PERIOD': 3, 'WRITE_PERIOD': 1,
             'EVAL_STEPS': 2}


@pytest.fixture(scope='module')
def model(folder):
  text = (folder / 'tiny.gin').read_text()
  path = folder / 'tiny_32128.gin'
  path.write_text(text.replace('vocab_size = 384', 'vocab_size = 32128'))
  return path


@pytest.fixture(scope='module')
def data_dir(shared_dir, tmp_path_factory):
  """RTE whole, SST-2 with its first 2000 training rows, as GLUE lays them out."""
  glue, data_dir = shared_dir / 'data' / 'glue', tmp_path_factory.mktemp('glue')
  (data_dir / 'RTE').symlink_to(glue / 'RTE')
  (data_dir / 'SST-2').mkdir()
  (data_dir / 'SST-2' / 'dev.tsv').symlink_to(glue / 'SST-2' / 'dev.tsv')
  with gzip.open(glue / 'SST-2' / 'train.tsv.gz', 'rt', encoding='utf-8') as file:
    (data_dir / 'SST-2' / 'train.tsv').write_text(''.join(itertools.islice(file, 2001)))
  return data_dir


@pytest.mark.parametrize('task', ['sst2', 'rte'])
def test_train_evaluate_and_start_from_the_prompt(
    task, model, train_argv, shared_dir, data_dir, tmp_path):
  def run(name, **overrides):
    values = {**OVERRIDES, 'DATA_DIR': data_dir,
              'VOCABULARY': shared_dir / 'data' / 'vocab' / 't5.sentencepiece.model',
              'CACHE_DIR': tmp_path / 'cache', **overrides}
    assert main.main(train_argv(
        tmp_path / name, model=model.name, task=f'tasks/{task}.gin', **values)) == 0
    lines = (tmp_path / name / 'metrics.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]

  rows = run('first')
  assert [row['step'] for row in rows] == [1, 2, 3, 3]
  assert all(np.isfinite(row['train/loss']) for row in rows[:3])
  assert 0 <= rows[-1]['eval/accuracy'] <= 100
  predictions = [json.loads(line) for line in (
      tmp_path / 'first' / 'predictions' / 'step_3.jsonl').read_text().splitlines()]
  assert len(predictions) == 16
  assert all(row['inputs'].startswith(f'{task} ') for row in predictions)

  first = prompt_file.load_prompt(tmp_path / 'first' / 'prompt.safetensors')
  assert first.array.shape == (3, 32)
  run('second', PROMPT_FILE=tmp_path / 'first' / 'prompt.safetensors', LEARNING_RATE=0.0,
      TRAIN_STEPS_RELATIVE=1, EVAL_PERIOD=1)
  second = prompt_file.load_prompt(tmp_path / 'second' / 'prompt.safetensors')
  assert second.metadata['vocabulary_hash'] == first.metadata['vocabulary_hash']
  np.testing.assert_allclose(second.array, first.array, rtol=1e-4)
