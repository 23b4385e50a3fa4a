"""The methods under contract, the small model they run on, and how logits are compared.

A new method adds one row to METHODS.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import params as trees
from prompt_tuning.models.t5 import T5, T5Config
from prompt_tuning.peft import model as peft_model
from prompt_tuning.peft.lora import LoRA
from prompt_tuning.peft.model_tuning import ModelTuning
from prompt_tuning.peft.prefix_tuning import PrefixTuning
from prompt_tuning.peft.soft_prompt import SoftPrompt

METHODS = {
    'prompt': (SoftPrompt(length=3),),
    'prompt_after_first': (SoftPrompt(length=3, placement='after_first'),),
    'prompt_suffix': (SoftPrompt(length=3, placement='suffix'),),
    'lora': (LoRA(rank=2),),
    'lora_everywhere': (LoRA(targets=(r'(encoder|decoder)/layers(_\d+)?/.*', '.*/logits_dense'),
                             rank=2),),
    'prefix': (PrefixTuning(length=3),),
    'prefix_decoder': (PrefixTuning(length=3, encoder=False, cross=False),),
    'two_loras': (LoRA(targets='.*/query', rank=2), LoRA(targets='.*/wo', rank=3, alpha=2.0)),
    'prompt_and_lora': (SoftPrompt(length=3), LoRA(rank=2)),
    'model_tuning': (ModelTuning(),),
}
# Methods whose output at the start is that of the bare backbone.
NEUTRAL_AT_START = ('lora', 'lora_everywhere', 'two_loras', 'model_tuning')

CONFIG = T5Config(vocab_size=40, emb_dim=16, num_heads=2, head_dim=4, mlp_dim=24,
                  num_encoder_layers=2, num_decoder_layers=2)
TOLERANCE = {'float32': 1e-5, 'bfloat16': 2e-2}


def batch():
  rng = np.random.default_rng(0)
  inputs, targets = rng.integers(2, 40, (3, 7)), rng.integers(2, 40, (3, 4))
  inputs[1, 4:], targets[1, 2:], targets[2, 3:] = 0, 0, 0
  shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  return tuple(jnp.asarray(x, jnp.int32) for x in (inputs, shifted, targets))


def backbone(**options):
  return T5(T5Config(**{**vars(CONFIG), **options}))


def noisy(flat, scale, seed):
  """Every array of {path: array} moved by normal noise, so that no zero or one hides a mistake."""
  rng = np.random.default_rng(seed)
  return {path: jnp.asarray(leaf + scale * rng.standard_normal(leaf.shape).astype(np.float32))
          for path, leaf in flat.items()}


@functools.cache
def backbone_params():
  """Per-layer parameters of the backbone."""
  params = jax.jit(lambda: backbone().init(jax.random.key(1), *batch())['params'])()
  return trees.unflatten(noisy(trees.flatten(params), 0.05, seed=2))


@functools.cache
def trained(name):
  """Per-layer parameters of a method, away from their initial values."""
  model = peft_model.PeftModel(backbone(), METHODS[name])
  params = trees.flatten(peft_model.initialize(model, jax.random.key(3), backbone_params()))
  new = {path: leaf for path, leaf in params.items()
         if path not in trees.flatten(backbone_params())}
  return trees.unflatten(params | noisy(new, 0.03, seed=4))


def logits_of(model, params, inputs=None):
  """Logits [B, L, V] under jit, by default of `batch()`."""
  inputs = batch() if inputs is None else inputs
  return jax.jit(lambda p: model.apply({'params': p}, *inputs))(params)


@functools.cache
def reference_logits(name):
  """Logits [3, 4, 40] of the looped float32 model."""
  return np.asarray(logits_of(peft_model.PeftModel(backbone(), METHODS[name]), trained(name)))


def compare(logits, want, tolerance):
  """Root mean square of the difference at real targets, against that of the logits."""
  valid = np.asarray(batch()[2]) > 0
  assert valid.sum() == 9
  got, want = np.asarray(logits, np.float32)[valid], want[valid]
  assert got.shape == want.shape == (9, CONFIG.vocab_size)
  error = np.sqrt(np.mean(np.square(got - want)))
  assert error <= tolerance * np.sqrt(np.mean(np.square(want)))
