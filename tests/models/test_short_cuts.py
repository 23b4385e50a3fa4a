"""Products that a step can do without: cross-attention to the source's own rows, and the count."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts.rows import METHODS, TOLERANCE, backbone, batch, compare, noisy

from prompt_tuning import params as trees
from prompt_tuning.decoding import generate
from prompt_tuning.models.layers import Attention
from prompt_tuning.peft import model as peft_model
from prompt_tuning.peft.lora import LoRA
from prompt_tuning.peft.method import Method
from prompt_tuning.peft.prefix_tuning import PrefixTuning
from prompt_tuning.peft.soft_prompt import SoftPrompt
from prompt_tuning.training import optimizer as optimizer_lib
from prompt_tuning.training import state as state_lib
from prompt_tuning.training import step as step_lib

# 4 targets ask 3 + 7 rows: few enough for heads of this size.
SIZES = {'emb_dim': 32, 'head_dim': 16}
PROMPT = (SoftPrompt(length=3),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MayChangeAnything(Method):
  """Changes nothing and does not say so, as a method that does not know of short cuts."""

  trainable = ()


def both(**options):
  """(model that takes the short cut, the same with keys and values)."""
  t5 = backbone(**SIZES, **options)
  return (peft_model.PeftModel(t5, PROMPT),
          peft_model.PeftModel(t5, (*PROMPT, MayChangeAnything())))


def parameters(model):
  shapes = peft_model.abstract_params(model)
  zeros = {path: jnp.zeros(leaf.shape) for path, leaf in trees.flatten(shapes).items()}
  return trees.unflatten(noisy(zeros, 0.3, seed=3))


def loss_of(model, params):
  logits = model.apply({'params': params}, *batch())
  return jnp.sum(jnp.sin(logits)), logits


def keeps_keys(model):
  """Whether the decoding cache holds keys and values of the cross-attention, by layer."""
  inputs, params = jnp.ones((2, 10), jnp.int32), peft_model.abstract_params(model)

  def start(params):
    encoded = model.apply({'params': params}, inputs, method='encode')
    return model.apply({'params': params}, encoded, inputs, 4, method='init_cache',
                       mutable=['cache'])[1]['cache']
  paths = trees.flatten(jax.eval_shape(start, params))
  return sorted({path.split('/')[1] for path in paths if 'encoder_decoder_attention' in path})


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_logits_and_every_gradient_are_those_of_keys_and_values(dtype):
  short, plain = both(dtype=dtype)
  params = parameters(short)
  run = lambda model: jax.jit(jax.value_and_grad(  # noqa: E731
      lambda p: loss_of(model, p), has_aux=True))(params)
  ((_, logits), grads), ((_, want), want_grads) = run(short), run(plain)
  compare(logits, np.asarray(want), TOLERANCE[dtype])
  for path, grad in trees.flatten(grads).items():
    want = trees.flatten(want_grads)[path]
    error, scale = (np.sqrt(np.mean(np.square(x, dtype=np.float64))) for x in (grad - want, want))
    assert scale > 0 and error <= TOLERANCE[dtype] * scale, path


def test_decoding_without_keys_of_the_source_gives_the_same_tokens():
  short, plain = both()
  params = parameters(short)
  config = generate.DecodeConfig(strategy='beam', beam_size=2, max_decode_length=4, eos_id=0)
  inputs = {'encoder_input_tokens': batch()[0]}
  (found, scores), want = (generate.generate_jit(m, params, inputs, config) for m in (short, plain))
  np.testing.assert_array_equal(found, want.sequences)
  np.testing.assert_allclose(scores, want.scores, rtol=1e-5)


@pytest.mark.parametrize(('methods', 'layers'), [
    ((), []),
    (METHODS['prompt'], []),
    (METHODS['model_tuning'], []),
    ((LoRA(targets=('encoder/.*', '.*/query', 'decoder/.*/out')),), []),
    ((LoRA(targets=(r'.*/layers_1/encoder_decoder_attention/key',)),), ['layers_1']),
    (METHODS['lora'], ['layers_0', 'layers_1']),
    ((PrefixTuning(length=3, cross=False),), []),
    ((PrefixTuning(length=3, encoder=False, decoder=False),), ['layers_0', 'layers_1']),
    ((MayChangeAnything(),), ['layers_0', 'layers_1']),
], ids=['bare', 'prompt', 'model_tuning', 'lora_elsewhere', 'lora_one_layer', 'lora',
        'prefix_elsewhere', 'prefix', 'unknown'])
def test_keys_and_values_stay_where_a_method_may_change_them(methods, layers):
  assert keeps_keys(peft_model.PeftModel(backbone(**SIZES), methods)) == layers


def test_many_queries_or_a_short_source_are_worth_keys_and_values():
  skips = Attention(num_heads=2, head_dim=64, dtype='float32').skips_keys
  assert skips(8, (228, 512)) and skips(1, (228, 4096))
  assert not skips(64, (2048, 512))  # more FLOPs
  assert not skips(16, (100, 512))  # more memory
  cut = [skips(queries, (612, 1024)) for queries in range(1, 80)]
  assert cut == sorted(cut, reverse=True)  # what is short for all queries is short for each


def product_flops(hlo):
  """FLOPs of all matrix products in the text of a compiled program without loops."""
  shape = r'\w+\[([\d,]*)\]'
  shapes = dict(re.findall(rf'%?([\w.\-]+) = {shape}', hlo))
  size = lambda dims: math.prod(map(int, filter(None, dims.split(','))))  # noqa: E731
  total = 0
  for result, left, axes in re.findall(
      rf'= {shape}\S* dot\((?:\w+\[\S* )?%?([\w.\-]+),.*?lhs_contracting_dims={{([\d,]*)}}', hlo):
    inner = [shapes[left].split(',')[int(axis)] for axis in axes.split(',')]
    total += 2 * size(result) * math.prod(map(int, inner))
  return total


def ideal_flops(config, batch_size, source, targets):
  """Products that prompt tuning cannot do without, forward and backward.

  Frozen kernels need no gradient, so a dense layer costs twice its forward pass, the two products
  of attention three times theirs. Targets do not depend on the prompt before they first attend to
  the source.
  """
  width, inner, mlp = config.emb_dim, config.num_heads * config.head_dim, config.mlp_dim
  rows, asked = batch_size * targets, batch_size * source
  dense, feed_forward = width * inner, len(config.mlp_activations) * width * mlp + width * mlp
  encoder = 2 * asked * (4 * dense + feed_forward) + 6 * asked * source * inner
  seen = rows * source * config.num_heads * width  # scores, or what is seen, of the source's rows
  decoder = 2 * rows * (8 * dense + feed_forward) + 6 * rows * targets * inner + 6 * seen
  unmoved = rows * 4 * dense + 4 * rows * targets * inner + 2 * rows * dense + seen
  return 2 * (config.num_encoder_layers * encoder + config.num_decoder_layers * decoder - unmoved
              + 2 * rows * width * config.vocab_size)


def test_the_compiled_step_has_no_product_too_many():
  model = both(dropout_rate=0.0)[0]
  trainable, frozen = trees.split(peft_model.abstract_params(model), model.trainable)
  optimizer = optimizer_lib.adafactor(0.3)
  state = jax.eval_shape(lambda t: state_lib.create(t, optimizer), trainable)
  names = ('encoder_input_tokens', 'decoder_input_tokens', 'decoder_target_tokens')
  step = step_lib.make_train_step(model, optimizer)
  compiled = step.lower(state, frozen, dict(zip(names, batch(), strict=True)),
                        jax.random.key(0)).compile()
  ideal = ideal_flops(model.backbone.config, 3, 3 + 7, 4)
  assert 0.98 * ideal < product_flops(compiled.as_text()) <= ideal
