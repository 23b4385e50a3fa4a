"""Products in half precision: their numbers, and that no operand is widened on the way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from prompt_tuning.models import products, t5

# (equation, shapes of its operands) of the layers; the axis of size 1 stands for all heads.
PRODUCTS = [
    ('abi,io->abo', (2, 3, 4), (4, 5)),
    ('bnqd,bnkd->bnqk', (2, 3, 5, 4), (2, 3, 7, 4)),
    ('bnqd,bnkd->bnqk', (2, 3, 5, 4), (2, 1, 7, 4)),
    ('bnqd,bnkd->bnqk', (2, 3, 1, 4), (2, 3, 7, 4)),
    ('bnqk,bnkd->bnqd', (2, 3, 5, 7), (2, 3, 7, 4)),
    ('bnqk,bnkd->bnqd', (2, 3, 5, 7), (2, 1, 7, 4)),
    ('bnqk,bnkd->bnqd', (1, 3, 1, 7), (1, 3, 7, 4)),
    ('bqnd,hnd->bqnh', (2, 5, 3, 4), (6, 3, 4)),
    ('bqnh,hnd->bqnd', (2, 5, 3, 6), (6, 3, 4)),
]


def normal(shape, seed, dtype):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def pullback(function, x, y, grad):
  """[result, gradient of x, gradient of y], where the result's gradient is `grad`."""
  result, backward = jax.vjp(function, x, y)
  return [result, *backward(grad.astype(result.dtype))]


@pytest.mark.parametrize('result', [None, 'float32'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize(('equation', 'x', 'y'), PRODUCTS)
def test_agrees_with_float32(equation, x, y, dtype, result):
  x, y = normal(x, 0, dtype), normal(y, 1, dtype)
  plain = lambda x, y: jnp.einsum(equation, x, y)
  wide = [values.astype(jnp.float32) for values in (x, y)]
  grad = normal(plain(*wide).shape, 2, dtype)
  wanted = pullback(plain, *wide, grad)
  found = pullback(lambda x, y: products.einsum(equation, x, y, result), x, y, grad)
  assert [values.dtype for values in found] == [result or dtype, dtype, dtype]
  # The result is rounded once: by half a unit in the last of 24, 8 or 11 bits.
  tolerance = {'float32': 1e-6, 'bfloat16': 2**-8, 'float16': 2**-11}[dtype]
  for ours, plain in zip(found, wanted, strict=True):
    np.testing.assert_allclose(ours.astype(jnp.float32), plain, rtol=1.01 * tolerance, atol=2e-6)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_no_operand_is_widened_forward_or_backward(dtype):
  def attention(query, key, value):
    scores = products.einsum('bnqd,bnkd->bnqk', query, key, jnp.float32)
    return products.einsum('bnqk,bnkd->bnqd', jax.nn.softmax(scores).astype(dtype), value)

  def loss(*operands):
    return attention(*operands).astype(jnp.float32).sum()

  operands = [normal((2, 3, 8, 4), seed, dtype) for seed in range(3)]
  jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(*operands)
  found = [variable.aval.dtype for equation in equations(jaxpr.jaxpr)
           if equation.primitive.name == 'dot_general' for variable in equation.invars]
  assert found == [jnp.dtype(dtype)] * 12  # two products, each with two more backward


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_remat_policies_see_dense_products(dtype):
  def products_of(dtype):
    x, wide, narrow = (normal(shape, 0, dtype) for shape in ((2, 3, 8), (8, 16), (16, 8)))
    layer = jax.checkpoint(lambda x: products.dot(jnp.tanh(products.dot(x, wide)), narrow),
                           policy=t5.REMAT_POLICIES['minimal'])
    jaxpr = jax.make_jaxpr(jax.grad(lambda x: layer(x).astype(jnp.float32).sum()))(x)
    return sum(equation.primitive.name == 'dot_general' for equation in equations(jaxpr.jaxpr))

  assert products_of(dtype) == products_of('float32') == 4  # none is computed again


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_empty_operands(dtype):
  rows = products.dot(jnp.zeros((0, 3, 4), dtype), jnp.zeros((4, 5), dtype))
  sums = products.dot(jnp.zeros((2, 3, 0), dtype), jnp.zeros((0, 5), dtype))
  assert (rows.shape, sums.shape) == ((0, 3, 5), (2, 3, 5)) and not sums.any()


def test_refuses_two_dtypes():
  with pytest.raises(TypeError, match='bfloat16 and float32'):
    products.dot(jnp.zeros((2, 4), 'bfloat16'), jnp.zeros((4, 5)))


def equations(jaxpr):
  """All equations of a jaxpr, those of the jaxprs inside it too."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in jaxprs_in_params(equation.params):
      yield from equations(inner)


@pytest.mark.parametrize('rows', [1, 8, 33])
@pytest.mark.parametrize('heads', [1, 3])
@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('batch', [1, 2])
def test_compiled_attention_with_its_transpositions(batch, rows, heads, shared):
  """XLA folds transpositions into products and then may have no bfloat16 kernel for them."""
  def attention(dtype, query, key, value):
    query, key, value = (x.astype(dtype).swapaxes(1, 2) for x in (query, key, value))
    scores = products.einsum('bnqd,bnkd->bnqk', query, key, jnp.float32)
    weights = jax.nn.softmax(scores).astype(dtype)
    return products.einsum('bnqk,bnkd->bnqd', weights, value).swapaxes(1, 2)

  def gradients(dtype):
    loss = lambda *operands: jnp.square(attention(dtype, *operands).astype(jnp.float32)).sum()
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(query, key, value)

  query = normal((batch, rows, heads, 16), 0, 'bfloat16')
  keys = (batch, 40, 1 if shared else heads, 16)
  key, value = (normal(keys, seed, 'bfloat16') for seed in (1, 2))
  for ours, wanted in zip(gradients('bfloat16'), gradients('float32'), strict=True):
    wanted = np.asarray(wanted, np.float32)
    np.testing.assert_allclose(ours.astype(jnp.float32), wanted, atol=0.03 * np.abs(wanted).max())
