"""Frozen weights in int8: symmetric, with one float32 scale for every output channel.

A quantised parameter stays at its own path, and its scales stand beside it:

    .../query/kernel [..., in, out] int8            .../query/kernel_scale [..., out]
    token_embedder/embedding [V, H] int8            token_embedder/embedding_scale [V]

Only weights are quantised; products run in the activation dtype on weights that are widened where
they are used. A row of the embedding table is an output channel of a tied head too.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import params as params_lib
from prompt_tuning.errors import UserError
from prompt_tuning.models import products

INT8 = 'int8'
SCALE = '_scale'  # what the path of a scale has behind its parameter's
# The axis whose entries share a scale, by the last name of a path. Everything else (norms,
# position biases, the leaves of methods) stays as it is.
_SHARED_AXIS = {'kernel': -2, 'embedding': -1}
_LARGEST = 127
_BLOCK = 2**18  # values quantised at a time, so few that the processor's cache holds them


def is_quantizable(path: str) -> bool:
  """Whether the parameter at a '/'-joined path is kept in int8."""
  return _shared_axis(path) is not None


def _shared_axis(path):
  return _SHARED_AXIS.get(path.rpartition('/')[2])


def quantize(path: str, array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Rounds a parameter to the nearest of 255 steps of each channel.

  Args:
    path: '/'-joined; tells which axis shares a scale.
    array: [in, out] or [V, H], floating-point.

  Returns:
    (int8 values of the same shape, float32 scales [out] or [V]); values times scales are within
    half a scale of `array`.
  """
  axis = _shared_axis(path)
  largest = np.maximum(array.max(axis), -array.min(axis))
  scale = (largest / _LARGEST).astype(np.float32)
  # A channel of zeros has scale 0; whatever it is divided by, its values are 0.
  divisor = np.where(scale == 0, np.float32(1), scale)
  divisor = np.broadcast_to(np.expand_dims(divisor, axis), array.shape)
  values = np.empty(array.shape, np.int8)
  rows = max(1, _BLOCK // array.shape[1])
  with np.errstate(invalid='ignore'):  # a NaN makes its scale NaN, and so itself again
    for start in range(0, len(array), rows):
      part = slice(start, start + rows)
      values[part] = np.rint(array[part] / divisor[part])
  return values, scale


def abstract(params):
  """The shapes that a backbone has in int8.

  Args:
    params: nested dict of arrays or jax.ShapeDtypeStructs.

  Returns:
    Nested dict of jax.ShapeDtypeStructs, scales beside the quantised parameters.
  """
  flat = {}
  for path, leaf in params_lib.flatten(params).items():
    if is_quantizable(path):
      axis = _shared_axis(path) % len(leaf.shape)
      flat[path] = jax.ShapeDtypeStruct(leaf.shape, jnp.int8)
      flat[path + SCALE] = jax.ShapeDtypeStruct(
          leaf.shape[:axis] + leaf.shape[axis + 1:], jnp.float32)
    else:
      flat[path] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
  return params_lib.unflatten(flat)


def is_scale(path: str, flat) -> bool:
  """Whether a path of {path: leaf} holds the scales of another one."""
  return path.endswith(SCALE) and path.removesuffix(SCALE) in flat


def check_frozen(params, trainable):
  """Refuses to train what int8 cannot hold the small changes of.

  Args:
    params: nested dict of arrays or shapes, quantised or to be quantised.
    trainable: regular expressions of the paths to be trained.

  Raises:
    UserError: one of them matches a parameter that is kept in int8.
  """
  trained = [path for path in params_lib.flatten(params)
             if is_quantizable(path) and params_lib.matches(trainable, path)]
  if trained:
    raise UserError(f'{trained[0]} is to be trained and to be kept in int8, whose steps are larger '
                    "than those of training. Give PARAM_DTYPE = 'float32', or a method with "
                    'parameters of its own, such as peft/prompt.gin or peft/lora.gin.')


def embedding_table(params):
  """The embedding table [V, H] in floating point, however it is kept."""
  flat = params_lib.flatten(params)
  path = 'token_embedder/embedding'
  if path + SCALE not in flat:
    return flat[path]
  return jax.jit(lambda values, scale: widen(values, scale[:, None], jnp.float32))(
      flat[path], flat[path + SCALE])


def widen(values, scale, dtype):
  """int8 values times float32 scales, which broadcast, rounded to `dtype` once."""
  return (values.astype(jnp.float32) * scale).astype(dtype)


# What `dot` does by a rule of its own: the backward pass widens again and keeps no wide kernel.
@functools.partial(jax.checkpoint, static_argnums=0)
def einsum(equation, x, values, scale):
  """einsum of x and a frozen kernel: int8 values, float32 scales that broadcast to them."""
  return products.einsum(equation, x, widen(values, scale, x.dtype))


@jax.custom_vjp
def dot(x, values, scale):
  """x [..., in] times a frozen kernel: int8 values [in, out], float32 scales [out]."""
  return products.dot(x, widen(values, scale, x.dtype))


def _dot_forward(x, values, scale):
  return dot(x, values, scale), (values, scale)


def _dot_backward(kernel, grad):
  # Widened again: differentiated by itself, the product would keep the wide kernel of every layer
  # for the backward pass. Without the barrier XLA finds that both are the same and keeps it too.
  (values, scale), grad = jax.lax.optimization_barrier((kernel, grad))
  return products.dot(grad, widen(values, scale, grad.dtype).T), None, None


dot.defvjp(_dot_forward, _dot_backward)
