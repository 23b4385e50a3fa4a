"""The T5 encoder-decoder (Raffel et al. 2020) with T5X parameter paths.

One module serves T5 1.0 (relu, tied head), T5 1.1 and its LM-adapted form, mT5 and ByT5 (gated
gelu, untied head), UMT5 (a position bias a layer). It knows nothing of PEFT and offers three
neutral seams: `Dense.__call__`, the compact `embed` of Encoder and Decoder, and the parameter-free
`AttentionCore`.

Shapes: B batch, T input length, L target length, H emb_dim, V vocabulary; S rows of the encoder,
T plus whatever its `embed` adds.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning.errors import UserError
from prompt_tuning.models import layers, masks

REMAT_POLICIES = {
    'none': None,
    'minimal': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    'full': jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
  """Shape and options of a T5 model.

  Attributes:
    vocab_size: rows of the embedding table, V (T5 1.1: 32,128).
    emb_dim: H.
    num_heads: attention heads.
    head_dim: size of a head; independent of emb_dim / num_heads.
    mlp_dim: width of the feed-forward block.
    num_encoder_layers: depth of the encoder.
    num_decoder_layers: depth of the decoder.
    mlp_activations: ('relu',) for T5 1.0, ('gelu', 'linear') for T5 1.1.
    logits_via_embedding: the embedding table is the head; logits are scaled by H^-0.5.
    relative_attention_num_buckets: buckets of the relative position bias.
    relative_attention_max_distance: distance at which the last bucket begins.
    relative_attention_per_layer: every layer has a position bias of its own (UMT5, scanned T5X
      models) in place of one that a whole stack shares.
    layer_norm_epsilon: epsilon of the RMS norms.
    dropout_rate: dropout where a call enables it.
    dtype: activations, 'float32' or 'bfloat16'; norms, softmax and logits stay float32.
    scan_layers: one compiled layer run in a loop; in memory its parameters stand stacked under
      `layers`, on disk they stay per layer.
    remat_policy: what the backward pass recomputes: 'none', 'minimal' (all but matrix products),
      'full'.
  """

  vocab_size: int = 32128
  emb_dim: int = 512
  num_heads: int = 6
  head_dim: int = 64
  mlp_dim: int = 1024
  num_encoder_layers: int = 8
  num_decoder_layers: int = 8
  mlp_activations: tuple[str, ...] = ('gelu', 'linear')
  logits_via_embedding: bool = False
  relative_attention_num_buckets: int = 32
  relative_attention_max_distance: int = 128
  relative_attention_per_layer: bool = False
  layer_norm_epsilon: float = 1e-6
  dropout_rate: float = 0.1
  dtype: str = 'float32'
  scan_layers: bool = False
  remat_policy: str = 'none'

  def __post_init__(self):
    object.__setattr__(self, 'mlp_activations', tuple(self.mlp_activations))
    if not self.mlp_activations or not set(self.mlp_activations) <= set(layers.ACTIVATIONS):
      raise UserError(f'mlp_activations is {list(self.mlp_activations)}; known are '
                      f"{list(layers.ACTIVATIONS)}, one (T5 1.0: ['relu']) or several that are "
                      "multiplied (T5 1.1: ['gelu', 'linear']).")
    if self.remat_policy not in REMAT_POLICIES:
      raise UserError(f'remat_policy is {self.remat_policy!r}; allowed: {list(REMAT_POLICIES)}.')
    if self.dtype not in ('float32', 'bfloat16'):
      raise UserError(f"dtype is {self.dtype!r}; allowed: 'float32', 'bfloat16' (T5 overflows in "
                      'float16).')
    rate = self.dropout_rate
    if not isinstance(rate, int | float) or not 0 <= rate < 1:
      raise UserError(f'dropout_rate is {rate!r}; give a number from 0 to below 1.')

  def norm(self, name):
    return layers.RMSNorm(self.dtype, self.layer_norm_epsilon, name=name)

  def attention(self, name, enable_dropout):
    return layers.Attention(self.num_heads, self.head_dim, self.dtype, self.dropout_rate,
                            enable_dropout, name=name)

  def mlp(self, enable_dropout):
    return layers.MLP(self.mlp_dim, self.mlp_activations, self.dtype, self.dropout_rate,
                      enable_dropout, name='mlp')

  def position_bias(self, bidirectional):
    return layers.RelativePositionBias(
        self.num_heads, self.relative_attention_num_buckets, self.relative_attention_max_distance,
        bidirectional, name='relpos_bias')

  def shared_bias(self, bidirectional, *positions):
    """The bias of a whole stack, or None where each layer has its own."""
    if self.relative_attention_per_layer:
      return None
    return self.position_bias(bidirectional)(*positions)

  def dropout(self, enable_dropout):
    return layers.Dropout(self.dropout_rate, enable_dropout)


class EncoderLayer(nn.Module):
  """Self-attention and feed-forward, each behind a norm and added to its input."""

  config: T5Config
  enable_dropout: bool

  @nn.compact
  def __call__(self, x, mask, bias, *positions):
    """x [B, S, H], mask [B, 1, S, S], bias [1 or B, N, S, S] or None -> ([B, S, H], None)."""
    dropout = self.config.dropout(self.enable_dropout)
    if bias is None:
      bias = self.config.position_bias(bidirectional=True)(*positions)
    y = self.config.norm('pre_attention_layer_norm')(x)
    x = x + dropout(self.config.attention('attention', self.enable_dropout)(y, y, mask, bias))
    y = self.config.norm('pre_mlp_layer_norm')(x)
    return x + dropout(self.config.mlp(self.enable_dropout)(y)), None


class DecoderLayer(nn.Module):
  """Causal self-attention, cross-attention and feed-forward."""

  config: T5Config
  enable_dropout: bool
  cache_length: int | None
  cache_source: bool

  @nn.compact
  def __call__(self, x, encoded, mask, cross_mask, cache_index, bias, *positions):
    """x [B, L, H], encoded [B, S, H] -> ([B, L, H], None); bias and positions as above."""
    dropout = self.config.dropout(self.enable_dropout)
    if bias is None:
      bias = self.config.position_bias(bidirectional=False)(*positions)
    y = self.config.norm('pre_self_attention_layer_norm')(x)
    x = x + dropout(self.config.attention('self_attention', self.enable_dropout)(
        y, y, mask, bias, cache_index=cache_index, cache_length=self.cache_length))
    y = self.config.norm('pre_cross_attention_layer_norm')(x)
    x = x + dropout(self.config.attention('encoder_decoder_attention', self.enable_dropout)(
        y, encoded, cross_mask, cache_length=self.cache_length, cache_source=self.cache_source))
    y = self.config.norm('pre_mlp_layer_norm')(x)
    return x + dropout(self.config.mlp(self.enable_dropout)(y)), None


def run_layers(config, layer, depth, x, *args, **fields):
  """Applies `depth` layers, looped (`layers_{i}`) or scanned (`layers`, stacked on axis 0)."""
  if config.remat_policy != 'none':
    layer = nn.remat(layer, policy=REMAT_POLICIES[config.remat_policy],
                     prevent_cse=not config.scan_layers)
  if config.scan_layers:
    layer = nn.scan(layer, variable_axes={'params': 0, 'cache': 0},
                    split_rngs={'params': True, 'dropout': True}, in_axes=nn.broadcast,
                    length=depth)
    return layer(config, **fields, name='layers')(x, *args)[0]
  for i in range(depth):
    x, _ = layer(config, **fields, name=f'layers_{i}')(x, *args)
  return x


def row_positions(segment_ids, positions):
  """Positions as given ([B, T], packed rows), or 0, 1, 2, ... as [1, T]."""
  if positions is not None:
    return positions
  return jnp.arange(segment_ids.shape[1], dtype=jnp.int32)[None]


class Encoder(nn.Module):
  """Stack of encoder layers."""

  config: T5Config
  token_embedder: layers.Embed

  @nn.compact
  def embed(self, tokens, segment_ids, positions):
    """Rows that enter the stack, with what masks are made from. A seam of PEFT methods.

    Args:
      tokens: [B, T] int32.
      segment_ids: [B, T] int32, 0 at padding.
      positions: [B, T] int32 within each segment of packed rows; None: rows are not packed.

    Returns:
      ([B, S, H], segment ids [B, S], positions [B, S] or None).
    """
    return self.token_embedder(tokens), segment_ids, positions

  @nn.compact
  def __call__(self, tokens, segment_ids, positions, enable_dropout):
    x, segment_ids, positions = self.embed(tokens, segment_ids, positions)
    positions = row_positions(segment_ids, positions)
    mask = masks.attention_mask(segment_ids, segment_ids)
    bias = self.config.shared_bias(True, positions, positions)
    dropout = self.config.dropout(enable_dropout)
    x = run_layers(self.config, EncoderLayer, self.config.num_encoder_layers, dropout(x), mask,
                   bias, positions, positions, enable_dropout=enable_dropout)
    return dropout(self.config.norm('encoder_norm')(x))


class Decoder(nn.Module):
  """Stack of decoder layers, with the head."""

  config: T5Config
  token_embedder: layers.Embed

  @nn.compact
  def embed(self, tokens, segment_ids, positions):
    """As `Encoder.embed`, for [B, L] target rows."""
    return self.token_embedder(tokens), segment_ids, positions

  @nn.compact
  def __call__(self, encoded, tokens, segment_ids, positions, encoder_segment_ids,
               enable_dropout, cache_length=None, cache_source=False):
    """Logits [B, L, V] float32; with `cache_length`, of L further tokens after those cached."""
    index = None
    if cache_length is not None:
      index, positions = self._advance(tokens.shape[1])
    x, segment_ids, positions = self.embed(tokens, segment_ids, positions)
    positions = row_positions(segment_ids, positions)
    if cache_length is not None:
      key_positions = jnp.arange(cache_length, dtype=jnp.int32)[None]
      mask = masks.causal_mask(positions, key_positions)
    else:
      key_positions = positions
      mask = (masks.attention_mask(segment_ids, segment_ids)
              & masks.causal_mask(positions, positions))
    bias = self.config.shared_bias(False, positions, key_positions)
    cross_mask = masks.attention_mask(segment_ids, encoder_segment_ids)
    dropout = self.config.dropout(enable_dropout)
    x = run_layers(self.config, DecoderLayer, self.config.num_decoder_layers, dropout(x), encoded,
                   mask, cross_mask, index, bias, positions, key_positions,
                   enable_dropout=enable_dropout, cache_length=cache_length,
                   cache_source=cache_source)
    x = dropout(self.config.norm('decoder_norm')(x))
    if self.config.logits_via_embedding:
      return self.token_embedder.attend(x.astype(jnp.float32) * self.config.emb_dim**-0.5)
    return layers.Dense(self.config.vocab_size, 'float32', name='logits_dense')(x)

  def _advance(self, steps):
    """Slot of the first of `steps` new tokens (int32 scalar) and their positions [1, steps]."""
    created = not self.has_variable('cache', 'cache_index')
    index = self.variable('cache', 'cache_index', jnp.zeros, (), jnp.int32)
    start = index.value
    if not created:  # the creating call leaves the cache empty
      index.value = start + steps
    return start, start + jnp.arange(steps, dtype=jnp.int32)[None]


class T5(nn.Module):
  """T5 with the methods that t5x.models.EncoderDecoderModel calls.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> config = T5Config(vocab_size=32, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=16,
    ...                   num_encoder_layers=1, num_decoder_layers=1)
    >>> tokens = jnp.ones((2, 5), jnp.int32)
    >>> params = T5(config).init(jax.random.key(0), tokens, tokens, tokens)['params']
    >>> T5(config).apply({'params': params}, tokens, tokens, tokens).shape
    (2, 5, 32)
  """

  config: T5Config

  def setup(self):
    self.token_embedder = layers.Embed(self.config.vocab_size, self.config.emb_dim,
                                       self.config.dtype)
    self.encoder = Encoder(self.config, self.token_embedder)
    self.decoder = Decoder(self.config, self.token_embedder)

  def encode(self, encoder_input_tokens, encoder_segment_ids=None, encoder_positions=None,
             enable_dropout=False):
    """Encodes inputs.

    Args:
      encoder_input_tokens: [B, T] int32, 0 at padding.
      encoder_segment_ids: [B, T] int32 of packed rows; None: one segment a row.
      encoder_positions: [B, T] int32 of packed rows; None: 0, 1, 2, ...
      enable_dropout: needs an rng named 'dropout'.

    Returns:
      [B, S, H] in the activation dtype.
    """
    return self.encoder(*self._segmented(encoder_input_tokens, encoder_segment_ids,
                                         encoder_positions), enable_dropout)

  def decode(self, encoded, encoder_input_tokens, decoder_input_tokens, decoder_target_tokens,
             encoder_segment_ids=None, decoder_segment_ids=None, decoder_positions=None,
             enable_dropout=False, decode=False, max_decode_length=None, encoder_positions=None):
    """Logits of targets given encoded inputs.

    Args:
      encoded: [B, S, H] from `encode`.
      encoder_input_tokens: [B, T] int32; only masks are made from them.
      decoder_input_tokens: [B, L] int32, targets shifted right; with `decode`, the next tokens.
      decoder_target_tokens: [B, L] int32, 0 at padding; only masks are made from them.
      encoder_segment_ids: [B, T] int32 of packed rows, or None.
      decoder_segment_ids: [B, L] int32 of packed rows, or None.
      decoder_positions: [B, L] int32 of packed rows, or None.
      enable_dropout: needs an rng named 'dropout'.
      decode: use the cache (collection 'cache', mutable), made by `init_cache`.
      max_decode_length: slots of the cache; needed with `decode`.
      encoder_positions: [B, T] int32 of packed rows, or None.

    Returns:
      [B, L, V] float32.

    Raises:
      ValueError: `decode` without `max_decode_length`.
    """
    if decode and max_decode_length is None:
      raise ValueError('decode=True needs max_decode_length, the slots of the cache')
    if decoder_segment_ids is None:
      # While decoding, every row is live: the first token, 0, is not padding.
      decoder_segment_ids = (jnp.ones_like(decoder_target_tokens) if decode
                             else masks.segments_of(decoder_target_tokens))
    return self._decode_rows(
        encoded, (encoder_input_tokens, encoder_segment_ids, encoder_positions),
        decoder_input_tokens, decoder_segment_ids, decoder_positions, enable_dropout,
        max_decode_length if decode else None)

  def init_cache(self, encoded, encoder_input_tokens, max_decode_length,
                 encoder_segment_ids=None, encoder_positions=None):
    """Creates the cache: empty for self-attention, computed once for cross-attention.

    So few tokens that they need no keys and values of the inputs leave none of them in the cache:
    `decode` then reads `encoded`.

    Call as `_, {'cache': cache} = apply({'params': p}, ..., method='init_cache',
    mutable=['cache'])`. The batch axis of cached arrays is 0, or 1 in scanned layers;
    `decoder/cache_index` is a scalar.

    Args:
      encoded: [B, S, H] from `encode`.
      encoder_input_tokens: [B, T] int32.
      max_decode_length: slots of the self-attention cache.
      encoder_segment_ids: [B, T] int32, or None.
      encoder_positions: [B, T] int32 of rows that were packed, or None.
    """
    first = jnp.zeros((encoded.shape[0], 1), jnp.int32)
    self._decode_rows(
        encoded, (encoder_input_tokens, encoder_segment_ids, encoder_positions), first,
        jnp.ones_like(first), None, False, max_decode_length, cache_source=True)

  def __call__(self, encoder_input_tokens, decoder_input_tokens, decoder_target_tokens,
               encoder_segment_ids=None, decoder_segment_ids=None, encoder_positions=None,
               decoder_positions=None, *, enable_dropout=False, decode=False):
    """Logits [B, L, V] float32 of a batch; arguments as in `encode` and `decode`.

    With `decode`, creates the cache as T5X does: L slots, cross-attention not kept.
    """
    encoded = self.encode(encoder_input_tokens, encoder_segment_ids, encoder_positions,
                          enable_dropout)
    return self.decode(encoded, encoder_input_tokens, decoder_input_tokens, decoder_target_tokens,
                       encoder_segment_ids, decoder_segment_ids, decoder_positions,
                       enable_dropout, decode, decoder_input_tokens.shape[1] if decode else None,
                       encoder_positions)

  def _segmented(self, tokens, segment_ids, positions):
    if segment_ids is None:
      segment_ids = masks.segments_of(tokens)
    return tokens, segment_ids, positions

  def _decode_rows(self, encoded, encoder_rows, tokens, segment_ids, positions, enable_dropout,
                   cache_length, cache_source=False):
    # Embedded again for the segment ids alone: XLA drops the rest.
    _, encoder_segment_ids, _ = self.encoder.embed(*self._segmented(*encoder_rows))
    return self.decoder(encoded, tokens, segment_ids, positions, encoder_segment_ids,
                        enable_dropout, cache_length, cache_source)
