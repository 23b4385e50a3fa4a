"""Mesh, logical axis names of every parameter, and the shardings that follow from both.

One ordered table names the logical axes of every backbone parameter, a second says which mesh axis
a logical axis lies on; both are plain data and a parameter that no rule covers is an error.
"""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from prompt_tuning import errors
from prompt_tuning import params as params_lib

MESH_AXES = ('data', 'model')

# Whole paths; under scan `layers/` replaces `layers_{i}/` and 'layers' is put in front of the axes.
_STACK = r'(encoder|decoder)/layers(_\d+)?'
PARAMETER_AXES = (
    (r'token_embedder/embedding', ('vocab', 'embed')),
    (r'decoder/logits_dense/kernel', ('embed', 'vocab')),
    (r'(encoder|decoder)/(layers(_\d+)?/)?relpos_bias/rel_embedding', ('heads', 'relpos_buckets')),
    (_STACK + r'/\w*attention/(query|key|value)/kernel', ('embed', 'joined_kv')),
    (_STACK + r'/\w*attention/out/kernel', ('joined_kv', 'embed')),
    (_STACK + r'/mlp/wi(_\d+)?/kernel', ('embed', 'mlp')),
    (_STACK + r'/mlp/wo/kernel', ('mlp', 'embed')),
    (_STACK + r'/pre_\w+_layer_norm/scale', ('norm',)),
    (r'(encoder|decoder)/(encoder|decoder)_norm/scale', ('norm',)),
    # Scales of int8 parameters: one for each output channel.
    (r'token_embedder/embedding_scale', ('vocab',)),
    (r'decoder/logits_dense/kernel_scale', ('vocab',)),
    (_STACK + r'/\w*attention/(query|key|value)/kernel_scale', ('joined_kv',)),
    (_STACK + r'/mlp/wi(_\d+)?/kernel_scale', ('mlp',)),
    (_STACK + r'/(\w*attention/out|mlp/wo)/kernel_scale', ('embed',)),
)

# Logical axis -> mesh axis; None is replicated. Tensor parallelism as in Megatron-LM (Shoeybi et
# al. 2019): the first product of a block splits its outputs, the second its inputs.
LOGICAL_AXIS_RULES = (
    ('batch', 'data'),
    ('length', None),
    ('residual', None),
    ('vocab', 'model'),
    ('heads', 'model'),
    ('joined_kv', 'model'),
    ('mlp', 'model'),
    ('embed', None),
    ('norm', None),
    ('relpos_buckets', None),
    ('layers', None),
    ('kv', None),
    ('prompt', None),
    ('rank', None),
)


def logical_axis_rules(parameter_partitioning_dims=1, activation_partitioning_dims=1):
  """LOGICAL_AXIS_RULES, or those that split more, under T5X's names for them.

  Args:
    parameter_partitioning_dims: 2 splits parameters over the data axis too (fully sharded, as in
      ZeRO stage 3, Rajbhandari et al. 2020): each layer is gathered where it is used.
    activation_partitioning_dims: 2 splits the residual stream between blocks over the model axis
      too: its all-reduces become a reduce-scatter and an all-gather of the same bytes together, and
      what the backward pass keeps of it shrinks (GSPMD, Xu et al. 2021, section 4).

  Raises:
    UserError: another number than 1 or 2.
  """
  given = {'PARAMETER_PARTITIONING_DIMS': parameter_partitioning_dims,
           'ACTIVATION_PARTITIONING_DIMS': activation_partitioning_dims}
  for name, dims in given.items():
    if dims not in (1, 2):
      raise errors.UserError(f'{name} is {dims!r}; allowed: 1, 2.')
  more = (('embed', 'data'),) * (parameter_partitioning_dims == 2)
  more += (('residual', 'model'),) * (activation_partitioning_dims == 2)
  return (*more, *LOGICAL_AXIS_RULES)


def mesh_shape(given):
  """(data, model) from MESH, a text as in '4x8' or two whole numbers.

  Raises:
    UserError: anything else.
  """
  sizes = given.lower().split('x') if isinstance(given, str) else given
  try:
    data, model = (int(size) for size in sizes)
  except (TypeError, ValueError):
    data = model = 0
  if data < 1 or model < 1:
    raise errors.UserError(f"MESH is {given!r}: give the sizes of the axes data and model, as in "
                           "'4x8' (32 devices, 8 of them share one copy of the model).")
  return data, model


def make_mesh(num_partitions=1, model_parallel_submesh=None, devices=None, *, shape=None):
  """A mesh of axes (data, model) over the devices.

  Args:
    num_partitions: model parallelism, the size of the `model` axis.
    model_parallel_submesh: T5X's form of the same, per-dimension sizes on a TPU torus whose product
      is the model parallelism; in place of num_partitions.
    devices: the devices to use, all by default.
    shape: (data, model), in place of both; it has to be that of all devices.

  Raises:
    UserError: the number of devices is no multiple of the model parallelism, or not that of shape.
  """
  devices = jax.devices() if devices is None else devices
  if shape is not None:
    num_partitions, model_parallel_submesh = shape[1], None
    if shape[0] * shape[1] != len(devices):
      raise errors.UserError(
          f'MESH={shape[0]}x{shape[1]} has {shape[0] * shape[1]} devices and there are '
          f'{len(devices)}: give sizes whose product is {len(devices)}, or plan for other devices '
          'with --dry_run.')
  given = f'num_partitions={num_partitions}'
  if model_parallel_submesh is not None:
    given = f'model_parallel_submesh={tuple(model_parallel_submesh)}'
    num_partitions = int(np.prod(model_parallel_submesh))
  if num_partitions < 1 or len(devices) % num_partitions:
    raise errors.UserError(
        f'{given} does not divide the {len(devices)} devices: give a divisor of {len(devices)}.')
  mesh = jax.make_mesh((len(devices) // num_partitions, num_partitions), MESH_AXES,
                       axis_types=(AxisType.Auto,) * 2, devices=devices)
  # On a TPU torus the devices of a process need not lie together; the rows of a batch should.
  rows = sorted(mesh.devices, key=lambda row: min(device.process_index for device in row))
  return jax.sharding.Mesh(np.asarray(rows), MESH_AXES, axis_types=mesh.axis_types)


def parameter_axes(abstract_params, method_rules=(), user_rules=()):
  """Logical axis names of every parameter.

  Args:
    abstract_params: nested dict of arrays or ShapeDtypeStructs.
    method_rules: (regex, axes) pairs of the methods' leaves, `method.logical_axes` in order.
    user_rules: (regex, axes) pairs that go before all others; each has to match something.

  Returns:
    {path: axes}, one name (or None) for each dimension.

  Raises:
    KeyError: no rule covers a parameter.
    UserError: a user's rule matches nothing.
    ValueError: a rule names another number of axes than the parameter has.
  """
  flat = params_lib.flatten(abstract_params)
  if user_rules:
    params_lib.match_all((*user_rules, (r'.*', None)), flat, user_rules=True)
  found = params_lib.match_all((*user_rules, *method_rules, *PARAMETER_AXES), flat)
  return {path: _fit(path, found[path], leaf.ndim) for path, leaf in flat.items()}


def _fit(path, axes, ndim):
  """Puts 'layers' in front where the path is that of stacked layers."""
  axes = (('layers', *axes) if 'layers' in path.split('/') else tuple(axes))
  if len(axes) != ndim:
    raise ValueError(f'parameter {path!r} has {ndim} dimensions, its sharding rule names {axes}')
  return axes


def partition_spec(axes, shape, mesh, rules=LOGICAL_AXIS_RULES):
  """The PartitionSpec of an array with these logical axes.

  A dimension that its mesh axis does not divide is replicated (6 heads over 4 devices), and a mesh
  axis is used once: the first dimension that asks for it gets it.

  Args:
    axes: logical axis names, None for a dimension that is never split.
    shape: the array's shape.
    mesh: the mesh.
    rules: (logical axis, mesh axis or None) pairs; the first with the name counts.

  Raises:
    KeyError: a logical axis without a rule.
  """
  mapping = dict(reversed(tuple(rules)))
  spec = []
  for axis, size in zip(axes, shape, strict=True):
    mesh_axis = None if axis is None else mapping[axis]
    if mesh_axis in spec or (mesh_axis is not None and size % mesh.shape[mesh_axis]):
      mesh_axis = None
    spec.append(mesh_axis)
  return PartitionSpec(*spec)


def parameter_shardings(abstract_params, mesh, method_rules=(), *, user_rules=(),
                        rules=LOGICAL_AXIS_RULES):
  """A NamedSharding for every parameter, as a nested dict like `abstract_params`.

  Args and errors: as `parameter_axes` and `partition_spec`.
  """
  axes = parameter_axes(abstract_params, method_rules, user_rules)
  return params_lib.unflatten({
      path: NamedSharding(mesh, partition_spec(axes[path], leaf.shape, mesh, rules))
      for path, leaf in params_lib.flatten(abstract_params).items()})


def shard_params(params, mesh, method_rules=(), **kwargs):
  """Puts parameters (nested dict of arrays) where `parameter_shardings` says."""
  return jax.device_put(params, parameter_shardings(params, mesh, method_rules, **kwargs))


def data_share(mesh):
  """(index, count): the rows of a batch that this process reads, one of `count` equal parts.

  Processes whose devices share the copies of the model read the same rows.

  Raises:
    UserError: the processes' parts overlap in other ways.
  """
  process = jax.process_index()
  mine = [i for i, row in enumerate(mesh.devices)
          if any(device.process_index == process for device in row)]
  together = {frozenset(device.process_index for device in mesh.devices[i]) for i in mine}
  index, count = mine[0] // len(mine), len(mesh.devices) // len(mine)
  if mine != list(range(index * len(mine), (index + 1) * len(mine))) or len(together) > 1:
    raise errors.UserError(
        f'The devices of process {process} belong to the copies {mine} of the model on a mesh of '
        f'{dict(mesh.shape)}: give a NUM_PARTITIONS that divides, or is a multiple of, the '
        f'{jax.local_device_count()} devices of a process.')
  return index, count


def shard_batch(batch, mesh):
  """Splits a batch by rows over the data axis.

  Args:
    batch: dict of arrays [B, ...]: this process's rows, the part that `data_share` names.
    mesh: the mesh.

  Returns:
    dict of jax arrays; over several processes their rows together are the global batch.

  Raises:
    UserError: the rows do not divide evenly.
  """
  sharding = NamedSharding(mesh, PartitionSpec('data'))
  parts = data_share(mesh)[1]
  shards = mesh.shape['data'] // parts
  rows = len(next(iter(batch.values())))
  if rows % shards:
    raise errors.UserError(
        f'A batch of {rows} rows cannot be split over {shards} devices: give a BATCH_SIZE that is '
        f'a multiple of {mesh.shape["data"]}.')
  return {name: jax.make_array_from_process_local_data(sharding, np.asarray(array))
          for name, array in batch.items()}
