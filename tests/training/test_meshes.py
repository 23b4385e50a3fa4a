"""Three real steps give the same losses and parameters however the devices are arranged.

Sums over devices are taken in another order than on one: losses agree to 1e-5 of their size, what
was trained to 2e-4 of the way it went.
"""

import functools

import jax
import numpy as np
import pytest

from prompt_tuning import params as params_lib
from prompt_tuning import partitioning
from prompt_tuning.data import loader, packing
from prompt_tuning.models import t5
from prompt_tuning.peft import block_edges, lora, soft_prompt
from prompt_tuning.peft import model as peft_model
from prompt_tuning.training import optimizer as optimizer_lib
from prompt_tuning.training import state as state_lib
from prompt_tuning.training import step as step_lib

SHAPE = dict(vocab_size=32, emb_dim=16, num_heads=8, head_dim=4, mlp_dim=24, num_encoder_layers=2,
             num_decoder_layers=1, dropout_rate=0.0)
METHODS = {'prompt': (soft_prompt.SoftPrompt(length=3),), 'lora': (lora.LoRA(rank=8),)}
LENGTHS = np.asarray([[7, 3], [2, 1], [5, 4], [1, 2], [9, 3], [4, 4], [6, 2], [3, 3]] * 2)
STEPS = 3


def batch(packed):
  """16 examples, one a row or several."""
  rng = np.random.default_rng(0)
  pairs = [tuple(rng.integers(2, 32, n) for n in lengths) for lengths in LENGTHS]
  if not packed:
    return loader.assemble(pairs, range(16), 16, (9, 4))
  rows = np.stack([np.arange(8), np.arange(15, 7, -1)], axis=1)
  return packing.assemble([pairs[i] for i in rows.ravel()],
                          packing.PackedBatch(rows, (24, 8), prompt_length=3))


@functools.cache
def first_params(methods, scan):
  """Parameters on the host, at their Flax initial values."""
  model = peft_model.PeftModel(t5.T5(t5.T5Config(**SHAPE)), METHODS[methods])
  params = jax.jit(lambda: peft_model.init_params(model, jax.random.key(0)))()
  return jax.device_get(params_lib.stack_layers(params) if scan else params)


@functools.cache
def train(mesh_shape, methods='prompt', dims=(1, 1), packed=False, parts=1, **options):
  """(losses of STEPS steps, {path: trained leaf}, how far the furthest moved) on a mesh."""
  mesh = partitioning.make_mesh(shape=mesh_shape, devices=jax.devices()[:np.prod(mesh_shape)])
  rules = partitioning.logical_axis_rules(*dims)
  model = peft_model.PeftModel(
      t5.T5(t5.T5Config(**SHAPE, **options)), METHODS[methods],
      block_edges.BlockEdges(mesh=mesh, rules=rules) if mesh.size > 1 else None)
  axes = tuple(rule for method in model.methods for rule in method.logical_axes)
  params = partitioning.shard_params(
      first_params(methods, options.get('scan_layers', False)), mesh, axes, rules=rules)
  trainable, frozen = params_lib.split(params, model.trainable)
  optimizer = optimizer_lib.adamw(0.01) if methods == 'lora' else optimizer_lib.sgd(0.01)
  state = state_lib.create(trainable, optimizer)
  shardings = state_lib.shardings(state, optimizer, mesh)
  state = jax.device_put(state, shardings)
  start = params_lib.flatten(jax.device_get(trainable))
  step = step_lib.make_train_step(model, optimizer, num_microbatches=parts,
                                  state_shardings=shardings)
  rows, rng, losses = partitioning.shard_batch(batch(packed), mesh), jax.random.key(0), []
  for _ in range(STEPS):
    state, metrics = step(state, frozen, rows, rng)
    losses.append(float(metrics['loss'][0]))
  assert step._cache_size() == 1  # what comes out goes in again as it lies
  trained = params_lib.flatten(jax.device_get(state.trainable))
  return losses, trained, {path: np.abs(trained[path] - start[path]).max() for path in start}


ALL = dict(scan_layers=True, remat_policy='full', packed=True, parts=2)
CASES = {
    '1x1': ((1, 1), (1, 1), ALL),
    '8x1': ((8, 1), (2, 1), {}),
    '4x2': ((4, 2), (1, 1), dict(ALL, packed=False)),
    '2x4': ((2, 4), (2, 2), dict(ALL, remat_policy='minimal', parts=1)),
    '1x8': ((1, 8), (1, 2), dict(packed=True)),
    'lora': ((4, 2), (2, 2), dict(methods='lora', scan_layers=True)),
}


@pytest.mark.parametrize('case', CASES)
def test_the_same_on_every_mesh(case):
  mesh_shape, dims, options = CASES[case]
  losses, trained, _ = train(mesh_shape, dims=dims, **options)
  plain = {name: value for name, value in options.items()
           if name == 'methods' or 'methods' in options}
  want_losses, want, ways = train((1, 1), **plain)
  np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
  assert len(set(losses)) == STEPS and trained.keys() == want.keys() and want
  for path, leaf in want.items():
    assert ways[path] > 0, path
    np.testing.assert_allclose(trained[path], leaf, atol=2e-4 * ways[path], rtol=0, err_msg=path)
