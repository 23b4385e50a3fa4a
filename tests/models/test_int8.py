"""Parameters in int8: rounding, shapes, products, and what is never quantised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from prompt_tuning import params as params_lib
from prompt_tuning.errors import UserError
from prompt_tuning.models import int8
from prompt_tuning.models.layers import Attention, Dense
from prompt_tuning.models.t5 import T5, T5Config
from prompt_tuning.peft.model import abstract_params

KERNEL, TABLE = 'encoder/layers_0/mlp/wo/kernel', 'token_embedder/embedding'


@pytest.mark.parametrize('path', [KERNEL, TABLE])
@settings(max_examples=60, deadline=None)
@given(array=arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9),
                           elements=st.floats(-2.0**99, 2.0**99, width=32,
                                             allow_subnormal=False)))
def test_rounding(path, array):
  values, scale = int8.quantize(path, array)
  assert values.dtype == np.int8 and scale.dtype == np.float32
  axis = 0 if path == KERNEL else 1
  assert scale.shape == (array.shape[1 - axis],)
  wide = np.expand_dims(scale, axis)
  # Below the smallest normal number a scale itself is rounded.
  assert (abs(values * wide - array) <= 0.501 * wide + 1e-36).all()
  assert (abs(values.astype(int)).max(axis) <= 127).all()
  largest = abs(array).max(axis)
  assert (abs(values.astype(int)).max(axis)[largest > 1e-30] == 127).all()


def test_large_parameters_are_rounded_in_blocks():
  rng = np.random.default_rng(0)
  array = rng.normal(size=(700, 512)).astype(np.float32) * np.geomspace(1e-3, 1e3, 512)
  values, scale = int8.quantize(KERNEL, array.astype(np.float32))
  np.testing.assert_array_equal(values, np.rint(array.astype(np.float32) / scale))
  transposed = int8.quantize(TABLE, array.T.astype(np.float32))
  np.testing.assert_array_equal(transposed[0], values.T)
  np.testing.assert_array_equal(transposed[1], scale)


def test_nan_stays_nan():
  array = np.ones((3, 2), np.float32)
  array[1, 0] = np.nan
  values, scale = int8.quantize(KERNEL, array)
  assert np.isnan(values * scale).tolist() == [[True, False]] * 3


def test_product_and_its_gradient():
  rng = np.random.default_rng(0)
  x, kernel, grad = (rng.normal(size=shape).astype(np.float32)
                     for shape in ((2, 3, 8), (8, 5), (2, 3, 5)))
  values, scale = int8.quantize(KERNEL, kernel)
  y, back = jax.vjp(lambda x: int8.dot(x, jnp.asarray(values), jnp.asarray(scale)), x)
  np.testing.assert_allclose(y, x @ (values * scale), rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(back(grad)[0], grad @ (values * scale).T, rtol=1e-5, atol=1e-5)


def test_dense():
  kernel = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
  values, scale = int8.quantize(KERNEL, kernel)
  dense = Dense(5, 'float32')
  params = {'params': {'kernel': jnp.asarray(values), 'kernel_scale': jnp.asarray(scale)}}
  np.testing.assert_array_equal(np.multiply(*dense.apply(params, 8, method='kernel')),
                                values * scale)
  np.testing.assert_allclose(dense.apply(params, kernel.T), kernel.T @ (values * scale), atol=1e-5)


def test_attention_to_the_rows_of_the_source():
  """Two targets ask: no keys are made. The numbers stay, and no wide kernel is kept."""
  rng = np.random.default_rng(0)
  attention = Attention(num_heads=2, head_dim=8, dtype='float32')
  assert attention.skips_keys(2, (9, 24))
  x, source = (jnp.asarray(rng.normal(size=(1, rows, 24)), jnp.float32) for rows in (2, 9))
  mask = jnp.ones((1, 1, 2, 9), bool)
  stored = params_lib.flatten(attention.init(jax.random.key(0), x, source, mask)['params'])
  kept, wide = {}, {}
  for path, kernel in stored.items():
    values, scale = map(jnp.asarray, int8.quantize(path, np.asarray(kernel)))
    kept |= {path: values, path + int8.SCALE: scale}
    wide[path] = int8.widen(values, scale, jnp.float32)

  def gradients(params):
    params = {'params': params_lib.unflatten(params)}
    y, back = jax.vjp(lambda x, source: attention.apply(params, x, source, mask), x, source)
    return (y, *back(jnp.cos(y))), {leaf.shape for leaf in jax.tree.leaves(back)
                                    if leaf.dtype == jnp.float32}
  ours, kept_shapes = gradients(kept)
  theirs, wide_shapes = gradients(wide)
  for one, other in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
  assert (24, 2, 8) in wide_shapes and (24, 2, 8) not in kept_shapes


@pytest.mark.parametrize('options', [
    {}, {'scan_layers': True}, {'logits_via_embedding': True, 'mlp_activations': ('relu',)},
    {'vocab_size': 384, 'num_encoder_layers': 2, 'relative_attention_per_layer': True}], ids=str)
def test_share_of_the_memory(options):
  """T5 1.1, T5 1.0, and bytes with a bias a layer, at the demo's width: small is unfavourable."""
  config = T5Config(**{'emb_dim': 128, 'num_heads': 4, 'head_dim': 32, 'mlp_dim': 256,
                       'num_encoder_layers': 1, 'num_decoder_layers': 1, **options})
  params = abstract_params(T5(config=config))
  small = int8.abstract(params)
  assert params_lib.size_bytes(small) < 0.27 * params_lib.size_bytes(params)
  flat = params_lib.flatten(small)
  kept = {path for path, leaf in flat.items() if leaf.dtype == jnp.int8}
  assert {path + int8.SCALE for path in kept} == {p for p in flat if int8.is_scale(p, flat)}
  rest = {path.rpartition('/')[2] for path in flat.keys() - kept} - {'kernel_scale',
                                                                     'embedding_scale'}
  assert rest == {'scale', 'rel_embedding'}


def test_only_what_is_not_in_int8_can_be_trained():
  params = {'token_embedder': {'embedding': 0}, 'encoder': {'encoder_norm': {'scale': 0}}}
  int8.check_frozen(params, (r'.*/scale', r'.*/lora/a'))
  with pytest.raises(UserError, match='token_embedder/embedding is to be trained'):
    int8.check_frozen(params, ('.*',))
