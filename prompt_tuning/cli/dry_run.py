"""`--dry_run`: builds shapes alone and prints what a run would take. Touches no file.

The devices of MESH need not exist; `train --dry_run` compiles the training step for them.
"""

import dataclasses

import jax
import jax.numpy as jnp
import rich.console
import rich.table

from prompt_tuning import params as params_lib
from prompt_tuning import partitioning
from prompt_tuning.cli import footprint
from prompt_tuning.cli import model as model_lib
from prompt_tuning.peft import model as peft_model
from prompt_tuning.peft.soft_prompt import SoftPrompt
from prompt_tuning.training import ahead_of_time, memory

_SHOWN = 12  # rows of the table of shardings


def print_training(config):
  """Prints parameter counts, batch shapes, memory and shardings of a TrainConfig.

  With MESH the training step is compiled for it, on virtual devices.
  """
  console = rich.console.Console(soft_wrap=True, highlight=False)
  plan = shapes(config)
  _print_counts(console, config, plan)
  if config.data.packing:
    console.print(f'  With PACKING={config.data.packing!r} several short examples may share a row: '
                  'how many rows, and how long, is read off the data when the run starts.')
  estimated = _print_memory(console, config, plan)
  if config.model.mesh is not None:
    _print_footprint(console, config, footprint.compile_step(
        config, plan, batch_shapes(config, config.batch_size)), plan.mesh.size)
  elif config.device_memory is not None:
    _print_verdict(console, config, estimated, 'estimated')
  _print_shardings(console, plan)


def print_model(config):
  """Prints parameter counts, batch shapes and shardings of an EvalConfig or InferConfig."""
  console = rich.console.Console(soft_wrap=True, highlight=False)
  plan = shapes(config)
  _print_counts(console, config, plan)
  _print_shardings(console, plan)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """A model without arrays: its trees hold ShapeDtypeStructs with shardings."""

  module: peft_model.PeftModel
  mesh: jax.sharding.Mesh
  trainable: dict
  frozen: dict


def shapes(config) -> Plan:
  """What a configuration of any verb would load."""
  rules = model_lib.axis_rules(config.model)
  mesh = footprint.mesh(config.model)
  module = model_lib.on_mesh(
      model_lib.module(config.model, config.data.task.labels), mesh, rules)
  tree = model_lib.abstract_params(config.model, module)
  shardings = partitioning.parameter_shardings(
      tree, mesh, model_lib.method_axes(module), rules=rules)
  placed = jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
      tree, shardings)
  trainable, frozen = params_lib.split(placed, module.trainable)
  return Plan(module=module, mesh=mesh, trainable=trainable, frozen=frozen)


def _print_counts(console, config, plan):
  console.print('Dry run: nothing is loaded or written.')
  counts = params_lib.count(plan.trainable), params_lib.count(plan.frozen)
  console.print(f'Parameters: {sum(counts):,}, trainable {counts[0]:,}, frozen {counts[1]:,}')
  console.print(f'Devices: {plan.mesh.size} {plan.mesh.devices.flat[0].platform}, mesh '
                f'{dict(plan.mesh.shape)}')
  console.print('Largest batch (smaller shapes are chosen from the data):')
  for name, array in batch_shapes(config, config.batch_size).items():
    console.print(f'  {name} {list(array.shape)} {array.dtype}')


def batch_shapes(config, rows):
  """Shapes of the largest batch: every example at TASK_FEATURE_LENGTHS."""
  lengths = config.data.feature_lengths
  inputs = jax.ShapeDtypeStruct((rows, lengths['inputs']), jnp.int32)
  targets = jax.ShapeDtypeStruct((rows, lengths['targets']), jnp.int32)
  return {'encoder_input_tokens': inputs, 'decoder_input_tokens': targets,
          'decoder_target_tokens': targets,
          'decoder_loss_weights': jax.ShapeDtypeStruct(targets.shape, jnp.float32)}


def estimate(config, plan) -> dict[str, int]:
  """Bytes of one device in a training step, in closed form, by what they are for."""
  state = ahead_of_time.abstract_state(plan.trainable, config.optimizer, plan.mesh)
  trained = params_lib.flatten(plan.trainable)
  lengths = config.data.feature_lengths
  rows = memory.Rows(
      examples=-(-config.batch_size // (config.num_microbatches * plan.mesh.shape['data'])),
      inputs=lengths['inputs'] + _prompt_length(plan.module), targets=lengths['targets'],
      model=plan.mesh.shape['model'],
      split_residual=config.model.activation_partitioning_dims == 2)
  largest = max(ahead_of_time.device_bytes(leaf) for leaf in trained.values())
  trainable = ahead_of_time.device_bytes(plan.trainable)
  gathers = config.model.parameter_partitioning_dims == 2 and plan.mesh.shape['data'] > 1
  gathered = memory.gathered_bytes(plan.module.backbone.config, rows.model,
                                   jnp.dtype(config.model.param_dtype).itemsize)
  return {
      'frozen parameters': ahead_of_time.device_bytes(plan.frozen),
      'trainable parameters': trainable,
      'their gradients, and the largest update': trainable + largest,
      'optimizer state': ahead_of_time.device_bytes(state.opt_state),
      'activations': memory.activation_bytes(plan.module.backbone.config, rows, trained),
      'parameters gathered from other devices': gathered * gathers,
  }


def _print_memory(console, config, plan):
  """Prints the estimate; returns its sum."""
  sizes = estimate(config, plan)
  together = sum(sizes.values())
  console.print('Memory of one device, estimated (docs/scale.md has the formula):')
  for name, size in {**sizes, 'together': together}.items():
    console.print(f'  {name}: {size_text(size)}')
  return together


def _print_footprint(console, config, found, devices):
  """Prints what the compiled step takes."""
  program = found.program
  console.print(
      f'Training step, compiled for {devices} virtual devices in {found.seconds:.0f} s; on each:')
  for name, size in (('parameters', found.parameter_bytes),
                     ('optimizer state', found.optimizer_bytes), ('batch', found.batch_bytes),
                     ('temporary memory (activations, gradients)', found.temporary_bytes),
                     ('together', found.total_bytes)):
    console.print(f'  {name}: {size_text(size)}')
  console.print(f'  FLOPs of matrix products: {program.matmul_flops:.3g} a step, '
                f'{devices * program.matmul_flops:.3g} on all devices')
  for kind, collective in program.collectives.items():
    console.print(f'  {kind}: {collective.count} a step, {size_text(collective.size_bytes)}')
  if not program.collectives:
    console.print('  collectives: none')
  console.print(
      '  Read from the compiled program: a loop counts as often as it runs (XLA counts its body '
      'once); collectives\n  count with the bytes of their results. bfloat16 is compiled as '
      'float16, of the same size, since the CPU compiler\n  widens bfloat16 to float32. Other '
      'compilers fuse and overlap more: leave a tenth of the memory free.')
  if program.unknown_loops:
    console.print(f'  {program.unknown_loops} loops have no known length and count once.')
  if config.device_memory is not None:
    _print_verdict(console, config, found.total_bytes, 'compiled')


def _print_verdict(console, config, size, how):
  share = size / config.device_memory
  fits = 'fits' if share <= 1 else 'does not fit'
  console.print(f'Verdict ({how}): {fits}; {size_text(size)} are {100 * share:.0f} % of '
                f'DEVICE_MEMORY, {size_text(config.device_memory)}.')
  if share > 1:
    console.print(
        "  Less memory: PARAM_DTYPE and ACTIVATION_DTYPE 'bfloat16'; REMAT_POLICY 'full'; a larger "
        'NUM_MICROBATCHES;\n  more devices a copy (NUM_PARTITIONS, MESH); '
        'PARAMETER_PARTITIONING_DIMS or ACTIVATION_PARTITIONING_DIMS 2;\n'
        "  frozen weights in PARAM_DTYPE 'int8'.")


def _prompt_length(module) -> int:
  """Rows that the methods add to every input."""
  return sum(method.length for method in module.methods if isinstance(method, SoftPrompt))


def _print_shardings(console, plan):
  table = rich.table.Table('parameter', 'shape', 'sharding', 'trained')
  trained = params_lib.flatten(plan.trainable)
  leaves = params_lib.flatten(params_lib.merge(plan.trainable, plan.frozen))
  ordered = sorted(leaves.items(), key=lambda item: item[0] not in trained)
  for path, leaf in ordered[:_SHOWN]:
    table.add_row(path, str(list(leaf.shape)), str(tuple(leaf.sharding.spec)),
                  'yes' if path in trained else '')
  if len(ordered) > _SHOWN:
    table.add_row(f'and {len(ordered) - _SHOWN} more', '', '', '')
  console.print(table)


def size_text(size) -> str:
  """Bytes for reading, as in '2.6 GiB'."""
  for unit in ('B', 'KiB', 'MiB', 'GiB'):
    if size < 1024 or unit == 'GiB':
      return f'{size:,.0f} {unit}' if unit == 'B' else f'{size:,.1f} {unit}'
    size /= 1024
