"""A model without parameters that answers with its input, and batches to give it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.data.loader import EvalBatch
from prompt_tuning.vocabulary import ByteVocabulary

VOCABULARY = ByteVocabulary()


@dataclasses.dataclass(frozen=True)
class CopyModel:
  """Logits of position t: 5 at the input's token t, 0 elsewhere. Speaks as a Linen module does."""
  vocab_size: int = 384

  def apply(self, variables, *args, method, mutable=None, **kwargs):
    result = getattr(self, method)(*args, cache=variables.get('cache'), **kwargs)
    assert mutable in (None, ['cache'])
    return result

  def encode(self, tokens, cache):
    del cache
    return tokens.astype(jnp.float32)

  def init_cache(self, encoded, tokens, length, cache):
    del encoded, tokens, length, cache
    return None, {'cache': {'decoder': {'cache_index': jnp.int32(0)}}}

  def decode(self, encoded, tokens, ids, targets, cache, decode=False, max_decode_length=None):
    del encoded, targets, max_decode_length
    if not decode:
      return jnp.float32(5.0) * jax.nn.one_hot(tokens[:, :ids.shape[1]], self.vocab_size)
    index = cache['decoder']['cache_index']
    now = jax.lax.dynamic_slice_in_dim(tokens, index, 1, axis=1)
    logits = jnp.float32(5.0) * jax.nn.one_hot(now, self.vocab_size)
    return logits, {'cache': {'decoder': {'cache_index': index + 1}}}


def batch(pairs, batch_size, first=0, width=16):
  """EvalBatch of (inputs, targets) texts; the rows that are left stay empty."""
  tokens = np.zeros((batch_size, width), np.int32)
  records = []
  for row, (inputs, targets) in enumerate(pairs):
    ids = [*VOCABULARY.encode(inputs), 1]
    tokens[row, :len(ids)] = ids
    records.append({'id': str(first + row), 'inputs_pretokenized': inputs,
                    'targets_pretokenized': targets, 'example': {'source': 'test'}})
  empty = [None] * (batch_size - len(pairs))
  # Targets come from the records: whatever the ids say must not matter.
  return EvalBatch({'encoder_input_tokens': tokens, 'decoder_target_tokens': tokens * 0 + 77},
                   (*records, *empty))
