"""Encoding before decoding: packed rows are encoded together and decoded apart."""

import jax
import jax.numpy as jnp

# What generation and scoring read of a batch; the last two in packed rows alone.
INPUTS = ('encoder_input_tokens', 'encoder_segment_ids', 'encoder_positions', 'encoder_slots')


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
      where in its row its tokens and the prompt's places are, -1 behind them.

  Returns:
    (encoded [B, S, H], rows): rows are the encoder_input_tokens [B, T] and, or None,
    encoder_segment_ids and encoder_positions that go with it wherever the model asks for them.
  """
  tokens, segment_ids, positions, slots = map(batch.get, INPUTS)
  encoded = model.apply({'params': params}, tokens, segment_ids, positions, method='encode')
  if slots is None:
    return encoded, (tokens, segment_ids, positions)

  def apart(rows):
    taken = jax.vmap(lambda row, index: row[index])(rows, slots.reshape(len(rows), -1))
    return taken.reshape(*slots.shape, *rows.shape[2:])
  # That there are positions says that the prompt has its places among the tokens already.
  return apart(encoded), (apart(tokens), (slots >= 0).astype(jnp.int32), apart(positions))
