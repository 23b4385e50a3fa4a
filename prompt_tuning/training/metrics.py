"""From the (sum, weight) pairs of many steps to the numbers that are written.

| name | what it is |
|---|---|
| loss | what is minimised, mean over steps (summed over tokens unless a normaliser is set) |
| z_loss | the part of it that z_loss makes |
| loss_per_token | summed loss over summed token weights |
| accuracy | share of the targets that are the most likely entry, teacher forced |
| grad_norm | norm of the trainable part's gradient before clipping, mean over steps |
| padding_share | share of the token slots, inputs and targets, that hold padding |
| examples, tokens | how many, padding left out |
| examples_per_second, tokens_per_second, steps_per_second | since the last read |
| NAME/norm, NAME/distance | mean row norm of a prompt; mean row distance from its start |
"""

import contextlib
import time

import jax
import jax.numpy as jnp

from prompt_tuning import params as params_lib

COUNTS = ('examples', 'tokens')


class Accumulator:
  """Keeps the metrics of steps on the device until somebody reads them.

  Adding does not wait for the device, so steps go on being dispatched ahead; `read` waits for all
  of them and adds up in double precision.
  """

  def __init__(self, clock=time.monotonic):
    self._clock = clock
    self._steps = []
    self._since = clock()

  def __len__(self):
    return len(self._steps)

  def add(self, metrics):
    """Keeps one step's {name: (sum, weight)}."""
    self._steps.append(metrics)

  def restart_clock(self):
    """Leaves the time until now (compilation) out of the next rates."""
    self._since = self._clock()

  @contextlib.contextmanager
  def paused(self):
    """Leaves the time inside the block (an evaluation, a save) out of the rates."""
    began = self._clock()
    yield
    self._since += self._clock() - began

  def read(self):
    """Means, counts and rates since the last read, as {name: float}; starts anew.

    Raises:
      ValueError: nothing was added.
    """
    if not self._steps:
      raise ValueError('no step since the last read')
    steps = jax.device_get(self._steps)
    seconds = max(self._clock() - self._since, 1e-9)
    values = summarize(steps)
    values |= {f'{name}_per_second': values[name] / seconds for name in COUNTS if name in values}
    values['steps_per_second'] = len(steps) / seconds
    self._steps = []
    self.restart_clock()
    return values


def summarize(steps):
  """Adds up a list of {name: (sum, weight)}: counts are summed, all else is sum over weight."""
  values = {}
  for name in steps[0]:
    total = sum(float(step[name][0]) for step in steps)
    weight = sum(float(step[name][1]) for step in steps)
    if name in COUNTS:
      values[name] = total
    else:
      values[name] = total / weight if weight else float('nan')
  return values


def prompts(trainable):
  """The prompts among trainable parameters, {path: array [..., P, H]}, on the device."""
  flat = params_lib.flatten(trainable)
  return {path: leaf for path, leaf in flat.items()
          if path.rsplit('/', 1)[-1] == 'prompt' and leaf.ndim >= 2}


def copy_prompts(trainable):
  """`prompts`, copied: the training step donates its state, so a start has to be kept apart."""
  return {path: jnp.copy(leaf) for path, leaf in prompts(trainable).items()}


@jax.jit
def prompt_metrics(now, start):
  """Mean row norm of each prompt and its mean row distance from the start.

  Args:
    now: {path: [..., P, H]}, from `prompts`.
    start: the same before training, from `copy_prompts`.

  Returns:
    {'prompt/norm': ..., 'prompt/distance': ...}, or with the path in place of `prompt` where there
    are several.
  """
  values = {}
  for path, leaf in now.items():
    name = 'prompt' if len(now) == 1 else path
    values[f'{name}/norm'] = _mean_row_norm(leaf)
    if path in start:
      moved = leaf.astype(jnp.float32) - jnp.asarray(start[path], jnp.float32)
      values[f'{name}/distance'] = _mean_row_norm(moved)
  return values


def _mean_row_norm(x):
  return jnp.mean(jnp.linalg.norm(x.astype(jnp.float32), axis=-1))
