"""Matrix products of activations, in float32 or in half precision throughout.

In float32 XLA is left to itself. In half precision it needs to be told two things:

- A CPU has fast kernels (AMX, AVX-512) for bfloat16 alone where the result is float32 and the
  operands lie as the kernel reads them; all other bfloat16 products run as float32 ones. The sum
  is in float32 either way and rounded once.
- A product into float32 (attention scores) has a float32 gradient, with which reverse-mode
  differentiation would run its backward products in float32. It is rounded before them, as in
  FlashAttention-2 (Dao 2023).
"""

import functools
import math

import jax
import jax.numpy as jnp


def dot(x, kernel):
  """[..., in] times [in, out] of the same dtype."""
  rows = 'abcdefg'[:x.ndim - 1]
  return einsum(f'{rows}i,io->{rows}o', x, kernel)


def einsum(equation, x, y, dtype=None):
  """Product of two arrays of one dtype, as `jnp.einsum`.

  Args:
    equation: explicit, without ellipsis; an index is in two of operands and result at least.
    x: float32 or half precision.
    y: of the same dtype; an axis of size 1 is broadcast, in either.
    dtype: of the result; None: that of the operands.

  Returns:
    The product. Its gradients have the dtype of the operands.
  """
  if x.dtype == jnp.float32:
    return jnp.einsum(equation, x, y)
  return _half_einsum(equation, dtype or x.dtype, x, y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _half_einsum(equation, dtype, x, y):
  if x.dtype == jnp.bfloat16 and jax.default_backend() == 'cpu':
    return _cpu_einsum(equation, x, y).astype(dtype)
  return jnp.einsum(equation, x, y, preferred_element_type=dtype)


def _half_einsum_forward(equation, dtype, x, y):
  return _half_einsum(equation, dtype, x, y), (x, y)


def _half_einsum_backward(equation, dtype, operands, grad):
  x, y = operands
  inputs, output = equation.split('->')
  x_names, y_names = inputs.split(',')
  grad = grad.astype(x.dtype)
  return (_gradient(x_names, x, output, grad, y_names, y),
          _gradient(y_names, y, output, grad, x_names, x))


def _gradient(names, x, output, grad, other_names, other):
  """The gradient of x: that of the result times the other operand, summed where x is broadcast."""
  kept, _ = _without_ones(names, x)
  product = _half_einsum(f'{output},{other_names}->{kept}', grad.dtype, grad, other)
  return product.reshape(x.shape)


_half_einsum.defvjp(_half_einsum_forward, _half_einsum_backward)


def _cpu_einsum(equation, x, y):
  """bfloat16 einsum into float32, as one product of [batch, left, sum] and [batch, sum, right]."""
  inputs, output = equation.split('->')
  (x_names, x), (y_names, y) = map(_without_ones, inputs.split(','), (x, y))
  sizes = dict(zip(x_names + y_names, x.shape + y.shape, strict=True))
  pick = lambda names, test: ''.join(filter(test, names))
  batch = pick(x_names, lambda name: name in y_names and name in output)
  summed = pick(x_names, lambda name: name in y_names and name not in output)
  if not x_names.endswith(summed):  # the right operand alone may have the summed index first
    x, x_names, y, y_names = y, y_names, x, x_names
  left = pick(x_names, lambda name: name not in y_names)
  right = pick(y_names, lambda name: name not in x_names)

  def merged(operand, names, *groups):
    shape = [math.prod(map(sizes.get, group)) for group in groups]
    return _transposed(operand, names, ''.join(groups)).reshape(shape)

  x = merged(x, x_names, batch, left, summed)
  if y_names.endswith(summed):
    form, y = 'blk,brk->blr', merged(y, y_names, batch, right, summed)
  else:
    form, y = 'blk,bkr->blr', merged(y, y_names, batch, summed, right)
  product = jnp.einsum(form, x, y, preferred_element_type=jnp.float32)
  names = batch + left + right
  product = product.reshape([sizes[name] for name in names])
  product = _transposed(product, names, pick(output, sizes.__contains__))
  return product.reshape([sizes.get(name, 1) for name in output])


def _without_ones(names, x):
  """(names, x) without axes of size 1."""
  kept = [axis for axis, size in enumerate(x.shape) if size > 1]
  return ''.join(names[axis] for axis in kept), x.reshape([x.shape[axis] for axis in kept])


def _transposed(x, names, wanted):
  """x with its axes in the wanted order."""
  if names == wanted:
    return x
  # XLA would take the transposition into the product, for which it has a slow kernel or none.
  order = [names.index(name) for name in wanted]
  return jax.lax.optimization_barrier(jax.lax.optimization_barrier(x).transpose(order))
