"""Every method through the same laws (looped and scanned, float32, remat, bf16, cached).

Laws that only some methods have (merging, equality with real tokens) stand in
test_equalities.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contracts.rows import (
  METHODS,
  NEUTRAL_AT_START,
  TOLERANCE,
  backbone,
  backbone_params,
  batch,
  compare,
  logits_of,
  reference_logits,
  trained,
)

from prompt_tuning import losses, partitioning
from prompt_tuning import params as trees
from prompt_tuning.checkpoints import prompt_file
from prompt_tuning.errors import UserError
from prompt_tuning.peft import model as peft_model
from prompt_tuning.peft.lora import LoRA


@pytest.fixture(params=METHODS)
def name(request):
  return request.param


@pytest.mark.parametrize('options', [
    {'remat_policy': 'minimal'}, {'scan_layers': True, 'remat_policy': 'full'},
    {'dtype': 'bfloat16'}, {'dtype': 'bfloat16', 'scan_layers': True}],
    ids=lambda options: '-'.join(map(str, options.values())))
def test_remat_scan_and_bf16_give_the_same_logits(name, options):
  model = peft_model.PeftModel(backbone(**options), METHODS[name])
  params = trained(name)
  params = trees.stack_layers(params) if options.get('scan_layers') else params
  assert trees.flatten(params).keys() == trees.flatten(peft_model.abstract_params(model)).keys()
  tolerance = TOLERANCE[options.get('dtype', 'float32')]
  compare(logits_of(model, params), reference_logits(name), tolerance)


def test_without_jit():
  model = peft_model.PeftModel(backbone(), METHODS['prompt_and_lora'])
  logits = model.apply({'params': trained('prompt_and_lora')}, *batch())
  compare(logits, reference_logits('prompt_and_lora'), 1e-5)


def test_backbone_paths_are_kept_and_every_new_leaf_is_trained(name):
  have = trees.flatten(backbone_params()).keys()
  params = trained(name)
  assert have <= trees.flatten(params).keys()
  model = peft_model.PeftModel(backbone(), METHODS[name])
  trainable, frozen = (trees.flatten(tree) for tree in trees.split(params, model.trainable))
  assert trainable
  new = trees.flatten(params).keys() - have
  assert new <= trainable.keys()
  if new:  # a method with leaves of its own leaves the backbone alone
    assert frozen.keys() == have


def test_start(name):
  if name not in NEUTRAL_AT_START:
    pytest.skip('this method changes the output from the start: see test_equalities.py')
  model = peft_model.PeftModel(backbone(), METHODS[name])
  params = peft_model.initialize(model, jax.random.key(3), backbone_params())
  compare(logits_of(model, params), np.asarray(logits_of(backbone(), backbone_params())), 1e-5)


@pytest.mark.parametrize('scan', [False, True], ids=['looped', 'scanned'])
def test_only_trainables_move(name, scan):
  model = peft_model.PeftModel(backbone(scan_layers=scan), METHODS[name])
  params = trees.stack_layers(trained(name)) if scan else trained(name)
  trainable, frozen = trees.split(params, model.trainable)
  before = trees.fingerprint(frozen)
  optimizer = optax.adafactor(0.01, min_dim_size_to_factor=128, multiply_by_parameter_scale=False)

  @jax.jit
  def step(trainable, state):
    def loss(trainable):
      logits = model.apply({'params': trees.merge(trainable, frozen)}, *batch(),
                           enable_dropout=True, rngs={'dropout': jax.random.key(5)})
      return losses.token_cross_entropy(logits, batch()[2], (batch()[2] > 0).astype(jnp.float32))[0]
    grads = jax.grad(loss)(trainable)
    updates, state = optimizer.update(grads, state, trainable)
    return optax.apply_updates(trainable, updates), state, grads

  moved, _, grads = step(trainable, optimizer.init(trainable))
  compared = 0
  for path, leaf in trees.flatten(moved).items():
    assert np.isfinite(leaf).all(), path
    assert np.abs(trees.flatten(grads)[path]).max() > 0, f'no gradient reaches {path}'
    assert (leaf != trees.flatten(trainable)[path]).any(), f'{path} did not move'
    compared += 1
  assert compared > 0
  assert trees.fingerprint(frozen) == before


@pytest.mark.parametrize('scan', [False, True], ids=['looped', 'scanned'])
def test_every_leaf_has_a_sharding_and_a_mesh_changes_nothing(name, scan):
  model = peft_model.PeftModel(backbone(scan_layers=scan), METHODS[name])
  params = trees.stack_layers(trained(name)) if scan else trained(name)
  mesh = partitioning.make_mesh(2, devices=jax.devices()[:4])
  rules = tuple(rule for method in METHODS[name] for rule in method.logical_axes)
  placed = partitioning.shard_params(params, mesh, rules)
  assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(placed))
  inputs = dict(zip(('i', 'd', 't'), (np.concatenate([x, x[:1]]) for x in map(np.asarray, batch())),
                    strict=True))
  inputs = partitioning.shard_batch(inputs, mesh)
  logits = jax.jit(lambda p, b: model.apply({'params': p}, b['i'], b['d'], b['t']))(placed, inputs)
  compare(np.asarray(logits)[:3], reference_logits(name), 1e-5)


def test_saved_and_loaded_gives_the_same_logits(name, tmp_path):
  model = peft_model.PeftModel(backbone(), METHODS[name])
  trainable, frozen = trees.split(trained(name), model.trainable)
  prompt_file.save_prompt(tmp_path / 'x.safetensors', trainable, {'method': name})
  leaves = prompt_file.load_prompt(tmp_path / 'x.safetensors').leaves
  assert leaves.keys() == trees.flatten(trainable).keys()
  params = trees.merge(trees.unflatten(leaves), frozen)
  compare(logits_of(model, params), reference_logits(name), 0)


@pytest.mark.parametrize('scan', [False, True], ids=['looped', 'scanned'])
def test_cached_decoding_is_teacher_forcing(name, scan):
  model = peft_model.PeftModel(backbone(scan_layers=scan), METHODS[name])
  params = trees.stack_layers(trained(name)) if scan else trained(name)
  inputs, shifted, targets = batch()
  steps = targets.shape[1]
  apply = functools.partial(model.apply, mutable=['cache'])

  @jax.jit
  def start(params):
    encoded = model.apply({'params': params}, inputs, method='encode')
    return encoded, apply({'params': params}, encoded, inputs, steps, method='init_cache')[1]
  encoded, made = start(params)

  @jax.jit
  def step(cache, ids):
    return apply({'params': params, **cache}, encoded, inputs, ids, ids, decode=True,
                 max_decode_length=steps, method='decode')
  logits = []
  for i in range(steps):
    one, made = step(made, shifted[:, i:i + 1])
    logits.append(one)
  compare(jnp.concatenate(logits, axis=1), reference_logits(name), 1e-5)


def test_padding_never_matters(name):
  model = peft_model.PeftModel(backbone(), METHODS[name])
  wide = tuple(jnp.pad(x, ((0, 0), (0, 5))) for x in batch())
  logits = logits_of(model, trained(name), wide)
  compare(logits[:, :4], reference_logits(name), 1e-5)


def test_a_pattern_that_matches_nothing_is_refused():
  with pytest.raises(UserError, match='encoder/layers_0/attention/query'):
    peft_model.abstract_params(peft_model.PeftModel(backbone(), (LoRA(targets='x'),)))
  one_layer = (LoRA(targets=r'.*/layers_1/.*/query'),)
  assert peft_model.abstract_params(peft_model.PeftModel(backbone(), one_layer))
  with pytest.raises(UserError, match='scan_layers'):
    peft_model.abstract_params(peft_model.PeftModel(backbone(scan_layers=True), one_layer))
