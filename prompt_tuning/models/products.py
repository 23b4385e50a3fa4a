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


def is_cpu_bfloat16(dtype):
  """Whether it is bfloat16 on a CPU, for which XLA has little but these products."""
  return dtype == jnp.bfloat16 and jax.default_backend() == 'cpu'


def dot(x, kernel):
  """[..., in] times [in, out] of the same dtype."""
  rows = 'abcdefg'[:x.ndim - 1]
  return einsum(f'{rows}i,io->{rows}o', x, kernel)


def einsum(equation, x, y, dtype=None):
  """Product of two arrays of one dtype, as `jnp.einsum`.

  Args:
    equation: explicit, without ellipsis; an index is in two of operands and result at least, and
      once in each.
    x: float32 or half precision.
    y: of the same dtype. An axis of size 1 that is not summed is broadcast, in either.
    dtype: of the result, float32 or the operands'; None: the operands'.

  Returns:
    The product. Its gradients have the dtype of the operands.

  Raises:
    TypeError: operands of two dtypes.
  """
  if x.dtype != y.dtype:
    raise TypeError(f'einsum of {x.dtype} and {y.dtype}: cast them to one dtype.')
  if x.dtype == jnp.float32:
    return jnp.einsum(equation, x, y)
  inputs, output = equation.split('->')
  (x_names, x), (y_names, y) = map(_without_ones, inputs.split(','), (x, y))
  sizes = dict(zip(x_names + y_names, x.shape + y.shape, strict=True))
  names = ''.join(filter(sizes.__contains__, output))
  product = _half_einsum(f'{x_names},{y_names}->{names}', dtype or x.dtype, x, y)
  return product.reshape([sizes.get(name, 1) for name in output])


def _without_ones(names, x):
  """(names, x) without axes of size 1."""
  kept = [axis for axis, size in enumerate(x.shape) if size != 1]
  return ''.join(names[axis] for axis in kept), x.reshape([x.shape[axis] for axis in kept])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _half_einsum(equation, dtype, x, y):
  return _product(equation, dtype, x, y)


def _product(equation, dtype, x, y):
  if is_cpu_bfloat16(x.dtype):
    return _cpu_einsum(equation, x, y).astype(dtype)
  return jnp.einsum(equation, x, y, preferred_element_type=dtype)


def _half_einsum_forward(equation, dtype, x, y):
  # Not `_half_einsum`, inside which the remat policies would not see the product. An operand is
  # kept for the gradient of the other alone: the kernels are frozen.
  residuals = (x.value if y.perturbed else None, y.value if x.perturbed else None)
  return _product(equation, dtype, x.value, y.value), residuals


def _half_einsum_backward(equation, dtype, residuals, grad):
  inputs, output = equation.split('->')
  x_names, y_names = inputs.split(',')
  x, y = residuals

  def gradient(names, other_names, other):
    if other is None or isinstance(grad, jax.custom_derivatives.SymbolicZero):
      return None
    return _product(f'{output},{other_names}->{names}', other.dtype, grad.astype(other.dtype),
                    other)

  return gradient(x_names, y_names, y), gradient(y_names, x_names, x)


_half_einsum.defvjp(_half_einsum_forward, _half_einsum_backward, symbolic_zeros=True)


def _cpu_einsum(equation, x, y):
  """bfloat16 einsum into float32, as one product of [batch, left, sum] and [batch, sum, right]."""
  inputs, output = equation.split('->')
  x_names, y_names = inputs.split(',')
  sizes = dict(zip(x_names + y_names, x.shape + y.shape, strict=True))
  pick = lambda names, test: ''.join(filter(test, names))
  batch = pick(x_names, lambda name: name in y_names and name in output)
  summed = pick(x_names, lambda name: name in y_names and name not in output)
  if not x_names.endswith(summed):  # the right operand alone may have the summed index first
    x, x_names, y, y_names = y, y_names, x, x_names
  left = pick(x_names, lambda name: name not in y_names)
  right = pick(y_names, lambda name: name not in x_names)

  def merged(operand, names, *sides):
    groups = [batch, *sides] if batch else sides
    shape = [math.prod(map(sizes.get, group)) for group in groups]
    return _transposed(operand, names, ''.join(groups)).reshape(shape)

  x = merged(x, x_names, left, summed)
  sum_last = y_names.endswith(summed)
  y = merged(y, y_names, right, summed) if sum_last else merged(y, y_names, summed, right)
  b = 'b' if batch else ''  # a batch axis of 1 would hide a dense product from the remat policies
  product = jnp.einsum(f'{b}lk,{b}{"rk" if sum_last else "kr"}->{b}lr', x, y,
                       preferred_element_type=jnp.float32)
  names = batch + left + right
  return _transposed(product.reshape([sizes[name] for name in names]), names, output)


def _transposed(x, names, wanted):
  """x with its axes in the wanted order."""
  if names == wanted:
    return x
  # XLA would take the transposition into the product, for which it has a slow kernel or none.
  order = [names.index(name) for name in wanted]
  return jax.lax.optimization_barrier(jax.lax.optimization_barrier(x).transpose(order))
