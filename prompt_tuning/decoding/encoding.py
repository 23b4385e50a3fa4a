"""Encoding before decoding: packed rows are encoded together and decoded apart."""

import jax
import jax.numpy as jnp

# What of a batch goes with its tokens wherever the encoder's rows are asked for.
_FEATURES = ('encoder_segment_ids', 'encoder_positions', 'prompt_ids')
# What generation and scoring read of a batch.
INPUTS = ('encoder_input_tokens', 'encoder_slots', *_FEATURES)


def encode(model, params, batch):
  """Encodes the inputs of a batch and gives every example a row of its own.

  Neighbours in a packed row share the work of the encoder. The decoder goes through a token of
  each example at a time and has a cache for each, so it wants them apart.

  Args:
    model: a backbone or a PeftModel.
    params: its parameters.
    batch: dict with encoder_input_tokens [B, T] int32 and, where padding is not simply 0,
      encoder_segment_ids [B, T]. Packed rows [R, T] need encoder_segment_ids, encoder_positions
      and encoder_slots [B, S], with B a multiple of R: for each example of row 0, of row 1, ...,
      where in its row its tokens and the prompt's places are, -1 behind them. prompt_ids where
      the prompt differs per example; see SoftPrompt.

  Returns:
    (encoded [B, S, H], encoder_input_tokens, features): the two go with it as arguments wherever
    the model asks for the rows of the encoder again.
  """
  tokens, slots = batch['encoder_input_tokens'], batch.get('encoder_slots')
  features = {name: batch[name] for name in _FEATURES if name in batch}
  encoded = model.apply({'params': params}, tokens, **features, method='encode')
  if slots is None:
    return encoded, tokens, features

  def apart(rows):
    taken = jax.vmap(lambda row, index: row[index])(rows, slots.reshape(len(rows), -1))
    return taken.reshape(*slots.shape, *rows.shape[2:])
  # That there are positions says that the prompt has its places among the tokens already.
  features |= {'encoder_segment_ids': (slots >= 0).astype(jnp.int32),
               'encoder_positions': apart(features['encoder_positions'])}
  if 'prompt_ids' in features:
    features['prompt_ids'] = features['prompt_ids'].reshape(len(slots), 1)
  return apart(encoded), apart(tokens), features
