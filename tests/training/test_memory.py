"""The closed form against what the compiler places; the compiler's figures against themselves."""

import functools

import jax
import jax.numpy as jnp
import pytest

from prompt_tuning import params as params_lib
from prompt_tuning import partitioning
from prompt_tuning.models import t5
from prompt_tuning.peft import model as peft_model
from prompt_tuning.peft import soft_prompt
from prompt_tuning.training import ahead_of_time, memory
from prompt_tuning.training import optimizer as optimizer_lib

SHAPE = dict(vocab_size=512, emb_dim=64, num_heads=4, head_dim=16, mlp_dim=160,
             num_encoder_layers=3, num_decoder_layers=2)
ROWS = memory.Rows(examples=16, inputs=148, targets=16)


def model(**options):
  return peft_model.PeftModel(t5.T5(t5.T5Config(**SHAPE, **options)),
                              (soft_prompt.SoftPrompt(length=20),))


@functools.cache
def compiled(**options):
  """Footprint on one device."""
  peft = model(**options)
  trainable, frozen = params_lib.split(peft_model.abstract_params(peft), peft.trainable)
  frozen = jax.eval_shape(lambda tree: params_lib.cast(tree, options.get('dtype', 'float32')),
                          frozen)
  inputs = jax.ShapeDtypeStruct((16, 128), jnp.int32)
  targets = jax.ShapeDtypeStruct((16, 16), jnp.int32)
  batch = dict(encoder_input_tokens=inputs, decoder_input_tokens=targets,
               decoder_target_tokens=targets)
  mesh = partitioning.make_mesh(devices=jax.devices()[:1])
  return ahead_of_time.footprint(
      peft, optimizer_lib.adafactor(), trainable, frozen, batch, mesh,
      peft.methods[0].logical_axes, partitioning.LOGICAL_AXIS_RULES)


def estimated(trained=('encoder/prompt/prompt/prompt',), rows=ROWS, **options):
  return memory.activation_bytes(t5.T5Config(**SHAPE, **options), rows, trained)


@pytest.mark.parametrize('options', [{}, dict(remat_policy='full', scan_layers=True)],
                         ids=['looped', 'scan_full'])
def test_within_15_percent_of_the_compiler(options):
  assert estimated(**options) == pytest.approx(compiled(**options).temporary_bytes, rel=0.15)


def test_bfloat16_is_not_widened():
  """Weights take half; activations more than half, since attention weights stay float32."""
  options = dict(remat_policy='full', scan_layers=True)
  single, half = compiled(**options), compiled(**options, dtype='bfloat16')
  assert half.parameter_bytes == pytest.approx(single.parameter_bytes / 2, rel=0.02)
  assert 0.5 < half.temporary_bytes / single.temporary_bytes < 0.85
  assert half.program.matmul_flops == single.program.matmul_flops
  assert half.program.collectives == {}


def test_what_makes_it_smaller():
  whole = estimated()
  assert estimated(remat_policy='full') < estimated(remat_policy='minimal') < whole
  assert estimated(dropout_rate=0.0) < whole
  assert estimated(dtype='bfloat16') < whole
  split = memory.Rows(examples=16, inputs=148, targets=16, model=4)
  both = memory.Rows(examples=16, inputs=148, targets=16, model=4, split_residual=True)
  assert whole / 4 == estimated(rows=both) < estimated(rows=split) < whole
  # Without a gradient into the encoder nothing of it is kept.
  assert estimated(trained=('decoder/layers_0/self_attention/core/prefix/key',)) < whole / 2


def test_trained_kernels_keep_their_inputs():
  kernels = ('query', 'out', 'wi_0', 'wo')
  paths = [f'encoder/layers_0/x/{kernel}/lora/a' for kernel in kernels]
  sizes = [estimated(trained=paths[:i + 1]) - estimated(trained=paths[:i] or ('token_embedder/x',))
           for i in range(4)]
  rows = 3 * 4 * 16 * 148  # layers, bytes, rows
  assert sizes == [rows * 64, rows * 64, rows * 64, rows * 160]
