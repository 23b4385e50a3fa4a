"""`--dry_run`: builds shapes alone and prints what a run would take. Touches no file."""

import jax
import jax.numpy as jnp
import rich.console
import rich.table

from prompt_tuning import losses, partitioning
from prompt_tuning import params as params_lib
from prompt_tuning.cli import model as model_lib
from prompt_tuning.peft import model as peft_model

_SHOWN = 12  # rows of the table of shardings


def print_training(config):
  """Prints parameter counts, batch shapes, memory and shardings of a TrainConfig."""
  console = rich.console.Console(soft_wrap=True, highlight=False)
  module, mesh, trainable, frozen = _shapes(config)
  _print_counts(console, config, mesh, trainable, frozen)
  _print_memory(console, config, module, mesh, trainable, frozen)
  _print_shardings(console, module, mesh, trainable, frozen)


def print_model(config):
  """Prints parameter counts, batch shapes and shardings of an EvalConfig or InferConfig."""
  console = rich.console.Console(soft_wrap=True, highlight=False)
  module, mesh, trainable, frozen = _shapes(config)
  _print_counts(console, config, mesh, trainable, frozen)
  _print_shardings(console, module, mesh, trainable, frozen)


def _shapes(config):
  """(PeftModel, mesh, abstract trainable tree, abstract frozen tree)."""
  module = model_lib.module(config.model, config.data.task.labels)
  trainable, frozen = params_lib.split(peft_model.abstract_params(module), module.trainable)
  frozen = model_lib.kept_as(config.model.param_dtype, frozen)
  return module, model_lib.mesh(config.model), trainable, frozen


def _print_counts(console, config, mesh, trainable, frozen):
  console.print('Dry run: nothing is loaded or written.')
  counts = params_lib.count(trainable), params_lib.count(frozen)
  console.print(f'Parameters: {sum(counts):,}, trainable {counts[0]:,}, frozen {counts[1]:,}')
  console.print(f'Devices: {mesh.devices.size} {mesh.devices.flat[0].platform}, mesh '
                f'{dict(mesh.shape)}')
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


def _print_memory(console, config, module, mesh, trainable, frozen):
  """Bytes of one device: parameters as sharded, rows of the batch divided over the data axis."""
  opt_state = jax.eval_shape(config.optimizer.init, trainable)
  rows = max(config.batch_size // config.num_microbatches // mesh.shape['data'], 1)
  sizes = {
      'frozen parameters': _sharded_bytes(frozen, mesh, module),
      'trainable parameters and their gradient': 2 * _sharded_bytes(trainable, mesh, module),
      'optimizer state': params_lib.size_bytes(opt_state),
      'activations kept for the backward pass, at most': _activation_bytes(
          config, module, trainable, frozen, batch_shapes(config, rows)),
  }
  console.print('Memory of one device, estimated:')
  for name, size in {**sizes, 'together': sum(sizes.values())}.items():
    console.print(f'  {name}: {_bytes(size)}')


def _sharded_bytes(tree, mesh, module):
  if not tree:
    return 0
  shardings = params_lib.flatten(partitioning.parameter_shardings(
      tree, mesh, model_lib.method_axes(module)))
  total = 0
  for path, leaf in params_lib.flatten(tree).items():
    shape = shardings[path].shard_shape(leaf.shape)
    total += params_lib.size_bytes(jax.ShapeDtypeStruct(shape, leaf.dtype))
  return total


def _activation_bytes(config, module, trainable, frozen, batch):
  """What the forward pass hands to the backward pass, less the parameters among it."""
  def loss(trainable, frozen, batch):
    tokens = (batch['encoder_input_tokens'], batch['decoder_input_tokens'],
              batch['decoder_target_tokens'])
    logits = module.apply({'params': params_lib.merge(trainable, frozen)}, *tokens,
                          enable_dropout=True, rngs={'dropout': jax.random.key(0)})
    return losses.token_cross_entropy(logits, tokens[-1], batch['decoder_loss_weights'],
                                      z_loss=config.loss.z_loss)[0]

  def residuals(trainable, frozen, batch):
    return jax.vjp(lambda trainable: loss(trainable, frozen, batch), trainable)[1]

  kept = jax.eval_shape(residuals, trainable, frozen, batch)
  held = params_lib.size_bytes(frozen) + params_lib.size_bytes(trainable)
  return max(params_lib.size_bytes(kept) - held, 0)


def _print_shardings(console, module, mesh, trainable, frozen):
  abstract = params_lib.merge(trainable, frozen)
  table = rich.table.Table('parameter', 'shape', 'sharding', 'trained')
  shardings = params_lib.flatten(partitioning.parameter_shardings(
      abstract, mesh, model_lib.method_axes(module)))
  trained = params_lib.flatten(trainable)
  leaves = sorted(params_lib.flatten(abstract).items(), key=lambda item: item[0] not in trained)
  for path, leaf in leaves[:_SHOWN]:
    table.add_row(path, str(list(leaf.shape)), str(tuple(shardings[path].spec)),
                  'yes' if path in trained else '')
  if len(leaves) > _SHOWN:
    table.add_row(f'and {len(leaves) - _SHOWN} more', '', '', '')
  console.print(table)


def _bytes(size):
  for unit in ('B', 'KiB', 'MiB', 'GiB'):
    if size < 1024 or unit == 'GiB':
      return f'{size:,.0f} {unit}' if unit == 'B' else f'{size:,.1f} {unit}'
    size /= 1024

