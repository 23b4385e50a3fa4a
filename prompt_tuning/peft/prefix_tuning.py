"""Prefix tuning (Li & Liang 2021): trained keys and values before those of every layer."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from prompt_tuning import params as trees
from prompt_tuning.errors import UserError
from prompt_tuning.models.layers import AttentionCore, RelativePositionBias
from prompt_tuning.peft.method import Method


class Prefix(nn.Module):
  """Keys and values [P, N, D] of one attention."""

  length: int
  stddev: float

  @nn.compact
  def __call__(self, num_heads, head_dim):
    shape, init = (self.length, num_heads, head_dim), nn.initializers.normal(self.stddev)
    return (self.param('key', init, shape, jnp.float32),
            self.param('value', init, shape, jnp.float32))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixTuning(Method):
  """Trains P keys and values in front of each attention that is switched on.

  In self-attention the prefix stands at positions -P..-1, as in a cache; in cross-attention there
  are no positions.

  Attributes:
    length: P.
    encoder: encoder self-attention.
    decoder: decoder self-attention.
    cross: cross-attention.
    stddev: standard deviation of the initial keys and values.
  """

  length: int = 10
  encoder: bool = True
  decoder: bool = True
  cross: bool = True
  stddev: float = 0.02

  logical_axes: ClassVar = ((r'.*/core/prefix/(key|value)', ('prompt', 'heads', 'kv')),)

  def __post_init__(self):
    if self.length < 1 or not self._attentions():
      raise UserError(f'Prefix tuning has length {self.length} and attentions '
                      f'{list(self._attentions())}; it needs length >= 1 and at least one of '
                      'encoder, decoder, cross.')

  def _attentions(self):
    on = {'encoder/attention': self.encoder, 'decoder/self_attention': self.decoder,
          'decoder/encoder_decoder_attention': self.cross}
    return tuple(name for name, enabled in on.items() if enabled)

  @property
  def trainable(self):
    return tuple(rf'{stack}/layers(_\d+)?/{name}/core/prefix/(key|value)'
                 for stack, name in (attention.split('/') for attention in self._attentions()))

  def __call__(self, next_fun, args, kwargs, context):
    module = context.module
    if isinstance(module, RelativePositionBias) and context.method_name == '__call__':
      return next_fun(*self._widen(module, *args))
    if isinstance(module, AttentionCore) and f'{module.path[0]}/{module.path[-2]}' in (
        self._attentions()):
      return next_fun(*self._prepend(*args))
    return next_fun(*args, **kwargs)

  def changes(self, path):
    return trees.matches(self.trainable, f'{path}/prefix/key')

  def _widen(self, module, query_positions, key_positions):
    """Adds the prefix's positions [., P] before the keys' where self-attention has a prefix."""
    if not {'encoder': self.encoder, 'decoder': self.decoder}[module.path[0]]:
      return query_positions, key_positions
    prefix = jnp.broadcast_to(jnp.arange(-self.length, 0, dtype=jnp.int32)[None],
                              (key_positions.shape[0], self.length))
    return query_positions, jnp.concatenate([prefix, key_positions], axis=1)

  def _prepend(self, query, key, value, mask, bias):
    """Puts the prefix before keys and values [B, K, N, D], visible to every query."""
    batch, _, heads, head_dim = key.shape
    prefix_key, prefix_value = Prefix(self.length, self.stddev, name='prefix')(heads, head_dim)

    def join(prefix, rows):
      prefix = jnp.broadcast_to(prefix.astype(rows.dtype), (batch, *prefix.shape))
      return jnp.concatenate([prefix, rows], axis=1)
    mask = jnp.pad(mask, ((0, 0), (0, 0), (0, 0), (self.length, 0)), constant_values=True)
    return query, join(prefix_key, key), join(prefix_value, value), mask, bias
