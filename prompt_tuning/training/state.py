"""What training changes: the step, the trainable parameters and the optimizer's state."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from prompt_tuning.training import optimizer as optimizer_lib


class TrainState(flax.struct.PyTreeNode):
  """The donated part of a training step; frozen parameters travel beside it.

  Attributes:
    step: int32 scalar, how many steps lie behind (of the base's own training too, where the run
      continues a T5X base).
    trainable: tree of the trainable parameters.
    opt_state: the optimizer's state over `trainable`.
    nonfinite: int32 scalar, how many steps were not applied because their loss or gradient was NaN
      or infinite.
  """
  step: Any
  trainable: Any
  opt_state: Any
  nonfinite: Any = 0


def create(trainable, optimizer, step=0):
  """The state before the first step.

  Args:
    trainable: tree of arrays. The first training step donates them: keep a copy of what is
      needed later.
    optimizer: optax.GradientTransformation.
    step: int, INITIAL_STEP.
  """
  opt_state = optimizer_lib.start_at(optimizer.init(trainable), step)
  return TrainState(step=jnp.int32(step), trainable=trainable, opt_state=opt_state,
                    nonfinite=jnp.int32(0))


def shardings(state, optimizer, mesh):
  """Where a state lies on a mesh.

  An optimizer's array of a parameter's shape (Adam's moments) lies as the parameter does: in model
  tuning it is as large. Everything else is small and whole on every device.

  Args:
    state: TrainState whose trainable leaves (arrays or shapes) have their shardings.
    optimizer: the optax.GradientTransformation that made it.
    mesh: the mesh of those shardings.

  Returns:
    A TrainState of NamedShardings.
  """
  whole = NamedSharding(mesh, PartitionSpec())
  return state.replace(
      step=whole, nonfinite=whole,
      trainable=jax.tree.map(lambda leaf: leaf.sharding, state.trainable),
      opt_state=optax.tree_utils.tree_map_params(
          optimizer,
          lambda leaf, param: param.sharding if leaf.shape == param.shape else whole,
          state.opt_state, state.trainable, transform_non_params=lambda _: whole))
