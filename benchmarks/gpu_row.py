"""One row of benchmarks/gpu.py, in a process of its own: random weights, the largest batch, times.

It needs neither tensorflow nor seqio nor grain.
"""

import dataclasses
import functools
import json
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import params as params_lib
from prompt_tuning.decoding import generate
from prompt_tuning.models import int8
from prompt_tuning.models.layers import Attention, AttentionCore
from prompt_tuning.models.t5 import T5, T5Config
from prompt_tuning.peft import model as peft_model
from prompt_tuning.peft.method import Method
from prompt_tuning.peft.prompt_init import Uniform
from prompt_tuning.peft.soft_prompt import SoftPrompt
from prompt_tuning.training import optimizer as optimizer_lib
from prompt_tuning.training import state as state_lib
from prompt_tuning.training import step as step_lib

SHAPES = {  # T5 1.1
    'tiny': dict(vocab_size=128, emb_dim=32, num_heads=2, head_dim=16, mlp_dim=64,
                 num_encoder_layers=2, num_decoder_layers=2),
    'xl': dict(vocab_size=32128, emb_dim=2048, num_heads=32, head_dim=64, mlp_dim=5120,
               num_encoder_layers=24, num_decoder_layers=24),
    'xxl': dict(vocab_size=32128, emb_dim=4096, num_heads=64, head_dim=64, mlp_dim=10240,
                num_encoder_layers=24, num_decoder_layers=24),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FusedAttention(Method):
  """Lets jax.nn compute the attention's core; 'cudnn' is for GPUs and bfloat16, 'xla' for tests."""

  implementation: str = 'cudnn'

  trainable = ()

  def __call__(self, next_fun, args, kwargs, context):
    if not isinstance(context.module, AttentionCore):
      return next_fun(*args, **kwargs)
    query, key, value, mask, bias = args
    bias = None if bias is None else bias.astype(query.dtype)
    return jax.nn.dot_product_attention(query, key, value, bias=bias, mask=mask, scale=1.0,
                                        implementation=self.implementation)


def make_model(row):
  """The PeftModel of a row: T5 1.1, a prompt, no dropout."""
  config = T5Config(**SHAPES[row['shape']], dtype='bfloat16', dropout_rate=0.0,
                    scan_layers=row['scan'], remat_policy=row['remat'])
  methods = (SoftPrompt(length=row['prompt'], init=Uniform()),)
  if row['attention'] == 'cudnn':
    methods += (FusedAttention(),)
  return peft_model.PeftModel(T5(config), methods)


def abstract(model, frozen_dtype):
  """(trainable, frozen): shapes, the frozen ones in bfloat16 or int8."""
  trainable, frozen = params_lib.split(peft_model.abstract_params(model), model.trainable)
  frozen = jax.eval_shape(lambda tree: params_lib.cast(tree, jnp.bfloat16), frozen)
  return trainable, int8.abstract(frozen) if frozen_dtype == int8.INT8 else frozen


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _fill(key, path, shape, dtype):
  if path.endswith('norm/scale'):
    return jnp.ones(shape, dtype)
  if dtype == jnp.int8:
    return jax.lax.bitcast_convert_type(jax.random.bits(key, shape, jnp.uint8), jnp.int8)
  if path.endswith(int8.SCALE):  # 74 is the deviation of int8 values; outputs of order 1
    return jnp.full(shape, (1.0 if 'embedding' in path else shape[-1] ** -0.5) / 74, dtype)
  deviation = 1.0 if 'embedding' in path or '/prompt/' in path else shape[-2] ** -0.5
  return (deviation * jax.random.normal(key, shape, jnp.float32)).astype(dtype)


def random_weights(shapes, seed=0):
  """Arrays of these shapes, made on the device one at a time."""
  keys = jax.random.split(jax.random.key(seed), len(params_lib.flatten(shapes)))
  return params_lib.unflatten({
      path: jax.block_until_ready(_fill(key, path, leaf.shape, leaf.dtype))
      for key, (path, leaf) in zip(keys, params_lib.flatten(shapes).items(), strict=True)})


def batch_shapes(row, rows):
  inputs = jax.ShapeDtypeStruct((rows, row['inputs']), jnp.int32)
  targets = jax.ShapeDtypeStruct((rows, row['targets']), jnp.int32)
  return {'encoder_input_tokens': inputs, 'decoder_input_tokens': targets,
          'decoder_target_tokens': targets}


def random_batch(row, rows):
  rng = np.random.default_rng(0)
  draw = lambda leaf: jnp.asarray(rng.integers(2, 100, leaf.shape), jnp.int32)
  return {name: draw(leaf) for name, leaf in batch_shapes(row, rows).items()}


def largest(fits, first, most):
  """The largest n that fits, by doubling from `first` and halving the gap to an eighth of n.

  Args:
    fits: n -> bool, True up to some n; not even `first` need fit (0 is returned).
    first: where to begin.
    most: where to end.
  """
  low, high = 0, None
  n = first
  while high is None and n <= most:
    low, high = (n, None) if fits(n) else (low, n)
    n *= 2
  if high is None or not low:
    return low
  while high - low > max(1, low // 8):
    middle = (low + high) // 2
    low, high = (middle, high) if fits(middle) else (low, middle)
  return low


def needed_bytes(compiled):
  """Device memory of a compiled function by the compiler's own account."""
  memory = compiled.memory_analysis()
  return (memory.argument_size_in_bytes + memory.output_size_in_bytes
          + memory.temp_size_in_bytes - memory.alias_size_in_bytes)


def step_flops(shape, batch, inputs, targets):
  """FLOPs that a step of prompt tuning cannot do without; recomputation is not counted.

  A product with a frozen weight has one product in the backward pass, a product of attention two.
  Few targets need no keys and values of the inputs, see Attention.skips_keys.

  Args:
    shape: a value of SHAPES.
    batch: rows.
    inputs: tokens of a row, the prompt included.
    targets: tokens of a row.
  """
  width, inner = shape['emb_dim'], shape['num_heads'] * shape['head_dim']
  block = 4 * width * inner + 3 * width * shape['mlp_dim']
  encoder, decoder = shape['num_encoder_layers'], shape['num_decoder_layers']
  cross = Attention(num_heads=shape['num_heads'], head_dim=shape['head_dim'], dtype='bfloat16')
  skips = cross.skips_keys(targets, (inputs, width))
  weights = encoder * inputs * block + decoder * (
      targets * (block + 2 * width * inner) + (targets if skips else inputs) * 2 * width * inner)
  weights += targets * width * shape['vocab_size']
  attention = 2 * inner * (encoder * inputs**2 + decoder * targets**2)
  attention += 2 * (shape['num_heads'] * width if skips else inner) * decoder * targets * inputs
  return 2 * batch * (2 * weights + 3 * attention)


def timed(function, repeats):
  """Median seconds of a call that ends with its result on the device."""
  jax.block_until_ready(function())
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(function())
    seconds.append(time.perf_counter() - start)
  return statistics.median(seconds)


def product_speed(size, repeats):
  """FLOP/s of a bfloat16 matrix product [size, size] x [size, size]."""
  a = jnp.ones((size, size), jnp.bfloat16)
  product = jax.jit(jnp.dot)
  return 2 * size**3 / timed(lambda: product(a, a), repeats)


def train(row, limit):
  """Largest batch, seconds a step, bytes that the compiler counts."""
  model, optimizer = make_model(row), optimizer_lib.adafactor(0.3)
  trainable, frozen = abstract(model, row['frozen'])
  step = step_lib.make_train_step(model, optimizer)
  key = jax.random.key(0)

  @functools.cache
  def compiled(rows):
    state = jax.eval_shape(lambda tree: state_lib.create(tree, optimizer), trainable)
    return step.lower(state, frozen, batch_shapes(row, rows), key).compile()

  rows = largest(lambda n: needed_bytes(compiled(n)) <= limit, row['first_batch'],
                 row['most_batch'])
  if not rows:
    return {'batch': 0}
  run, batch = compiled(rows), random_batch(row, rows)
  arrays = random_weights(frozen)
  state = state_lib.create(random_weights(trainable, seed=1), optimizer)

  def one():
    nonlocal state
    state, metrics = run(state, arrays, batch, key)
    return metrics['loss'][0]
  seconds = timed(one, row['repeats'])
  loss = float(one())
  flops = step_flops(SHAPES[row['shape']], rows, row['inputs'] + row['prompt'], row['targets'])
  return {'batch': rows, 'seconds': seconds, 'flops': flops, 'needed_bytes': needed_bytes(run),
          'tokens': rows * (row['inputs'] + row['targets']), 'finite': bool(np.isfinite(loss))}


def decode(row, limit):
  """Largest batch, seconds a batch of greedy decoding: every row to the last position."""
  model = make_model(row)
  shapes = params_lib.merge(*abstract(model, row['frozen']))
  config = generate.DecodeConfig(max_decode_length=row['targets'], eos_id=-1)

  @functools.cache
  def compiled(rows):
    inputs = {'encoder_input_tokens': batch_shapes(row, rows)['encoder_input_tokens']}
    return jax.jit(lambda params, batch: generate.generate(model, params, batch, config)).lower(
        shapes, inputs).compile()

  rows = largest(lambda n: needed_bytes(compiled(n)) <= limit, row['first_batch'],
                 row['most_batch'])
  if not rows:
    return {'batch': 0}
  run, params = compiled(rows), random_weights(shapes)
  inputs = {'encoder_input_tokens': random_batch(row, rows)['encoder_input_tokens']}
  seconds = timed(lambda: run(params, inputs), row['repeats'])
  scores = np.asarray(run(params, inputs).scores)
  return {'batch': rows, 'seconds': seconds, 'needed_bytes': needed_bytes(run),
          'tokens': rows * row['targets'], 'finite': bool(np.isfinite(scores).all())}


def main(row):
  """Measures a row, a dict of the fields that gpu.py fills."""
  device = jax.devices()[0]
  stats = device.memory_stats() or {}
  limit = row['memory_gb'] * 1e9 if row['memory_gb'] else 0.92 * stats['bytes_limit']
  if row['attention'] == 'cudnn' and device.platform != 'gpu':
    return {'skipped': 'cuDNN needs a GPU'}
  result = {'train': train, 'decode': decode}[row['job']](row, limit)
  result |= {'device': device.device_kind, 'jax': jax.__version__,
             'peak_bytes': (device.memory_stats() or {}).get('peak_bytes_in_use'),
             'product_flops_per_second': product_speed(row['product'], 20)}
  assert not {'tensorflow', 'seqio', 'grain'} & sys.modules.keys()
  return result


if __name__ == '__main__':
  print(json.dumps(main(json.loads(sys.argv[1]))))
