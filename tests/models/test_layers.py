"""Backward passes written by hand against reverse-mode differentiation of the plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.models import layers


def normal(*shape, seed):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_gradients_of_the_norm(dtype):
  def plain(x, scale):
    x = x.astype(jnp.float32)
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale

  def ours(x, scale):
    return layers.rms_norm(x, scale, 1e-6, dtype).astype(jnp.float32)

  x, scale = normal(2, 5, 16, seed=0).astype(dtype), normal(16, seed=1)
  wanted, backward = jax.vjp(plain, x, scale)
  found, our_backward = jax.vjp(ours, x, scale)
  # Of bfloat16: the output and the gradient of x are rounded, to 8 bits.
  tolerance = {'rtol': 2e-5, 'atol': 2e-6} if dtype == 'float32' else {'rtol': 2e-2, 'atol': 2e-2}
  np.testing.assert_allclose(found, wanted, **tolerance)
  grad = normal(2, 5, 16, seed=2)
  for found, wanted, leaf in zip(our_backward(grad), backward(grad), (x, scale), strict=True):
    assert found.dtype == leaf.dtype
    found, wanted = (np.asarray(values, np.float32) for values in (found, wanted))
    np.testing.assert_allclose(found, wanted, **tolerance)


def test_gradients_of_the_masked_softmax_where_a_row_sees_nothing():
  def plain(scores):
    return jax.nn.softmax(jnp.where(mask, scores, layers.MASKED), axis=-1)

  mask = np.random.default_rng(0).random((2, 1, 4, 6)) < 0.7
  mask[0, 0, 1], mask[0, 0, 2] = False, True
  mask = jnp.asarray(mask)
  scores, grad = normal(2, 3, 4, 6, seed=1), normal(2, 3, 4, 6, seed=2)
  wanted, backward = jax.vjp(plain, scores)
  found, our_backward = jax.vjp(lambda scores: layers.masked_softmax(scores, mask), scores)
  np.testing.assert_array_equal(found, wanted)
  np.testing.assert_allclose(our_backward(grad)[0], backward(grad)[0], rtol=1e-5, atol=1e-6)
  assert not np.any(our_backward(grad)[0][0, :, 1])
