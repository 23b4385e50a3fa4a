"""The real training step compiled for devices that need not be there, and what it would take.

The CPU compiler lays out the program of a mesh of virtual devices from shapes alone; no array is
made and nothing runs. Three of its habits would make the figures wrong for GPU and TPU:

- It widens bfloat16 to float32, weights too. float16 has the same size and is left as it is, so it
  stands in for bfloat16 here.
- It hands matrix products to libraries of its own that want operands of other types and layouts;
  that pass is switched off.
- It drops the barriers that keep what is recomputed apart from what is kept, so that looped layers
  keep everything in spite of remat; that pass is switched off too.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from prompt_tuning import params as params_lib
from prompt_tuning import partitioning
from prompt_tuning.training import hlo
from prompt_tuning.training import state as state_lib
from prompt_tuning.training import step as step_lib

_COMPILER_OPTIONS = {'xla_disable_hlo_passes': 'dot-library-rewriter,cse_barrier_expander',
                     'xla_backend_optimization_level': 0}  # of machine code that never runs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Footprint:
  """What a step takes on each device.

  Attributes:
    parameter_bytes: trainable and frozen parameters, as they are sharded.
    optimizer_bytes: the optimizer's state.
    batch_bytes: rows of the batch, with what else a step is given.
    temporary_bytes: activations, gradients and collectives' buffers, as the compiler places them.
    program: matrix products and collectives.
    seconds: what lowering and compiling took.
  """

  parameter_bytes: int
  optimizer_bytes: int
  batch_bytes: int
  temporary_bytes: int
  program: hlo.Program
  seconds: float

  @property
  def total_bytes(self) -> int:
    """Memory of one device. The new state takes the place of the old one, which is donated."""
    return (self.parameter_bytes + self.optimizer_bytes + self.batch_bytes
            + self.temporary_bytes)


def footprint(model, optimizer, trainable, frozen, batch, mesh, axes, rules, **step_options):
  """Compiles a step and reads what it takes.

  Args:
    model: a PeftModel bound to the mesh (`edges`).
    optimizer: optax.GradientTransformation.
    trainable: nested dict of jax.ShapeDtypeStruct.
    frozen: the same of the frozen parameters.
    batch: dict of ShapeDtypeStruct [B, ...], the whole batch.
    mesh: of CPU devices.
    axes: (regex, axes) rules of the methods' leaves.
    rules: logical axis rules.
    **step_options: of step.make_train_step.

  Returns:
    Footprint.
  """
  start = time.perf_counter()
  placed = _place(params_lib.merge(trainable, frozen), mesh, axes, rules)
  trainable, frozen = params_lib.split(placed, model.trainable)
  state = abstract_state(trainable, optimizer, mesh)
  rows = NamedSharding(mesh, PartitionSpec('data'))
  batch = {name: _at(leaf, rows) for name, leaf in batch.items()}
  rng = _at(jax.eval_shape(lambda: jax.random.key(0)), NamedSharding(mesh, PartitionSpec()))
  step = step_lib.make_train_step(
      _in_float16(model), optimizer, state_shardings=jax.tree.map(lambda x: x.sharding, state),
      **step_options)
  compiled = step.lower(state, frozen, batch, rng).compile(_COMPILER_OPTIONS)
  memory = compiled.memory_analysis()
  parameters = device_bytes(state.trainable) + device_bytes(frozen)
  optimizer_bytes = device_bytes(state.opt_state)
  return Footprint(
      parameter_bytes=parameters, optimizer_bytes=optimizer_bytes,
      batch_bytes=device_bytes(batch), temporary_bytes=memory.temp_size_in_bytes,
      program=hlo.analyse(compiled.as_text()), seconds=time.perf_counter() - start)


def abstract_state(trainable, optimizer, mesh):
  """TrainState of ShapeDtypeStructs with shardings, from such a tree of trainable parameters."""
  state = jax.eval_shape(lambda tree: state_lib.create(tree, optimizer), trainable)
  state = state.replace(trainable=trainable)
  return jax.tree.map(_at, state, state_lib.shardings(state, optimizer, mesh))


def device_bytes(tree) -> int:
  """Bytes of one device's shards of a tree of ShapeDtypeStructs."""
  return sum(params_lib.size_bytes(jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape),
                                                        leaf.dtype))
             for leaf in jax.tree.leaves(tree))


def _place(tree, mesh, axes, rules):
  shardings = partitioning.parameter_shardings(tree, mesh, axes, rules=rules)
  return jax.tree.map(
      lambda leaf, sharding: _at(jax.ShapeDtypeStruct(leaf.shape, _stand_in(leaf.dtype)), sharding),
      tree, shardings)


def _at(leaf, sharding):
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _stand_in(dtype):
  return jnp.float16 if dtype == jnp.bfloat16 else dtype


def _in_float16(model):
  """The model with float16 activations where they are bfloat16."""
  config = dataclasses.replace(model.backbone.config)
  if config.dtype == 'bfloat16':
    # Past the check of the class, which refuses float16: T5 overflows in it, but nothing runs.
    object.__setattr__(config, 'dtype', 'float16')
  return model.clone(backbone=model.backbone.clone(config=config))
