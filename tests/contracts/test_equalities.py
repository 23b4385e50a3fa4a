"""Laws that tie a method to the backbone itself: real tokens, merging, packing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.rows import (
  CONFIG,
  METHODS,
  backbone,
  backbone_params,
  batch,
  compare,
  logits_of,
  reference_logits,
  trained,
)

from prompt_tuning import params as trees
from prompt_tuning.models.t5 import T5, T5Config
from prompt_tuning.peft import model as peft_model
from prompt_tuning.peft.method import Method
from prompt_tuning.peft.prefix_tuning import PrefixTuning
from prompt_tuning.peft.prompt_init import PROMPT_PATH, FromArray
from prompt_tuning.peft.soft_prompt import SoftPrompt

WORDS = jnp.asarray([5, 9, 13], jnp.int32)


def placed(placement):
  """The batch's inputs with WORDS written into them as real tokens."""
  rows = []
  for row in np.asarray(batch()[0]):
    tokens = row[row > 0].tolist()
    at = {'prefix': 0, 'after_first': 1, 'suffix': len(tokens),
          'suffix_before_eos': len(tokens) - 1}[placement]
    tokens[at:at] = WORDS.tolist()
    rows.append(tokens + [0] * (10 - len(tokens)))
  return jnp.asarray(rows, jnp.int32)


@pytest.mark.parametrize('scan', [False, True], ids=['looped', 'scanned'])
@pytest.mark.parametrize('placement', ['prefix', 'after_first', 'suffix', 'suffix_before_eos'])
def test_a_prompt_of_token_embeddings_is_those_tokens(placement, scan):
  params = trees.stack_layers(backbone_params()) if scan else backbone_params()
  words = trees.flatten(params)['token_embedder/embedding'][WORDS]
  model = peft_model.PeftModel(
      backbone(scan_layers=scan),
      (SoftPrompt(length=3, placement=placement, init=FromArray(words)),))
  full = peft_model.initialize(model, jax.random.key(0), params)
  want = logits_of(model.backbone, params, (placed(placement), *batch()[1:]))
  compare(logits_of(model, full), np.asarray(want), 1e-5)


def norm(x, scale):
  return x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + 1e-6) * scale


def keys_and_values(rows, flat, module):
  """What one attention would compute for rows [P, H]: keys and values [P, N, D]."""
  return {name: (rows @ flat[f'{module}/{name}/kernel']).reshape(
      len(rows), CONFIG.num_heads, CONFIG.head_dim) for name in ('key', 'value')}


def one_layer():
  config = T5Config(**{**vars(CONFIG), 'num_encoder_layers': 1, 'num_decoder_layers': 1})
  flat = trees.flatten(backbone_params())
  return T5(config), {p: np.asarray(x) for p, x in flat.items()
                      if 'layers_1' not in p and 'layers_2' not in p}


def with_prefix(module, flat, method, attention, leaves):
  model = peft_model.PeftModel(module, (method,))
  params = trees.unflatten({**flat, **{f'{attention}/core/prefix/{k}': jnp.asarray(v)
                                       for k, v in leaves.items()}})
  assert trees.flatten(params).keys() == trees.flatten(peft_model.abstract_params(model)).keys()
  return model, params


def test_a_decoder_prefix_of_real_tokens_is_teacher_forcing_with_them_in_front():
  module, flat = one_layer()
  attention = 'decoder/layers_0/self_attention'
  rows = norm(flat['token_embedder/embedding'][np.asarray(WORDS)],
              flat['decoder/layers_0/pre_self_attention_layer_norm/scale'])
  model, params = with_prefix(module, flat, PrefixTuning(length=3, encoder=False, cross=False),
                              attention, keys_and_values(rows, flat, attention))
  inputs, shifted, targets = batch()
  front = jnp.broadcast_to(WORDS, (3, 3))
  want = module.apply({'params': trees.unflatten(flat)}, inputs,
                      jnp.concatenate([front, shifted], axis=1),
                      jnp.concatenate([front, targets], axis=1))
  compare(logits_of(model, params), np.asarray(want)[:, 3:], 1e-5)


def test_an_encoder_prefix_of_real_tokens_is_those_tokens_in_front():
  module, flat = one_layer()
  attention = 'encoder/layers_0/attention'
  rows = norm(flat['token_embedder/embedding'][np.asarray(WORDS)],
              flat['encoder/layers_0/pre_attention_layer_norm/scale'])
  model, params = with_prefix(module, flat, PrefixTuning(length=3, decoder=False, cross=False),
                              attention, keys_and_values(rows, flat, attention))
  inputs = batch()[0]
  front = jnp.broadcast_to(WORDS, (3, 3))
  want = module.apply({'params': trees.unflatten(flat)}, jnp.concatenate([front, inputs], axis=1),
                      method='encode')[:, 3:]
  got = model.apply({'params': params}, inputs, method='encode')
  valid = np.asarray(inputs) > 0
  assert valid.sum() > 10
  np.testing.assert_allclose(np.asarray(got)[valid], np.asarray(want)[valid], atol=1e-5)


def test_a_cross_prefix_of_encoder_rows_is_those_rows_encoded():
  module, flat = one_layer()
  attention = 'decoder/layers_0/encoder_decoder_attention'
  params = trees.unflatten(flat)
  inputs, shifted, targets = batch()
  encoded = np.asarray(module.apply({'params': params}, inputs, method='encode'))
  rows = encoded[0, :3]
  model, with_rows = with_prefix(module, flat, PrefixTuning(length=3, encoder=False, decoder=False),
                                 attention, keys_and_values(rows, flat, attention))
  wide = np.concatenate([np.broadcast_to(rows, (3, *rows.shape)), encoded], axis=1)
  wide_inputs = jnp.concatenate([jnp.ones((3, 3), jnp.int32), inputs], axis=1)
  want = module.apply({'params': params}, wide, wide_inputs, shifted, targets, method='decode')
  compare(logits_of(model, with_rows), np.asarray(want), 1e-5)


@pytest.mark.parametrize('scan', [False, True], ids=['looped', 'scanned'])
@pytest.mark.parametrize('name', METHODS)
def test_merged_is_unmerged(name, scan):
  model = peft_model.PeftModel(backbone(scan_layers=scan), METHODS[name])
  params = trees.stack_layers(trained(name)) if scan else trained(name)
  if any(type(method).merge is Method.merge for method in METHODS[name]):
    with pytest.raises(NotImplementedError, match='cannot be merged'):
      peft_model.merge(model, params)
    return
  merged = peft_model.merge(model, params)
  assert trees.flatten(merged).keys() == trees.flatten(
      peft_model.abstract_params(model.backbone)).keys()
  compare(logits_of(model.backbone, merged), reference_logits(name), 1e-5)


def pack(examples, slots):
  """Examples in one row of tokens, segment ids and positions, `slots` empty ones before each."""
  tokens, segments, positions = [], [], []
  for i, example in enumerate(examples):
    tokens += [0] * slots + list(example)
    segments += [i + 1] * (slots + len(example))
    positions += range(slots + len(example))
  return tuple(jnp.asarray([x + [0, 0]], jnp.int32) for x in (tokens, segments, positions))


@pytest.mark.parametrize('name', ['prompt', 'lora', 'prefix', 'prompt_and_lora'])
def test_packed_rows_give_the_logits_of_single_ones(name):
  model = peft_model.PeftModel(backbone(), METHODS[name])
  inputs, shifted, targets = ([row[row > 0].tolist() for row in np.asarray(x)] for x in batch())
  shifted = [[0, *target[:-1]] for target in targets]
  slots = 3 if 'prompt' in name else 0
  tokens, segments, positions = pack(inputs, slots)
  packed_targets, target_segments, target_positions = pack(targets, 0)
  logits = model.apply({'params': trained(name)}, tokens, pack(shifted, 0)[0], packed_targets,
                       segments, target_segments, positions, target_positions)
  want = reference_logits(name)[np.asarray(batch()[2]) > 0]
  got = np.asarray(logits)[0][:len(want)]
  assert len(want) == 9
  np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_the_prompt_sits_where_google_research_has_it():
  model = peft_model.PeftModel(backbone(), METHODS['prompt'])
  assert trees.flatten(peft_model.abstract_params(model))[PROMPT_PATH].shape == (3, 16)
