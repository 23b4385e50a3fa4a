"""Buckets or packing: what the lengths, the loss and the user say."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from prompt_tuning import vocabulary
from prompt_tuning.cli import data
from prompt_tuning.data import cache as cache_lib
from prompt_tuning.data import loader, plan, sources
from prompt_tuning.data.packing import PackedPlan
from prompt_tuning.data.task import Task
from prompt_tuning.errors import UserError
from prompt_tuning.losses import LossConfig
from prompt_tuning.models.t5 import T5Config
from prompt_tuning.peft.soft_prompt import SoftPrompt

TOTAL = LossConfig(loss_normalizing_factor='NUM_TOTAL_TARGET_TOKENS')


def lengths_of(*counts):
  """A task whose inputs have (how many, of how many bytes) each."""
  rows = tuple({'inputs': 'i' * size, 'targets': 't'} for many, size in counts
               for _ in range(many))
  return Task(name='lengths', source=sources.ListSource({'train': rows}))


ONE_LENGTH = lengths_of((64, 39))
# Too few for batches of like length, which wait for the long ones.
FEW = lengths_of(*((3, size) for size in range(9, 130, 20)))

MODEL = types.SimpleNamespace(
    prompt_length=5, mesh=Mesh(np.asarray(jax.devices()[:2])[:, None], ('data', 'model')),
    peft=types.SimpleNamespace(backbone=types.SimpleNamespace(config=T5Config()),
                               methods=(SoftPrompt(length=5, placement='suffix'),)))


@pytest.mark.parametrize('task, packing, loss, packed', [
    (ONE_LENGTH, 'auto', LossConfig(), False),
    (FEW, 'auto', LossConfig(), True),
    (FEW, 'auto', TOTAL, False),
    (FEW, False, LossConfig(), False),
    (ONE_LENGTH, True, LossConfig(), True),
])
def test_choice(tmp_path, task, packing, loss, packed):
  cache = cache_lib.build(task, 'train', vocabulary.ByteVocabulary(),
                          {'inputs': 140, 'targets': 4}, tmp_path)
  config = data.DataConfig(
      task=task, feature_lengths={'inputs': 140, 'targets': 4}, packing=packing)
  batches = data.training_batches(config, cache, MODEL, 16, loss, num_microbatches=4)
  assert isinstance(batches.plan, PackedPlan if packed else plan.TrainPlan)
  epoch = [next(batches)['decoder_target_tokens'] for _ in range(batches.plan.epoch_length)]
  assert sum(np.sum(targets == 1) for targets in epoch) == len(cache)  # one end of sequence each
  if packed:
    assert all(rows % 4 == 0 for rows, _, _ in batches.shapes)
    layout = batches.plan.packing
    assert (layout.prompt_length, layout.placement) == (5, 'suffix')
  batches.close()


@pytest.mark.parametrize('task, setting, packed', [
    (ONE_LENGTH, 'auto', False), (FEW, 'auto', True), (FEW, False, False), (ONE_LENGTH, True, True),
])
def test_evaluation(tmp_path, caplog, task, setting, packed):
  cache = cache_lib.build(task, 'train', vocabulary.ByteVocabulary(),
                          {'inputs': 140, 'targets': 4}, tmp_path)
  config = data.DataConfig(
      task=task, feature_lengths={'inputs': 140, 'targets': 4}, eval_packing=setting)
  with caplog.at_level('INFO'):
    layout = data.evaluation_packing(config, cache, MODEL, 16)
  assert (layout is not None) == packed
  assert (f'EVAL_PACKING={setting}' in caplog.text) == bool(setting)
  batches = loader.for_evaluation(cache, 16, packing=layout)
  ids = [record for batch in batches for record in batch.ids if record is not None]
  assert len(ids) == len(set(ids)) == len(cache)
  shared = [batch for batch in batches if 'encoder_slots' in batch.arrays]
  assert bool(shared) == (packed and task is FEW)
  for batch in shared:
    rows = len(batch.arrays['encoder_input_tokens'])
    slots = batch.arrays['encoder_slots'].reshape(rows, -1)
    taken = np.take_along_axis(batch.arrays['encoder_input_tokens'], slots, 1)
    taken = np.where(slots < 0, 0, taken).reshape(len(batch.records), -1)
    texts = [vocabulary.ByteVocabulary().decode(row[row > 0]) for row in taken]
    assert texts == [record['inputs_pretokenized'] if record else '' for record in batch.records]


def test_refused(tmp_path):
  cache = cache_lib.build(FEW, 'train', vocabulary.ByteVocabulary(),
                          {'inputs': 140, 'targets': 4}, tmp_path)
  options = dict(task=FEW, feature_lengths={'inputs': 140, 'targets': 4})
  with pytest.raises(UserError, match="give 'NUM_REAL_TARGET_TOKENS', or PACKING=False"):
    data.training_batches(data.DataConfig(packing=True, **options), cache, MODEL, 16, TOTAL, 1)
  with pytest.raises(UserError, match="PACKING is 'always'; allowed: True, False, 'auto'"):
    data.DataConfig(packing='always', **options)
