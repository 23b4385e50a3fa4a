"""Alias tables: every parameter of a T5 has one name on each side."""

import pytest

from prompt_tuning import params as params_lib
from prompt_tuning.checkpoints import names
from prompt_tuning.models.t5 import T5, T5Config
from prompt_tuning.peft.model import abstract_params


@pytest.mark.parametrize('options', [
    {}, {'mlp_activations': ('relu',), 'logits_via_embedding': True},
    {'num_encoder_layers': 12, 'num_decoder_layers': 1}, {'relative_attention_per_layer': True}])
def test_every_parameter_goes_there_and_back(options):
  module = T5(config=T5Config(vocab_size=8, emb_dim=4, num_heads=1, head_dim=2, mlp_dim=4,
                              **{'num_encoder_layers': 2, 'num_decoder_layers': 2, **options}))
  paths = list(params_lib.flatten(abstract_params(module)))
  theirs = [names.to_hf(path) for path in paths]
  assert len(set(theirs)) == len(paths) > 30
  per_layer = module.config.relative_attention_per_layer
  assert [names.from_hf(name, per_layer) for name, _ in theirs] == [
      (path, transposed) for path, (_, transposed) in zip(paths, theirs, strict=True)]


@pytest.mark.parametrize('theirs, ours, transposed', [
    ('shared.weight', 'token_embedder/embedding', False),
    ('encoder.embed_tokens.weight', 'token_embedder/embedding', False),
    ('lm_head.weight', 'decoder/logits_dense/kernel', True),
    ('encoder.block.11.layer.0.SelfAttention.q.weight',
     'encoder/layers_11/attention/query/kernel', True),
    ('decoder.block.2.layer.1.EncDecAttention.o.weight',
     'decoder/layers_2/encoder_decoder_attention/out/kernel', True),
    ('decoder.block.0.layer.2.DenseReluDense.wi_1.weight',
     'decoder/layers_0/mlp/wi_1/kernel', True),
    ('decoder.block.3.layer.1.layer_norm.weight',
     'decoder/layers_3/pre_cross_attention_layer_norm/scale', False),
    ('decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight',
     'decoder/relpos_bias/rel_embedding', True),
    ('encoder.final_layer_norm.weight', 'encoder/encoder_norm/scale', False),
])
def test_names_of_hugging_face(theirs, ours, transposed):
  assert names.from_hf(theirs) == (ours, transposed)


@pytest.mark.parametrize('layer', [0, 11])
def test_position_bias_of_a_layer(layer):
  theirs = f'decoder.block.{layer}.layer.0.SelfAttention.relative_attention_bias.weight'
  ours = f'decoder/layers_{layer}/relpos_bias/rel_embedding'
  assert names.from_hf(theirs, bias_per_layer=True) == (ours, True)
  assert names.to_hf(ours) == (theirs, True)


@pytest.mark.parametrize('name', [
    'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight',
    'encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight',
    'encoder.block.00.layer.0.SelfAttention.q.weight', 'classifier.weight', ''])
def test_unknown_names(name):
  assert names.from_hf(name) is None


@pytest.mark.parametrize('path', [
    'encoder/prompt/prompt/prompt', 'encoder/layers/attention/query/kernel',
    'encoder/layers_0/attention/query/lora/a'])
def test_unknown_paths(path):
  assert names.to_hf(path) is None
