"""What ships with the package: the backbone, its vocabulary and the files of the tasks."""

import json

import jax
import jax.numpy as jnp
import pytest

from prompt_tuning.checkpoints import restore
from prompt_tuning.data import task as task_lib
from prompt_tuning.data.tasks import demo
from prompt_tuning.demo import examples

FOLDER = restore.demo_folder()
LIMIT = 10 * 2**20  # bytes that may ship


@pytest.fixture(scope='module')
def backbone():
  return restore.load_backbone('demo')


def test_backbone_is_small_enough_to_ship():
  files = [path for path in FOLDER.iterdir() if path.is_file()]
  assert {'config.json', 'model.safetensors', 'spiece.model'} <= {path.name for path in files}
  assert sum(path.stat().st_size for path in files) <= LIMIT


def test_backbone_runs(backbone):
  ids = backbone.vocabulary.encode('The soup was not bad at all.') + [1]
  tokens = jnp.asarray([ids], jnp.int32)
  logits = jax.jit(backbone.module.apply)({'params': backbone.params}, tokens, tokens, tokens)
  assert logits.shape == (1, len(ids), backbone.config.vocab_size)
  assert bool(jnp.isfinite(logits).all())


def test_vocabulary_fits_the_backbone(backbone):
  assert backbone.vocabulary.vocab_size == backbone.config.vocab_size
  text = 'the soup was tasty, but the room was dirty.'
  assert backbone.vocabulary.decode(backbone.vocabulary.encode(text)) == text


@pytest.mark.parametrize('name', examples.MAKERS)
def test_labels_survive_the_vocabulary(backbone, name):
  task = task_lib.get(name)
  pieces = [backbone.vocabulary.encode(label) for label in task.labels]
  assert len({tuple(p) for p in pieces}) == 2
  assert [backbone.vocabulary.decode(p) for p in pieces] == list(task.labels)
  # Targets with their end have to fit the length that the tasks' gin files give.
  assert max(map(len, pieces)) <= 3


@pytest.mark.parametrize('name', examples.MAKERS)
def test_files_are_what_the_generator_writes(name):
  written = {split: [json.loads(line) for line in
                     (demo.EXAMPLES / name / f'{split}.jsonl').read_text().splitlines()]
             for split in examples.SIZES}
  assert {split: len(rows) for split, rows in written.items()} == examples.SIZES
  assert written == examples.examples(name)


@pytest.mark.parametrize('name', examples.MAKERS)
def test_tasks_read_their_files(name):
  task = task_lib.get(name)
  rows = [row for _, row in task.examples('test')]
  assert len(rows) == examples.SIZES['test']
  targets = [task.postprocess_fn(row['targets'], example=row, is_target=True) for row in rows]
  assert set(targets) == {0, 1}
  assert task.metrics(targets, targets) == {'accuracy': 100.0}
