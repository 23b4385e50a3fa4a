"""The laws on a backbone in int8: it is the float backbone of the rounded weights, no other.

Methods stand together here; one by one, on float backbones, they pass test_laws.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.rows import METHODS, backbone, backbone_params, batch, noisy

from prompt_tuning import params as trees
from prompt_tuning import partitioning
from prompt_tuning.decoding.generate import DecodeConfig, generate_jit
from prompt_tuning.errors import UserError
from prompt_tuning.models import int8
from prompt_tuning.peft import model as peft_model
from prompt_tuning.peft.model_tuning import ModelTuning

TOGETHER = METHODS['prompt_after_first'] + METHODS['lora'] + METHODS['prefix']


def in_int8(params):
  """(the same per-layer tree in int8, the tree of what the rounded weights are)."""
  small, rounded = {}, {}
  for path, leaf in trees.flatten(params).items():
    small[path] = rounded[path] = leaf
    if int8.is_quantizable(path):
      values, scale = map(jnp.asarray, int8.quantize(path, np.asarray(leaf)))
      small[path], small[path + int8.SCALE] = values, scale
      wide = scale[:, None] if path.endswith('embedding') else scale
      rounded[path] = int8.widen(values, wide, jnp.float32)
  return trees.unflatten(small), trees.unflatten(rounded)


def logits_and_gradients(model, params):
  """Logits of the batch, and the gradients of their weighted sum at the trained leaves."""
  inputs = [jnp.concatenate([x, x[:1]]) for x in batch()]  # four rows, to be sharded
  leaves, frozen = trees.split(params, model.trainable)
  real = jnp.float32(inputs[2] > 0)[..., None]
  weights = jnp.asarray(np.random.default_rng(6).normal(size=(4, 4, 40)), jnp.float32)

  @functools.partial(jax.value_and_grad, has_aux=True)
  def loss(leaves, frozen):
    logits = real * model.apply({'params': trees.merge(leaves, frozen)}, *inputs)
    return jnp.sum(logits * weights), logits
  (_, logits), grads = jax.jit(loss)(leaves, frozen)
  return {'logits': logits, **trees.flatten(grads)}


def test_logits_and_gradients_are_those_of_the_rounded_weights():
  """Scanned, rematerialised and sharded."""
  model = peft_model.PeftModel(backbone(scan_layers=True, remat_policy='minimal'), TOGETHER)
  small, rounded = map(trees.stack_layers, in_int8(backbone_params()))
  params = trees.flatten(peft_model.initialize(model, jax.random.key(3), rounded))
  new = {path: leaf for path, leaf in params.items() if path not in trees.flatten(rounded)}
  new = trees.unflatten(noisy(new, 0.03, seed=4))
  want = logits_and_gradients(model, trees.merge(rounded, new))

  rules = tuple(rule for method in TOGETHER for rule in method.logical_axes)
  placed = partitioning.shard_params(
      trees.merge(small, new), partitioning.make_mesh(2, devices=jax.devices()[:4]), rules)
  assert any(not leaf.sharding.is_fully_replicated for path, leaf in trees.flatten(placed).items()
             if path.endswith(int8.SCALE))
  got = logits_and_gradients(model, placed)
  assert got.keys() == want.keys() and len(got) > 10
  for name, value in want.items():
    error = np.sqrt(np.mean(np.square(got[name] - value)) / np.mean(np.square(value)))
    assert error < 3e-5, name


def test_decoding_and_first_values():
  """Cached decoding, logits tied, and a prompt that starts from the rounded table."""
  model = peft_model.PeftModel(backbone(logits_via_embedding=True),
                               METHODS['prompt'])
  flat = trees.flatten(backbone_params())
  del flat['decoder/logits_dense/kernel']
  decoded, prompts = [], []
  for params in in_int8(trees.unflatten(flat)):
    params = peft_model.initialize(model, jax.random.key(0), params)
    prompts.append(trees.flatten(params)['encoder/prompt/prompt/prompt'])
    decoded.append(generate_jit(
        model, params, {'encoder_input_tokens': batch()[0]},
        DecodeConfig(strategy='beam', beam_size=3, max_decode_length=4)))
  np.testing.assert_array_equal(*prompts)
  ours, want = decoded
  np.testing.assert_array_equal(ours.sequences, want.sequences)
  np.testing.assert_allclose(ours.scores, want.scores, rtol=1e-5)
  assert len(np.unique(ours.sequences)) > 2


def test_what_would_lose_changes_is_refused():
  small, _ = in_int8(backbone_params())
  with pytest.raises(UserError, match='cannot be merged into int8'):
    peft_model.merge(peft_model.PeftModel(backbone(), METHODS['lora']), small)
  model = peft_model.PeftModel(backbone(), (ModelTuning(),))
  with pytest.raises(UserError, match="Give PARAM_DTYPE = 'float32'"):
    peft_model.initialize(model, jax.random.key(0), small)
