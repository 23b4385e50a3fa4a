"""Mesh, axis rules and shardings over the 8 virtual devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from prompt_tuning import errors, partitioning
from prompt_tuning import params as params_lib
from prompt_tuning.models import t5

SHAPE = dict(vocab_size=64, emb_dim=16, num_heads=4, head_dim=8, mlp_dim=24, num_encoder_layers=2,
             num_decoder_layers=3)


def _abstract(**options):
  tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
  module = t5.T5(t5.T5Config(**{**SHAPE, **options}))
  return jax.eval_shape(
      lambda *args: module.init(jax.random.key(0), *args)['params'], tokens, tokens, tokens)


@pytest.mark.parametrize('options, leaves', [
    ({}, 66), ({'scan_layers': True}, 29),
    ({'logits_via_embedding': True, 'mlp_activations': ('relu',)}, 60)])
def test_every_backbone_parameter_has_axes(options, leaves):
  abstract = _abstract(**options)
  axes = partitioning.parameter_axes(abstract)
  assert set(axes) == set(params_lib.flatten(abstract))
  flat = params_lib.flatten(abstract)
  sizes = {'vocab': 64, 'embed': 16, 'heads': 4, 'joined_kv': 32, 'mlp': 24, 'norm': 16,
           'relpos_buckets': 32}
  compared = 0
  for path, names in axes.items():
    depth = 2 if path.startswith('encoder') else 3
    assert flat[path].shape == tuple({**sizes, 'layers': depth}[name] for name in names), path
    compared += 1
  assert compared == len(flat) == leaves


def test_an_uncovered_parameter_is_an_error():
  abstract = {**_abstract(), 'new': {'kernel': jax.ShapeDtypeStruct((3, 4), jnp.float32)}}
  with pytest.raises(KeyError, match='new/kernel'):
    partitioning.parameter_axes(abstract)
  axes = partitioning.parameter_axes(abstract, method_rules=((r'new/kernel', ('embed', None)),))
  assert axes['new/kernel'] == ('embed', None)


def test_methods_leaves_in_stacked_layers_get_the_layer_axis():
  abstract = {'encoder': {'layers': {'lora': {'a': jax.ShapeDtypeStruct((2, 16, 4), jnp.float32)}}}}
  rules = ((r'.*/lora/a', ('embed', 'rank')),)
  axes = partitioning.parameter_axes(abstract, rules)
  assert axes == {'encoder/layers/lora/a': ('layers', 'embed', 'rank')}


def test_a_users_rule_that_matches_nothing_is_refused():
  with pytest.raises(errors.UserError, match='embeddings'):
    partitioning.parameter_axes(
        _abstract(), user_rules=((r'token_embedder/embeddings', ('vocab', 'embed')),))
  axes = partitioning.parameter_axes(
      _abstract(), user_rules=((r'token_embedder/embedding', (None, 'embed')),))
  assert axes['token_embedder/embedding'] == (None, 'embed')


def test_a_rule_of_another_rank_is_an_error():
  with pytest.raises(ValueError, match='2 dimensions'):
    partitioning.parameter_axes(_abstract(), user_rules=((r'.*/embedding', ('vocab',)),))


@pytest.mark.parametrize('kwargs, shape', [
    ({}, (8, 1)), ({'num_partitions': 4}, (2, 4)),
    ({'model_parallel_submesh': (2, 2, 2, 1)}, (1, 8)), ({'shape': (2, 4)}, (2, 4)),
    ({'shape': (2, 4), 'model_parallel_submesh': (2, 1)}, (2, 4))])
def test_mesh(kwargs, shape):
  mesh = partitioning.make_mesh(**kwargs)
  assert mesh.axis_names == ('data', 'model') and mesh.devices.shape == shape


@pytest.mark.parametrize('kwargs', [
    {'num_partitions': 3}, {'num_partitions': 0}, {'model_parallel_submesh': (3, 1)}])
def test_a_mesh_that_does_not_divide_the_devices_is_refused(kwargs):
  with pytest.raises(errors.UserError, match='8 devices: give a divisor of 8'):
    partitioning.make_mesh(**kwargs)


def test_mesh_of_other_devices_is_refused():
  with pytest.raises(errors.UserError, match='MESH=4x8 has 32 devices and there are 8'):
    partitioning.make_mesh(shape=(4, 8))


def test_mesh_shape():
  assert partitioning.mesh_shape('4x8') == partitioning.mesh_shape((4, 8)) == (4, 8)
  for wrong in ('4', '4x0', 'axb', (4, 8, 2), 32, '4.0x8'):
    with pytest.raises(errors.UserError, match="as in '4x8'"):
      partitioning.mesh_shape(wrong)


def test_parameters_and_activations_are_split_further_where_asked():
  mesh = partitioning.make_mesh(num_partitions=4)
  rules = partitioning.logical_axis_rules(2, 2)
  spec = partitioning.partition_spec
  assert spec(('embed', 'joined_kv'), (16, 32), mesh, rules) == PartitionSpec('data', 'model')
  assert spec(('batch', 'length', 'residual'), (8, 3, 16), mesh, rules) == PartitionSpec(
      'data', None, 'model')
  assert spec(('prompt', None), (100, 16), mesh, rules) == PartitionSpec(None, None)
  assert partitioning.logical_axis_rules() == partitioning.LOGICAL_AXIS_RULES
  with pytest.raises(errors.UserError, match='ACTIVATION_PARTITIONING_DIMS is 3; allowed: 1, 2'):
    partitioning.logical_axis_rules(1, 3)


def test_partition_spec_replicates_what_does_not_divide():
  mesh = partitioning.make_mesh(num_partitions=4)
  spec = partitioning.partition_spec
  assert spec(('embed', 'joined_kv'), (16, 32), mesh) == PartitionSpec(None, 'model')
  assert spec(('heads', 'relpos_buckets'), (6, 32), mesh) == PartitionSpec(None, None)
  assert spec(('mlp', 'vocab'), (24, 64), mesh) == PartitionSpec('model', None)
  with pytest.raises(KeyError, match='unheard_of'):
    spec(('unheard_of',), (8,), mesh)


def test_batches_that_do_not_divide_are_refused():
  mesh = partitioning.make_mesh(num_partitions=2)
  with pytest.raises(errors.UserError, match='6 rows .* multiple of 4'):
    partitioning.shard_batch({'encoder_input_tokens': np.zeros((6, 3), np.int32)}, mesh)


@pytest.mark.parametrize('num_partitions', [1, 2, 8])
def test_a_sharded_model_gives_the_same_logits(num_partitions):
  module = t5.T5(t5.T5Config(**SHAPE))
  batch = {name: np.arange(8 * 4, dtype=np.int32).reshape(8, 4) % 64 for name in (
      'encoder_input_tokens', 'decoder_input_tokens', 'decoder_target_tokens')}
  params = module.init(jax.random.key(0), **batch)['params']
  forward = jax.jit(lambda params, batch: module.apply({'params': params}, **batch))
  expected = forward(params, batch)
  mesh = partitioning.make_mesh(num_partitions=num_partitions)
  sharded = partitioning.shard_params(params, mesh)
  kernel = sharded['encoder']['layers_0']['mlp']['wi_0']['kernel']
  assert kernel.addressable_shards[0].data.shape == (16, 24 // num_partitions)
  rows = partitioning.shard_batch(batch, mesh)
  assert rows['encoder_input_tokens'].addressable_shards[0].data.shape == (num_partitions, 4)
  np.testing.assert_allclose(forward(sharded, rows), expected, atol=1e-5)
