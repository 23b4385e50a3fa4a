"""Packed batches give the loss, gradient and answers of one example a row, whatever is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.rows import METHODS, backbone, backbone_params, trained

from prompt_tuning import losses
from prompt_tuning import params as trees
from prompt_tuning.data import loader, packing
from prompt_tuning.decoding.generate import DecodeConfig, generate_jit
from prompt_tuning.evaluation.scoring import score_labels_jit
from prompt_tuning.peft import model as peft_model
from prompt_tuning.peft.soft_prompt import SoftPrompt

LENGTHS = np.asarray([[7, 3], [2, 1], [5, 4], [1, 2], [9, 3], [4, 4]])
# Neighbours of unlike length, room for padding, a row too many.
ROWS = np.asarray([[4, 3], [0, 2], [1, 5], [-1, -1]])
SHAPE = (20, 9)


def examples():
  rng = np.random.default_rng(0)
  return [tuple(rng.integers(2, 40, n) for n in lengths) for lengths in LENGTHS]


def batches(methods):
  """The same examples one a row, and packed."""
  prompt = next((m for m in methods if isinstance(m, SoftPrompt)), None)
  slots = {} if prompt is None else dict(prompt_length=prompt.length, placement=prompt.placement)
  packed = packing.PackedBatch(ROWS, SHAPE, **slots)
  pairs = examples()
  arrays = packing.assemble([pairs[i] for i in ROWS[ROWS >= 0]], packed)
  arrays['encoder_slots'] = packing.slots_of_examples(arrays['encoder_segment_ids'], 2, 13)
  return loader.assemble(pairs, range(6), 6, (9, 4)), arrays


def value_and_gradient(model, params, batch, normalizer):
  trainable, frozen = trees.split(params, model.trainable)
  factor, weights = losses.loss_normalizer(normalizer, batch)

  @jax.jit
  @jax.value_and_grad
  def run(trainable):
    features = {name: jnp.asarray(x) for name, x in batch.items()
                if name not in ('decoder_loss_weights', 'encoder_slots')}
    logits = model.apply({'params': trees.merge(trainable, frozen)}, **features)
    return losses.token_cross_entropy(
        logits, features['decoder_target_tokens'], weights, z_loss=1e-4)[0] / factor
  loss, gradient = run(trainable)
  return float(loss), trees.flatten(gradient)


def check(model, params, normalizer=None):
  single, packed = batches(model.methods)
  want_loss, want = value_and_gradient(model, params, single, normalizer)
  loss, gradient = value_and_gradient(model, params, packed, normalizer)
  assert loss == pytest.approx(want_loss, rel=1e-5)
  assert want.keys() == gradient.keys() and want
  for path, leaf in want.items():
    scale = np.abs(leaf).max()
    assert scale > 0, path
    np.testing.assert_allclose(gradient[path], leaf, atol=1e-5 * scale, rtol=0, err_msg=path)


@pytest.mark.parametrize('name', METHODS)
def test_loss_and_gradient(name):
  check(peft_model.PeftModel(backbone(), METHODS[name]), trained(name))


@pytest.mark.parametrize('normalizer', ['AVERAGE_PER_SEQUENCE', 'NUM_REAL_TARGET_TOKENS', 7.0])
def test_normalizers(normalizer):
  check(peft_model.PeftModel(backbone(), METHODS['prompt']), trained('prompt'), normalizer)


def test_a_prompt_before_the_end_of_sequence_and_scanned_layers():
  method = SoftPrompt(length=3, placement='suffix_before_eos')
  model = peft_model.PeftModel(backbone(scan_layers=True), (method,))
  check(model, peft_model.initialize(
      model, jax.random.key(0), trees.stack_layers(backbone_params())))


@pytest.mark.parametrize('name, config', [
    ('prompt_suffix', DecodeConfig(max_decode_length=5)),
    ('prompt_and_lora', DecodeConfig(strategy='beam', beam_size=3, max_decode_length=4))])
def test_generation(name, config):
  model, params = peft_model.PeftModel(backbone(), METHODS[name]), trained(name)
  single, packed = (generate_jit(model, params, batch, config) for batch in batches(model.methods))
  count = (ROWS >= 0).sum()
  assert packed.sequences.shape[0] == ROWS.size
  assert len(np.unique(single.sequences[:, 0], axis=0)) > 2
  np.testing.assert_array_equal(packed.sequences[:count], single.sequences[ROWS.ravel()[:count]])
  np.testing.assert_allclose(
      packed.scores[:count], single.scores[ROWS.ravel()[:count]], rtol=1e-5, atol=1e-5)


def test_rank_classification():
  model, params = peft_model.PeftModel(backbone(), METHODS['prefix']), trained('prefix')
  labels = np.asarray([[5, 1, 0], [9, 8, 1]], np.int32)
  single, packed = (score_labels_jit(model, params, batch, labels)
                    for batch in batches(model.methods))
  count = (ROWS >= 0).sum()
  np.testing.assert_allclose(packed[:count], single[ROWS.ravel()[:count]], rtol=1e-5, atol=1e-5)
