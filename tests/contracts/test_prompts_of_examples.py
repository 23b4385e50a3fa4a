"""Several prompts in one batch: each example gets what it would get alone with its own prompt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.rows import backbone, backbone_params
from contracts.test_packing import ROWS, SHAPE, examples

from prompt_tuning import params as trees
from prompt_tuning.data import loader, packing
from prompt_tuning.decoding.generate import DecodeConfig, generate_jit
from prompt_tuning.errors import UserError
from prompt_tuning.losses import token_cross_entropy
from prompt_tuning.peft import model as peft_model
from prompt_tuning.peft.prompt_init import PROMPT_PATH
from prompt_tuning.peft.soft_prompt import SoftPrompt

IDS = np.asarray([0, 2, 1, 1, 0, 2])
PROMPTS = np.random.default_rng(7).standard_normal((3, 3, 16)).astype(np.float32)


def model_of(**options):
  return peft_model.PeftModel(
      backbone(), (SoftPrompt(length=3, placement='suffix_before_eos', **options),))


def params_with(prompt, frozen=None):
  frozen = backbone_params() if frozen is None else frozen
  return trees.unflatten(trees.flatten(frozen) | {PROMPT_PATH: jnp.asarray(prompt)})


def single():
  return loader.assemble(examples(), range(6), 6, (9, 4)) | {'prompt_ids': IDS}


def packed():
  batch = packing.PackedBatch(ROWS, SHAPE, 3, 'suffix_before_eos')
  arrays = packing.assemble([examples()[i] for i in ROWS[ROWS >= 0]], batch)
  return arrays | {
      'prompt_ids': np.where(ROWS >= 0, IDS[ROWS], 0),
      'encoder_slots': packing.slots_of_examples(arrays['encoder_segment_ids'], 2, 13)}


def loss_and_gradient(model, batch):
  """(prompt, weights of the targets [B, L]) -> loss and its gradient."""
  frozen = backbone_params()
  features = {name: jnp.asarray(x) for name, x in batch.items()
              if name not in ('decoder_loss_weights', 'encoder_slots')}

  @jax.jit
  @jax.value_and_grad
  def run(prompt, weights):
    logits = model.apply({'params': params_with(prompt, frozen)}, **features)
    return token_cross_entropy(logits, features['decoder_target_tokens'], weights)[0]
  return lambda prompt, weights: run(jnp.asarray(prompt), jnp.asarray(weights))


def test_loss_and_gradient():
  batch = single()
  alone = {name: array for name, array in batch.items() if name != 'prompt_ids'}
  weights = batch['decoder_loss_weights']
  run = loss_and_gradient(model_of(), alone)
  want = [run(prompt, weights * (number == IDS)[:, None]) for number, prompt in enumerate(PROMPTS)]
  loss, gradient = sum(each[0] for each in want), np.stack([each[1] for each in want])
  assert (np.abs(gradient).max(axis=(1, 2)) > 0).all()
  for rows in (batch, packed()):
    got = loss_and_gradient(model_of(num_prompts=3), rows)(
        PROMPTS, rows['decoder_loss_weights'])
    assert float(got[0]) == pytest.approx(float(loss), rel=1e-5)
    np.testing.assert_allclose(got[1], gradient, rtol=0, atol=1e-5 * np.abs(gradient).max())


def test_answers():
  config = DecodeConfig(strategy='beam', beam_size=2, max_decode_length=4)
  inputs = {'encoder_input_tokens': single()['encoder_input_tokens']}
  alone = [generate_jit(model_of(), params_with(prompt), inputs, config) for prompt in PROMPTS]
  sequences = np.stack([alone[i].sequences[row] for row, i in enumerate(IDS)])
  assert (alone[0].sequences != alone[1].sequences).any()
  for rows, order in ((single(), np.arange(6)), (packed(), ROWS.ravel()[:6])):
    got = generate_jit(model_of(num_prompts=3), params_with(PROMPTS), rows, config)
    np.testing.assert_array_equal(got.sequences[:6], sequences[order])


def test_first_values_differ():
  model = model_of(num_prompts=4)
  params = peft_model.initialize(model, jax.random.key(0), backbone_params())
  prompts = trees.flatten(params)[PROMPT_PATH]
  assert prompts.shape == (4, 3, 16) and len(np.unique(prompts[:, 0], axis=0)) > 1


def test_which_prompt_has_to_be_said():
  tokens = jnp.ones((2, 3), jnp.int32)
  with pytest.raises(UserError, match='3 prompts and the batch does not say'):
    model_of(num_prompts=3).apply({'params': params_with(PROMPTS)}, tokens, tokens, tokens)
  with pytest.raises(UserError, match='num_prompts is 0'):
    SoftPrompt(num_prompts=0)
