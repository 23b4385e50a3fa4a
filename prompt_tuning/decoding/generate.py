"""Generation: encoder once, cross-attention keys and values at most once, then token by token."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prompt_tuning import params as params_lib
from prompt_tuning.decoding import beam_search as beam_search_lib
from prompt_tuning.decoding import encoding, kv_cache, sampling
from prompt_tuning.errors import UserError

STRATEGIES = ('greedy', 'beam', 'sample')


class Decoded(NamedTuple):
  """What was generated, best first.

  Attributes:
    sequences: [B, K, L] int32, 0 after EOS.
    scores: [B, K] float32, log-probabilities (beam: divided by the brevity penalty).
  """
  sequences: Any
  scores: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeConfig:
  """How to generate; hashable, a static argument of jit.

  Attributes:
    strategy: 'greedy' (the most probable token at every step), 'beam' (T5X's default is 'beam'
      with beam_size 1, which is not greedy), or 'sample'.
    max_decode_length: L, positions to generate at most, EOS included. None is for whoever knows
      the task's target length to fill in; `generate` wants a number.
    eos_id: The token that ends a sequence.
    num_return: Sequences a row to return. None: all beams for 'beam', one for the others.
    beam_size: Beams of the beam search.
    alpha: Exponent of the beam search's brevity penalty ((5 + length) / 6) ** alpha.
    temperature: Of sampling; below 1e-4 the most probable token is taken.
    top_k: Sample from the k most probable tokens; 0 is off.
    top_p: Sample from the most probable tokens that hold this probability; 0 or 1 is off.
    rescale_log_probs: Whether the scores of samples are taken after temperature, top_k and top_p
      (T5X's default) or from the model's own distribution.

  Raises:
    UserError: A value is out of its range.
  """
  strategy: str = 'greedy'
  max_decode_length: int | None = None
  eos_id: int = 1
  num_return: int | None = None
  beam_size: int = 4
  alpha: float = 0.6
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 0.0
  rescale_log_probs: bool = True

  def __post_init__(self):
    if self.strategy not in STRATEGIES:
      raise UserError(f'strategy {self.strategy!r}: allowed are {", ".join(STRATEGIES)}.')
    limits = {'max_decode_length': (1, None), 'beam_size': (1, None), 'num_return': (1, None),
              'temperature': (0, None), 'top_k': (0, None), 'top_p': (0, 1), 'alpha': (0, None)}
    for name, (low, high) in limits.items():
      value = getattr(self, name)
      if value is not None and not isinstance(value, int | float):
        raise UserError(f'{name} is {value!r}; it has to be a number.')
      if value is not None and (value < low or (high is not None and value > high)):
        allowed = f'at least {low}' if high is None else f'from {low} to {high}'
        raise UserError(f'{name} = {value!r}: must be {allowed}.')
    most = {'greedy': 1, 'beam': self.beam_size, 'sample': None}[self.strategy]
    if self.num_return is not None and most is not None and self.num_return > most:
      raise UserError(
          f'num_return = {self.num_return}: strategy {self.strategy!r} finds {most} here; lower '
          'num_return, raise beam_size or use strategy \'sample\'.')

  @property
  def num_beams(self):
    """Sequences a row that are decoded side by side."""
    return {'greedy': 1, 'beam': self.beam_size, 'sample': self.num_return or 1}[self.strategy]


def generate(model, params, batch, config, rng=None):
  """Generates from a batch of inputs.

  Pure and traceable: `model` and `config` are static under jit; `generate_jit` is jitted.

  Args:
    model: A backbone or a PeftModel around one.
    params: Its parameters.
    batch: Dict with encoder_input_tokens [B, T] int32 and, where padding is not simply 0,
      encoder_segment_ids [B, T] (1 at real tokens, 0 at padding), or packed rows of B examples:
      see encoding.encode. Other entries are not looked at.
    config: DecodeConfig.
    rng: jax.random key; needed by the strategy 'sample' alone.

  Returns:
    Decoded with sequences [B, K, L] and scores [B, K], best first.

  Raises:
    UserError: No max_decode_length, or sampling without a key.
  """
  if config.max_decode_length is None:
    raise UserError('max_decode_length is None: give the most tokens to generate, EOS included.')
  if config.strategy == 'sample' and rng is None:
    raise UserError('strategy \'sample\' needs a random key: pass rng=jax.random.key(seed).')
  encoded = encoding.encode(model, params, batch)
  batch_size, num_beams = encoded[0].shape[0], config.num_beams
  tokens_to_logits, cache = _decoder(model, params, encoded, config.max_decode_length, num_beams)
  shared = {'max_decode_length': config.max_decode_length, 'eos_id': config.eos_id}
  if config.strategy == 'beam':
    sequences, scores = beam_search_lib.beam_search(
        tokens_to_logits, cache, batch_size=batch_size, beam_size=num_beams, alpha=config.alpha,
        **shared)
    count = config.num_return or num_beams
    return Decoded(sequences[:, :count], scores[:, :count])
  if config.strategy == 'sample':
    sequences, scores = sampling.sample(
        tokens_to_logits, cache, rng, num_rows=batch_size * num_beams,
        temperature=config.temperature, top_k=config.top_k, top_p=config.top_p,
        rescale_log_probs=config.rescale_log_probs, **shared)
  else:
    sequences, scores = sampling.greedy(tokens_to_logits, cache, num_rows=batch_size, **shared)
  return _best_first(
      sequences.reshape(batch_size, num_beams, -1), scores.reshape(batch_size, num_beams))


_jitted = jax.jit(generate, static_argnames=('model', 'config'))


def generate_jit(model, params, batch, config, rng=None):
  """`generate`, compiled once for each model, config and shape of the inputs.

  The batch may hold targets, ids or text beside the inputs: only the inputs enter the compiled
  function, so nothing else is copied or leads to another compilation.
  """
  inputs = {name: batch[name] for name in encoding.INPUTS if name in batch}
  return _jitted(model, params, inputs, config, rng)


def _decoder(model, params, encoded, max_decode_length, num_beams):
  """Returns the step function of encoded inputs with its empty cache.

  Args:
    model: A backbone or a PeftModel.
    params: Its parameters.
    encoded: From encoding.encode.
    max_decode_length: L, the cache's length.
    num_beams: K, copies of each row.

  Returns:
    (tokens_to_logits, cache) for B*K rows.
  """
  rows, inputs, features = encoded
  _, state = model.apply({'params': params}, rows, inputs, max_decode_length, **features,
                         method='init_cache', mutable=['cache'])
  cross, rest = kv_cache.split_cross_attention(kv_cache.tile(state['cache'], num_beams))
  cross = kv_cache.swap_rows_and_heads(cross)
  # Masks are made from these, and short targets attend to the encoded rows themselves; of long ones
  # their keys and values stand in the cache.
  rows, inputs, features = jax.tree.map(lambda x: jnp.repeat(x, num_beams, axis=0), encoded)

  def tokens_to_logits(ids, cache):
    whole = params_lib.unflatten({**kv_cache.swap_rows_and_heads(cross), **cache})
    logits, state = model.apply(
        {'params': params, 'cache': whole}, rows, inputs, ids, ids, **features, decode=True,
        max_decode_length=max_decode_length, mutable=['cache'], method='decode')
    return logits[:, 0], kv_cache.split_cross_attention(state['cache'])[1]

  return tokens_to_logits, rest


def _best_first(sequences, scores):
  """Sorts samples [B, K, L] by their scores [B, K]; the exact reverse of T5X's ascending order."""
  order = jnp.argsort(scores, axis=-1)[:, ::-1]
  return Decoded(
      jnp.take_along_axis(sequences, order[:, :, None], axis=1),
      jnp.take_along_axis(scores, order, axis=1))
