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
| nonfinite_steps | steps of the run that were left out, where there are any |
| examples_per_second, tokens_per_second, steps_per_second | since the last read |
| NAME/norm, NAME/distance | mean row norm of a prompt; mean row distance from its start |
"""

import contextlib
import time

import jax
import jax.numpy as jnp

from prompt_tuning import params as params_lib

COUNTS = ('examples', 'tokens')
NONFINITE = 'nonfinite'  # weight 1 where a step was not applied: its numbers count nowhere

_IN_FLIGHT = 2  # steps that are dispatched and not waited for


class Accumulator:
  """Keeps the metrics of steps on the device until somebody reads them.

  Steps go on being dispatched, a few ahead of the device: it never waits for the host, and a run
  that is asked to stop has only those few to finish. `read` waits for all of them and adds up in
  double precision.

  Args:
    clock: () -> seconds.
    totals: from `totals` of the run that is continued: what it had added and not read.
  """

  def __init__(self, clock=time.monotonic, totals=None):
    self._clock = clock
    self._steps = []
    self._totals = {name: list(pair) for name, pair in (totals or {}).items()}
    self._earlier = {name: self._totals[name][0] for name in COUNTS if name in self._totals}
    self._count = 0
    self._nonfinite = []
    self._since = clock()

  def __bool__(self):
    return bool(self._steps or self._totals)

  def add(self, step, metrics):
    """Keeps {name: (sum, weight)} of a step."""
    self._steps.append((step, metrics))
    self._count += 1
    if len(self._steps) > _IN_FLIGHT:
      jax.block_until_ready(self._steps[-1 - _IN_FLIGHT][1])

  def totals(self):
    """What was added since the last read, {name: [sum, weight]}: as JSON, what a resumed run needs.

    Sums are made in the order of the steps, so that a run that was stopped in between writes the
    very same numbers.
    """
    for step, metrics in jax.device_get(self._steps):
      if metrics.get(NONFINITE, (0,))[0]:
        self._nonfinite.append({'step': step} | {
            name: float(metrics[name][0]) for name in ('loss', 'grad_norm') if name in metrics})
      else:
        _add_up(self._totals, metrics)
    self._steps = []
    return {name: list(pair) for name, pair in self._totals.items()}

  def take_nonfinite(self):
    """The steps that were not applied, once each: [{'step':, 'loss':, 'grad_norm':}]."""
    self.totals()
    taken, self._nonfinite = self._nonfinite, []
    return taken

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
    if not self:
      raise ValueError('no step since the last read')
    values = _means(self.totals())
    seconds = max(self._clock() - self._since, 1e-9)
    values |= {f'{name}_per_second': (values[name] - self._earlier.get(name, 0)) / seconds
               for name in COUNTS if name in values}
    values['steps_per_second'] = self._count / seconds
    self._totals, self._earlier, self._count = {}, {}, 0
    self.restart_clock()
    return values


def summarize(steps):
  """Adds up a list of {name: (sum, weight)}: counts are summed, all else is sum over weight."""
  totals = {}
  for metrics in steps:
    _add_up(totals, metrics)
  return _means(totals)


def _add_up(totals, metrics):
  """Adds one step's pairs to {name: [sum, weight]}."""
  for name, (total, weight) in metrics.items():
    if name != NONFINITE:
      pair = totals.setdefault(name, [0.0, 0.0])
      pair[0] += float(total)
      pair[1] += float(weight)


def _means(totals):
  values = {}
  for name, (total, weight) in totals.items():
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
