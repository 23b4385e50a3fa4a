"""A position bias a layer (UMT5, scanned T5X models) against the one that a stack shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.rows import METHODS, backbone, batch, compare, logits_of, trained

from prompt_tuning import params as trees
from prompt_tuning.decoding import generate
from prompt_tuning.peft import model as peft_model


def per_layer(params, differ=0.0):
  """The shared tables of a looped tree, copied into every layer, with noise of their own."""
  rng = np.random.default_rng(7)
  flat = trees.flatten(params)
  for stack, depth in (('encoder', 2), ('decoder', 2)):
    table = flat.pop(f'{stack}/relpos_bias/rel_embedding')
    for i in range(depth):
      noise = differ * rng.standard_normal(table.shape).astype(np.float32)
      flat[f'{stack}/layers_{i}/relpos_bias/rel_embedding'] = table + noise
  return trees.unflatten(flat)


@pytest.fixture(params=['prompt', 'lora', 'prefix'])
def name(request):
  return request.param


def wrapped(name, **options):
  return peft_model.PeftModel(
      backbone(relative_attention_per_layer=True, **options), METHODS[name])


def test_equal_tables_in_every_layer_are_the_shared_table(name):
  shared = logits_of(peft_model.PeftModel(backbone(), METHODS[name]), trained(name))
  compare(logits_of(wrapped(name), per_layer(trained(name))), np.asarray(shared), 1e-6)


def test_tables_that_differ_count_in_every_layer_and_scanned_is_looped(name):
  params = per_layer(trained(name), differ=1.0)
  logits = np.asarray(logits_of(wrapped(name), params))
  scanned = wrapped(name, scan_layers=True, remat_policy='full')
  compare(logits_of(scanned, trees.stack_layers(params)), logits, 1e-5)
  flat = trees.flatten(params)
  tables = [path for path in flat if 'relpos_bias' in path]
  assert len(tables) == 4
  for path in tables:
    other = trees.unflatten({**flat, path: jnp.zeros_like(flat[path])})
    assert np.abs(np.asarray(logits_of(wrapped(name), other)) - logits).max() > 1e-3, path


def test_cached_decoding_is_teacher_forcing(name):
  params, model = per_layer(trained(name), differ=1.0), wrapped(name)
  inputs, _, _ = batch()
  config = generate.DecodeConfig(strategy='greedy', max_decode_length=5, eos_id=0)
  decoded = generate.generate_jit(model, params, {'encoder_input_tokens': inputs}, config)
  sequences = decoded.sequences[:, 0]
  shifted = jnp.pad(sequences, ((0, 0), (1, 0)))[:, :-1]
  logits = jax.jit(lambda p: model.apply({'params': p}, inputs, shifted, jnp.ones_like(shifted)))(
      params)
  live = np.asarray(jnp.cumsum(shifted[:, 1:] == config.eos_id, axis=1) == 0)
  assert live.sum() >= 6
  np.testing.assert_array_equal(sequences[:, 1:][live], logits.argmax(-1)[:, 1:][live])
  np.testing.assert_array_equal(sequences[:, 0], logits.argmax(-1)[:, 0])
