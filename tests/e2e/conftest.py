"""A tiny model with a byte vocabulary and a small file of examples: the whole job in seconds."""

import json
import pathlib

import numpy as np
import pytest

from benchmarks import chaos


def write_rows(path: pathlib.Path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


@pytest.fixture(scope='session')
def folder(tmp_path_factory):
  """tiny.gin, train.jsonl and dev.jsonl: reviews of one length, one word tells the label."""
  folder = tmp_path_factory.mktemp('e2e')
  (folder / 'tiny.gin').write_text(chaos.MODEL)
  rng = np.random.default_rng(0)
  rows = [{'text': f'{word} {rng.integers(100, 999)}', 'label': label}
          for word, label in [('fine', 'yes'), ('poor', 'no')] * 12]
  write_rows(folder / 'train.jsonl', rows[:16])
  write_rows(folder / 'dev.jsonl', rows[16:])
  return folder


@pytest.fixture(scope='session')
def texts(tmp_path_factory):
  """train.jsonl and dev.jsonl with examples of 20 to 140 bytes, enough for four padded lengths."""
  folder = tmp_path_factory.mktemp('texts')
  for name, count in (('train', 40), ('dev', 6)):
    write_rows(folder / f'{name}.jsonl', [
        {'text': f'{i} ' + 'so ' * (i % 5 * 10), 'label': ('no', 'yes')[i % 2]}
        for i in range(count)])
  return folder


@pytest.fixture(scope='session', autouse=True)
def own_cache(tmp_path_factory):
  """What the commands keep for the next start stays out of the user's folder."""
  patch = pytest.MonkeyPatch()
  patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
  yield
  patch.undo()


@pytest.fixture(scope='session')
def train_argv(folder):
  """Builds the command line of a run: train_argv(model_dir, NAME=value, ...)."""
  def build(model_dir, *, model='tiny.gin', peft='peft/prompt.gin', task='tasks/local_text.gin',
            run='runs/train.gin', **overrides):
    values = {
        'INITIAL_CHECKPOINT_PATH': 'random', 'TRAIN_FILE': folder / 'train.jsonl',
        'EVAL_FILE': folder / 'dev.jsonl', 'INPUT_TEMPLATE': 'say: {text}',
        'CLASS_LABELS': "['yes', 'no']", 'PROMPT_LENGTH': 3, 'BATCH_SIZE': 8,
        'TRAIN_STEPS_RELATIVE': 8, 'EVAL_PERIOD': 4, 'WRITE_PERIOD': 2, 'MAX_BUCKETS': 1,
        'LEARNING_RATE': 0.1, 'MODEL_DIR': model_dir, **overrides}
    files = [file for file in (model, peft, task, run) if file]
    return ['train', f'--gin_search_paths={folder}', *(f'--gin_file={file}' for file in files),
            *(f'--gin.{name}={value}' for name, value in values.items() if value is not None)]
  return build
