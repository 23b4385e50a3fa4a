"""Learning rate schedules: functions of the absolute step, float32.

A run that continues a T5X base counts on from that base's step (INITIAL_STEP), so schedules that
end take `start_step`, the step at which they begin.
"""

import jax.numpy as jnp


def constant(learning_rate=0.3):
  """The same rate at every step."""
  return lambda step: jnp.full_like(step, learning_rate, dtype=jnp.float32)


def rsqrt_decay(learning_rate=1.0, warmup_steps=10_000):
  """learning_rate / sqrt(max(step, warmup_steps)), as T5 was pre-trained (Raffel et al. 2020)."""
  return lambda step: learning_rate / jnp.sqrt(
      jnp.maximum(jnp.asarray(step, jnp.float32), float(max(warmup_steps, 1))))


def linear_decay(learning_rate, decay_steps, end_value=0.0, start_step=0):
  """A straight line from learning_rate at start_step to end_value decay_steps later."""
  def schedule(step):
    return learning_rate + (end_value - learning_rate) * _progress(step, decay_steps, start_step)
  return schedule


def cosine_decay(learning_rate, decay_steps, end_value=0.0, start_step=0):
  """Half a cosine from learning_rate at start_step to end_value decay_steps later."""
  def schedule(step):
    height = (1 + jnp.cos(jnp.pi * _progress(step, decay_steps, start_step))) / 2
    return end_value + (learning_rate - end_value) * height
  return schedule


def linear_warmup(schedule, warmup_steps, start_step=0):
  """`schedule`, multiplied by a ramp from 0 at start_step to 1 warmup_steps later.

  Args:
    schedule: a schedule, or a number for a constant one.
    warmup_steps: length of the ramp; 0 leaves the schedule as it is.
    start_step: first step of the run.
  """
  after = schedule if callable(schedule) else constant(schedule)
  if warmup_steps <= 0:
    return after
  return lambda step: after(step) * _progress(step, warmup_steps, start_step)


def _progress(step, steps, start_step):
  """Share of `steps` that has passed since start_step, within [0, 1]."""
  # The subtraction is done in integers: float32 cannot tell steps beyond 2^24 apart.
  passed = (jnp.asarray(step) - start_step).astype(jnp.float32)
  return jnp.clip(passed / max(steps, 1), 0.0, 1.0)
