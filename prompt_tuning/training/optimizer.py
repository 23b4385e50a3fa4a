"""Optimizers: optax, with T5X's Adafactor as the default, and where their steps start.

Each function returns an optax.GradientTransformation over the trainable parameters alone. All of
them work under strict dtype promotion.
"""

import jax
import jax.numpy as jnp
import optax

from prompt_tuning import errors

# The counts in an optimizer's state that mean "step of the run". Adam's own count is not among
# them: it corrects the bias of moments that do start at zero.
_STEP_STATES = (optax.FactoredState, optax.ScaleByScheduleState)


def adafactor(learning_rate=0.3, *, decay_rate=0.8, clipping_threshold=1.0,
              multiply_by_parameter_scale=False, weight_decay_rate=1e-5, step_offset=0,
              beta1=None, factored=True, min_dim_size_to_factor=128,
              global_norm_clip_threshold=None):
  """Adafactor as T5X has it (Shazeer & Stern 2018); the defaults are the reference recipe's.

  Args:
    learning_rate: a number or a schedule.
    decay_rate: the second moment's decay at step t is 1 - (t + 1 - step_offset)^-decay_rate.
    clipping_threshold: largest root mean square of one array's update, or None.
    multiply_by_parameter_scale: scale updates with the root mean square of the parameter.
    weight_decay_rate: share of a parameter taken away at every step, NOT multiplied by the
      learning rate; None or 0 for none.
    step_offset: ADAFACTOR_STEP_OFFSET, the step at which the second moment's decay starts anew.
    beta1: momentum, or None.
    factored: keep row and column statistics of large matrices in place of all entries.
    min_dim_size_to_factor: a matrix is factored when its two largest dimensions reach this.
    global_norm_clip_threshold: largest norm of the whole gradient, or None.
  """
  core = optax.adafactor(
      _rate(learning_rate), min_dim_size_to_factor=min_dim_size_to_factor, decay_rate=decay_rate,
      multiply_by_parameter_scale=multiply_by_parameter_scale,
      clipping_threshold=clipping_threshold, momentum=beta1,
      weight_decay_rate=weight_decay_rate or None, factored=factored)

  def init(params):
    # The offset lives in the state's count, where start_at can see that it is not too large.
    return _shift(core.init(params), -step_offset, optax.FactoredState)

  return _finish(optax.GradientTransformation(init, core.update), global_norm_clip_threshold)


def adamw(learning_rate=1e-3, *, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0,
          global_norm_clip_threshold=None):
  """AdamW (Loshchilov & Hutter 2019); the weight decay is multiplied by the learning rate."""
  return _finish(
      optax.adamw(_rate(learning_rate), b1=b1, b2=b2, eps=eps, weight_decay=weight_decay),
      global_norm_clip_threshold)


def sgd(learning_rate=0.1, *, momentum=None, nesterov=False, global_norm_clip_threshold=None):
  """Stochastic gradient descent, with momentum if given."""
  return _finish(optax.sgd(_rate(learning_rate), momentum=momentum, nesterov=nesterov),
                 global_norm_clip_threshold)


def start_at(opt_state, step):
  """A fresh optimizer state that begins at `step` in place of 0.

  Args:
    opt_state: what an optimizer's `init` returned.
    step: int, the step stored in a T5X base or INITIAL_STEP. Schedules and Adafactor's decay
      count from it; Adam's bias correction does not.

  Raises:
    UserError: the step lies before Adafactor's step_offset.
  """
  opt_state = _shift(opt_state, step, _STEP_STATES)
  for part in _parts(opt_state, optax.FactoredState):
    # A traced count (inside eval_shape) has no value to look at.
    if isinstance(part.count, jax.core.Tracer) or not hasattr(part.count, '__array__'):
      continue
    if int(part.count) < 0:
      raise errors.UserError(
          f'ADAFACTOR_STEP_OFFSET is {step - int(part.count)}, beyond the first step of the run, '
          f'{step}: give a number from 0 to {step}.')
  return opt_state


def _parts(opt_state, kind):
  leaves = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, kind))
  return [leaf for leaf in leaves if isinstance(leaf, kind)]


def _shift(opt_state, steps, kind):
  """Adds `steps` to the counts of every state of `kind`."""
  def shift(part):
    return part._replace(count=part.count + jnp.int32(steps)) if isinstance(part, kind) else part
  return jax.tree.map(shift, opt_state, is_leaf=lambda x: isinstance(x, kind))


def _rate(learning_rate):
  """The learning rate, once it is sure to be one."""
  if callable(learning_rate) or (_is_number(learning_rate) and learning_rate >= 0):
    return learning_rate
  raise errors.UserError(f'LEARNING_RATE is {learning_rate!r}: give a number from 0 on, or a '
                         'schedule such as @schedules.linear_warmup().')


def _is_number(value):
  return isinstance(value, int | float) and not isinstance(value, bool)


def _finish(core, global_norm_clip_threshold):
  """Clips the whole gradient first where asked, and lets optax promote dtypes as it expects."""
  if global_norm_clip_threshold is not None:
    if not _is_number(global_norm_clip_threshold) or global_norm_clip_threshold <= 0:
      raise errors.UserError(f'GRADIENT_CLIP_NORM is {global_norm_clip_threshold!r}: give a number '
                             'above 0, or None.')
    core = optax.chain(optax.clip_by_global_norm(global_norm_clip_threshold), core)

  def init(params):
    with jax.numpy_dtype_promotion('standard'):
      return core.init(params)

  def update(updates, state, params=None):
    with jax.numpy_dtype_promotion('standard'):
      return core.update(updates, state, params)

  return optax.GradientTransformation(init, update)
