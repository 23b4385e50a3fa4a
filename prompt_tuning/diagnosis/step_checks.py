"""Checks of the optimizer, and of a few steps on a real batch."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from prompt_tuning import params as params_lib
from prompt_tuning.diagnosis.findings import PROBLEM, Finding, note, percent, problem, warning
from prompt_tuning.training import optimizer as optimizer_lib

PROBED_STEPS = 5
# Shares of the parameters' size below which all steps of a run together change little: of what a
# method adds, and of a whole model, which small changes turn round.
LEAST_TRAVEL, LEAST_TRAVEL_OF_ALL = 0.5, 0.01
# A loss on one batch that rises to this many times its least before, and above its start, is no
# noise.
RISE = 2.0
_LATER_LAYER = re.compile(r'(^|/)layers_[1-9]')
_SAMPLED = (0.01, 0.1, 0.5, 0.9)  # of the run's length


@dataclasses.dataclass(frozen=True)
class StepSize:
  """What one step does to parameters of size 1 whose gradients are 1.

  Attributes:
    size: root mean square of the part that turns with the gradient.
    decay: the same of the part that does not, which is weight decay.
  """

  size: float
  decay: float


def step_sizes(optimizer, trainable, steps: Sequence[int]) -> dict[int, StepSize]:
  """Asks the optimizer itself what it would do at some steps.

  Weight decay moves parameters at a rate of 0 too, so a step for a gradient is set against one for
  its opposite: half of the difference is the gradient's doing, half of the sum is decay.

  Args:
    optimizer: optax.GradientTransformation.
    trainable: tree of the trainable parameters or their shapes. The first layer stands for all,
      and an array of two entries an axis for each of its own: this costs nothing at any size.
    steps: absolute steps.
  """
  flat = params_lib.flatten(trainable)
  first = {path: leaf for path, leaf in flat.items() if not _LATER_LAYER.search(path)}
  ones = params_lib.unflatten({path: jnp.ones((2,) * len(leaf.shape), jnp.float32)
                               for path, leaf in (first or flat).items()})

  def update(step, sign):
    state = optimizer_lib.start_at(optimizer.init(ones), step)
    return optimizer.update(jax.tree.map(lambda x: sign * x, ones), state, ones)[0]

  @jax.jit  # one small program in place of many tiny ones
  def sizes_at(step):
    pair = jax.vmap(update, in_axes=(None, 0))(step, jnp.array([1.0, -1.0], jnp.float32))
    return (_rms(jax.tree.map(lambda x: (x[0] - x[1]) / 2, pair)),
            _rms(jax.tree.map(lambda x: (x[0] + x[1]) / 2, pair)))

  return {step: StepSize(*map(float, sizes_at(jnp.int32(step)))) for step in steps}


def sampled_steps(first: int, last: int) -> tuple[int, ...]:
  """Steps that tell a schedule: the first two, and some along the run."""
  length = max(last - first, 1)
  steps = {first, first + 1, *(first + int(share * length) for share in _SAMPLED)}
  return tuple(sorted(step for step in steps if step < first + length))


def check_rate(sizes: Mapping[int, StepSize]) -> list[Finding]:
  """Whether the learning rate reaches the optimizer; the first step of a warm-up may be 0."""
  still = [step for step, size in sizes.items() if not size.size > 0]
  first = min(sizes)
  if len(still) == len(sizes):
    return [problem('learning rate', 'The optimizer does not answer to the gradient at any of '
                    f'the steps {_listed(sizes)}: the learning rate is 0, or it freezes all.')]
  if [step for step in still if step != first]:
    return [warning('learning rate', f'The learning rate is 0 at the steps {_listed(still)} of '
                    f'{_listed(sizes)} that were tried.')]
  return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
  """What a few steps on one batch did.

  Attributes:
    losses: loss per token before each step.
    gradient_norms: norm of the gradient at each.
    moved: {path: root mean square of the change}.
    before: {path: root mean square at the start}.
    frozen_kept: the frozen parameters' fingerprint is what it was.
    steps: the steps that were done.
    whole: everything is trained.
  """

  losses: tuple[float, ...]
  gradient_norms: tuple[float, ...]
  moved: Mapping[str, float]
  before: Mapping[str, float]
  frozen_kept: bool
  steps: tuple[int, ...]
  whole: bool = False

  @property
  def share_moved(self) -> float:
    """Change of all parameters in shares of their size, a step."""
    size = math.hypot(*self.before.values())
    return math.hypot(*self.moved.values()) / size / len(self.steps) if size else math.inf


def probe(step_fn: Callable, state, frozen, batch, rng, steps: int = PROBED_STEPS) -> Probe:
  """Does a few training steps on one batch, on a copy of the state.

  Args:
    step_fn: from training.step.make_train_step.
    state: TrainState; it stays usable.
    frozen: tree of the frozen parameters.
    batch: on the devices.
    rng: the run's key.
    steps: how many. More than one: what starts at 0, as half of LoRA does, hides the other half's
      gradient at the first.
  """
  first, start = int(state.step), params_lib.flatten(state.trainable)
  fingerprint = params_lib.fingerprint(frozen) if frozen else ''
  state = jax.tree.map(jnp.copy, state)
  losses, norms = [], []
  for _ in range(steps):
    state, metrics = step_fn(state, frozen, batch, rng)
    total, weight = metrics['loss_per_token']
    losses.append(float(total) / float(weight) if float(weight) else math.nan)
    norms.append(float(metrics['grad_norm'][0]))
  now = params_lib.flatten(state.trainable)
  return Probe(
      losses=tuple(losses), gradient_norms=tuple(norms),
      moved={path: _size(now[path] - leaf) for path, leaf in start.items()},
      before={path: _size(leaf) for path, leaf in start.items()},
      frozen_kept=not frozen or params_lib.fingerprint(frozen) == fingerprint,
      steps=tuple(range(first, first + steps)), whole=not frozen)


def check_probe(result: Probe, sizes: Mapping[int, StepSize], length: int) -> list[Finding]:
  """What a probe tells about gradient, movement and the size of the steps.

  Args:
    result: of `probe`.
    sizes: of `step_sizes`, at the probe's steps among others.
    length: steps of the whole run.
  """
  norms, losses = result.gradient_norms, result.losses
  if not all(map(math.isfinite, (*norms, *losses))):
    return [problem('gradient', f'Loss and gradient norm of the first steps are '
                    f'{_numbers(losses)} and {_numbers(norms)}.')]
  if not max(norms) > 0:
    return [problem('gradient', f'The gradient is 0 on a real batch (loss {losses[0]:.4g}).')]
  findings = []
  if not result.frozen_kept:
    findings.append(problem('frozen parameters', 'Their fingerprint changed in a step.'))
  if any(finding.severity == PROBLEM for finding in check_rate(sizes)):
    return findings  # which says it all
  still = [path for path, moved in result.moved.items() if not moved > 0]
  if still:
    kind = problem if len(still) == len(result.moved) else warning
    findings.append(kind('parameters stand still', f'{len(still)} of {len(result.moved)} '
                         f'trained arrays did not move in {len(result.steps)} steps, such as '
                         f'{still[0]}.'))
  findings += _check_size(result, sizes, length)
  if any(losses[i] > max(RISE * min(losses[:i]), losses[0]) for i in range(1, len(losses))):
    findings.append(warning('steps too large', 'On one batch the loss a token does not fall: '
                            f'{_numbers(losses)}.'))
  if not findings:
    findings.append(note('gradient', f'{len(losses)} steps on one batch: loss a token '
                         f'{_numbers(losses)}, gradient norm {_numbers(norms)}; a step moves the '
                         f'trained parameters by {percent(result.share_moved, 1)} of their '
                         'size.'))
  return findings


def _check_size(result, sizes, length):
  """Whether all steps of the run together can change the parameters."""
  if not math.isfinite(result.share_moved):
    return []
  probed = [sizes[step].size for step in result.steps if step in sizes]
  decay = max(size.decay for size in sizes.values())
  # The probe may have met a warm-up: its steps are scaled up to the largest of the schedule.
  mean = sum(probed) / len(probed) if probed else 0
  growth = max(size.size for size in sizes.values()) / mean if mean else 1
  travel = max(result.share_moved - decay, 0) * growth * length
  if travel >= (LEAST_TRAVEL_OF_ALL if result.whole else LEAST_TRAVEL):
    return []
  return [warning('steps too small', f'{length} steps that all point the same way change the '
                  f'trained parameters by {percent(travel, 1)} of their size.')]


def _size(leaf) -> float:
  """Norm of an array, float32 inside."""
  return float(jnp.linalg.norm(jnp.ravel(leaf.astype(jnp.float32))))


def _rms(tree):
  """Root mean square of all entries, a float32 scalar."""
  leaves = jax.tree.leaves(tree)
  total = sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves)
  return jnp.sqrt(total / sum(leaf.size for leaf in leaves))


def _listed(steps) -> str:
  return ', '.join(map(str, sorted(steps)))


def _numbers(values) -> str:
  return ', '.join(f'{value:.4g}' for value in values)
