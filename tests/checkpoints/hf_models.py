"""Small models in Hugging Face's layout, and how trees of parameters are compared."""

import dataclasses
import functools

import numpy as np

from prompt_tuning import params as params_lib
from prompt_tuning.models.t5 import T5, T5Config
from prompt_tuning.peft.model import abstract_params

V11 = T5Config(vocab_size=24, emb_dim=8, num_heads=3, head_dim=4, mlp_dim=12, num_encoder_layers=3,
               num_decoder_layers=2, relative_attention_num_buckets=9, dropout_rate=0.0)
UMT5 = dataclasses.replace(V11, relative_attention_per_layer=True)
V10 = T5Config(vocab_size=24, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=12, num_encoder_layers=1,
               num_decoder_layers=2, mlp_activations=('relu',), logits_via_embedding=True)


@functools.cache
def abstract(config):
  return abstract_params(T5(config=config))


def random_params(config, seed=0, dtype=np.float32):
  rng = np.random.default_rng(seed)
  return params_lib.unflatten({
      path: rng.normal(size=leaf.shape).astype(dtype)
      for path, leaf in params_lib.flatten(abstract(config)).items()})


def equal(a, b) -> int:
  """Compares trees bit for bit and returns how many arrays were compared."""
  a, b = params_lib.flatten(a), params_lib.flatten(b)
  assert a.keys() == b.keys()
  for path in a:
    x, y = np.asarray(a[path]), np.asarray(b[path])
    assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes(), path
  return len(a)
