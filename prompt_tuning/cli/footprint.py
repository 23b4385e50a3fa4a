"""The training step of a configuration, compiled for virtual devices of its MESH."""

import jax

from prompt_tuning import partitioning
from prompt_tuning.cli import model as model_lib
from prompt_tuning.errors import UserError
from prompt_tuning.training import ahead_of_time


def _start_devices(shape):
  """Makes JAX start with as many virtual CPU devices as the mesh has, and keep no compiled program.

  Raises:
    UserError: JAX has started already, with fewer.
  """
  devices = shape[0] * shape[1]
  try:
    jax.config.update('jax_num_cpu_devices', devices)
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_enable_compilation_cache', False)
  except RuntimeError:  # the backend is there
    if len(jax.devices('cpu')) < devices:
      raise UserError(
          f'MESH={shape[0]}x{shape[1]} needs {devices} virtual devices and this process has '
          f'started with {len(jax.devices("cpu"))}: do the dry run in a process of its '
          'own.') from None


def mesh(config: model_lib.ModelConfig) -> jax.sharding.Mesh:
  """The mesh of a dry run: MESH on virtual devices, or that of a real run.

  Raises:
    UserError: JAX has started already, with fewer devices than MESH has.
  """
  if config.mesh is None:
    return model_lib.mesh(config)
  _start_devices(config.mesh)
  devices = jax.devices('cpu')[:config.mesh[0] * config.mesh[1]]
  return partitioning.make_mesh(shape=config.mesh, devices=devices)


def compile_step(config, plan, batch) -> ahead_of_time.Footprint:
  """Compiles the training step of a TrainConfig.

  Args:
    config: cli.train.TrainConfig.
    plan: cli.dry_run.Plan.
    batch: shapes of the whole batch.

  Raises:
    UserError: the rows of the batch do not divide evenly.
  """
  shards = plan.mesh.shape['data'] * config.num_microbatches
  if config.batch_size % shards:
    raise UserError(
        f'BATCH_SIZE={config.batch_size} cannot be split into NUM_MICROBATCHES='
        f'{config.num_microbatches} parts over {plan.mesh.shape["data"]} copies of the model: give '
        f'a multiple of {shards}.')
  return ahead_of_time.footprint(
      plan.module, config.optimizer, plan.trainable, plan.frozen, batch, plan.mesh,
      model_lib.method_axes(plan.module), model_lib.axis_rules(config.model), loss=config.loss,
      num_microbatches=config.num_microbatches, max_nonfinite=config.skip_nonfinite_steps)


def memory_size(given) -> int:
  """Bytes from DEVICE_MEMORY: '16GiB', '80GB', or a number of bytes.

  Raises:
    UserError: anything else.
  """
  units = {'gib': 2**30, 'gb': 10**9, 'mib': 2**20, 'mb': 10**6}
  text = str(given).strip().lower()
  unit = next((unit for unit in units if text.endswith(unit)), '')
  try:
    size = int(float(text.removesuffix(unit)) * units.get(unit, 1))
  except ValueError:
    size = 0
  if size <= 0:
    raise UserError(f"DEVICE_MEMORY is {given!r}: give the memory of one device, as in '16GiB' or "
                    "'80GB'.")
  return size
