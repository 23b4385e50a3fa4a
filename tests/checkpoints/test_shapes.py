"""The shape of a model from the shapes of its arrays."""

import dataclasses

import pytest

from prompt_tuning import params as params_lib
from prompt_tuning.checkpoints import shapes as shapes_lib
from prompt_tuning.errors import UserError
from prompt_tuning.models.t5 import T5, T5Config
from prompt_tuning.peft.model import abstract_params

ODD = T5Config(vocab_size=11, emb_dim=6, num_heads=3, head_dim=5, mlp_dim=7, num_encoder_layers=3,
               num_decoder_layers=2, relative_attention_num_buckets=9)


def shapes_of(config):
  return {path: leaf.shape
          for path, leaf in params_lib.flatten(abstract_params(T5(config=config))).items()}


@pytest.mark.parametrize('changes', [
    {}, {'mlp_activations': ('relu',)}, {'logits_via_embedding': True},
    {'relative_attention_per_layer': True},
    {'relative_attention_per_layer': True, 'num_encoder_layers': 1},
    {'num_encoder_layers': 11, 'num_decoder_layers': 1}])
def test_every_field_comes_back(changes):
  config = dataclasses.replace(ODD, **changes)
  assert shapes_lib.config_from_shapes(shapes_of(config), 'x') == config


def test_a_prompt_beside_the_weights_does_not_matter():
  shapes = {**shapes_of(ODD), 'encoder/prompt/prompt/prompt': (6, 6)}
  assert shapes_lib.config_from_shapes(shapes, 'x') == ODD


@pytest.mark.parametrize('change, message', [
    (lambda s: s.pop('token_embedder/embedding'), "no parameter 'token_embedder/embedding'"),
    (lambda s: s.update({'encoder/relpos_bias/rel_embedding': (9,)}), '2 axes are expected'),
    (lambda s: s.update({'encoder/relpos_bias/rel_embedding': (4, 9)}), 'cannot be shared'),
    (lambda s: s.update({'encoder/relpos_bias/rel_embedding': (0, 9)}), 'holds no number'),
    (lambda s: s.update({'encoder/relpos_bias/rel_embedding': (3, 3)}), 'has 3 buckets'),
    (lambda s: s.update({'token_embedder/embedding': (11, 0)}), 'holds no number'),
    (lambda s: s.pop('encoder/relpos_bias/rel_embedding'),
     r"shared ones are in \['decoder'\], own ones in \[\]"),
    (lambda s: [s.pop(f'{stack}/relpos_bias/rel_embedding') for stack in ('encoder', 'decoder')],
     r'shared ones are in \[\], own ones in \[\]'),
    (lambda s: s.update({'encoder/layers_0/relpos_bias/rel_embedding': (3, 9)}),
     r"shared ones are in \['encoder', 'decoder'\], own ones in \['encoder'\]"),
    (lambda s: [s.pop(p) for p in list(s) if p.startswith('encoder/layers_1/')],
     r'encoder layers \[0, 2\]'),
    (lambda s: [s.pop(p) for p in list(s) if p.startswith('decoder/layers_')],
     r'decoder layers \[\]'),
    (lambda s: [s.pop(p) for p in list(s) if p.startswith('encoder/')],
     'x is a decoder-only model'),
])
def test_refused(change, message):
  shapes = shapes_of(ODD)
  change(shapes)
  with pytest.raises(UserError, match=message):
    shapes_lib.config_from_shapes(shapes, 'x')


def test_agreeing_configurations():
  given = dataclasses.replace(
      ODD, relative_attention_max_distance=64, dtype='bfloat16', dropout_rate=0.0,
      scan_layers=True, mlp_activations=('relu', 'linear'))
  shapes_lib.check_config(given, ODD, shapes_lib.ASSUMED, 'x')


@pytest.mark.parametrize('changes', [
    {'vocab_size': 12}, {'emb_dim': 8}, {'num_heads': 1}, {'head_dim': 4}, {'mlp_dim': 8},
    {'num_encoder_layers': 2}, {'num_decoder_layers': 3}, {'logits_via_embedding': True},
    {'mlp_activations': ('gelu',)}, {'relative_attention_num_buckets': 32},
    {'relative_attention_per_layer': True}])
def test_disagreement_names_both_values(changes):
  (field, value), = changes.items()
  with pytest.raises(UserError) as error:
    shapes_lib.check_config(dataclasses.replace(ODD, **changes), ODD, shapes_lib.ASSUMED, 'x')
  assert (f'{field} is {value} in the configuration and {getattr(ODD, field)} in the file'
          in str(error.value))


def test_what_a_file_tells_is_compared():
  given = dataclasses.replace(ODD, relative_attention_max_distance=64)
  with pytest.raises(UserError, match='relative_attention_max_distance is 64'):
    shapes_lib.check_config(given, ODD, (), 'x')
