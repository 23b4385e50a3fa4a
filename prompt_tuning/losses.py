"""Token cross entropy, token accuracy and sequence scores, with sums and weights kept apart.

Nothing here divides by a number of tokens: a mean over several batches, micro-batches or devices
is right only when sums and weights travel separately until somebody reads them.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from prompt_tuning import errors

# What LOSS_NORMALIZING_FACTOR may say beside a number; the names are T5X's.
NORMALIZERS = ('NUM_REAL_TARGET_TOKENS', 'NUM_TOTAL_TARGET_TOKENS', 'AVERAGE_PER_SEQUENCE')


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
  """How a batch becomes one number; the defaults are the reference recipe's.

  Attributes:
    z_loss: weight of the squared log partition function, which keeps logits near zero.
    label_smoothing: probability mass spread over the wrong entries, in [0, 1).
    loss_normalizing_factor: None (the loss is summed over tokens), a positive number, or one of
      NORMALIZERS.
  """
  z_loss: float = 1e-4
  label_smoothing: float = 0.0
  loss_normalizing_factor: float | int | str | None = None

  def __post_init__(self):
    if self.z_loss < 0:
      raise errors.UserError(f'z_loss is {self.z_loss}: give a number that is not negative.')
    if not 0 <= self.label_smoothing < 1:
      raise errors.UserError(
          f'label_smoothing is {self.label_smoothing}: give a number from 0 to below 1.')
    factor = self.loss_normalizing_factor
    if isinstance(factor, str):
      if factor not in NORMALIZERS:
        raise errors.UserError(f'LOSS_NORMALIZING_FACTOR is {factor!r}: give None, a positive '
                               f'number or one of {", ".join(NORMALIZERS)}.')
    elif factor is not None and factor <= 0:
      raise errors.UserError(f'LOSS_NORMALIZING_FACTOR is {factor}: give a positive number.')


def _target_logits(logits, targets):
  """Logits of the targets, [..., V] and [...] -> [...]."""
  return jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _cross_entropy(logits, targets, z_loss, label_smoothing):
  """Per-token (loss with z_loss, z_loss), each [...], of logits [..., V]."""
  return _cross_entropy_forward(logits, targets, z_loss, label_smoothing)[0]


def _smoothing(label_smoothing, size):
  """(on, off, entropy) of the smoothed one-hot distribution over `size` entries."""
  on, off = 1.0 - label_smoothing, label_smoothing / (size - 1)
  return on, off, -(on * math.log(on) + (size - 1) * off * math.log(off + 1e-20))


def _cross_entropy_forward(logits, targets, z_loss, label_smoothing):
  size = logits.shape[-1]
  on, off, entropy = _smoothing(label_smoothing, size)
  lse = jax.nn.logsumexp(logits, axis=-1)
  loss = (on - off) * (lse - _target_logits(logits, targets))
  if label_smoothing:
    loss += off * (size * lse - jnp.sum(logits, axis=-1)) - entropy
  z = z_loss * jnp.square(lse)
  return (loss + z, z), (logits, targets, lse)


def _cross_entropy_backward(z_loss, label_smoothing, residuals, cotangents):
  # Written by hand so that softmax and target become one fused element-wise pass over [..., V]:
  # reverse-mode differentiation would keep the exponentials and scatter the targets' part.
  logits, targets, lse = residuals
  d_loss, d_z = cotangents
  on, off, _ = _smoothing(label_smoothing, logits.shape[-1])
  scale = d_loss + (d_loss + d_z) * (2 * z_loss) * lse
  hit = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1) == targets[..., None]
  soft_targets = jnp.where(hit, jnp.float32(on), jnp.float32(off))
  grad = jnp.exp(logits - lse[..., None]) * scale[..., None] - soft_targets * d_loss[..., None]
  return grad, None


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def token_cross_entropy(logits, targets, weights=None, *, z_loss=0.0, label_smoothing=0.0):
  """Cross entropy summed over tokens, as T5X computes it.

  Per token: logsumexp(logits) - logits[target], smoothed, minus the entropy of the smoothed
  target (so that a perfect prediction costs 0), plus z_loss * logsumexp(logits)^2.

  Args:
    logits: [B, L, V], computed with in float32.
    targets: [B, L] integers.
    weights: [B, L] or None for all ones; 0 leaves a token out.
    z_loss: weight of the squared log partition function.
    label_smoothing: mass spread over the V - 1 wrong entries.

  Returns:
    (loss_sum, z_loss_sum, weight_sum), float32 scalars; loss_sum contains z_loss_sum.
  """
  logits, targets = jnp.asarray(logits, jnp.float32), jnp.asarray(targets)
  loss, z = _cross_entropy(logits, targets, float(z_loss), float(label_smoothing))
  if weights is None:
    return jnp.sum(loss), jnp.sum(z), jnp.float32(targets.size)
  weights = jnp.asarray(weights, jnp.float32)
  return jnp.sum(loss * weights), jnp.sum(z * weights), jnp.sum(weights)


def token_accuracy(logits, targets, weights=None):
  """How many targets are the most likely entry.

  Args:
    logits: [B, L, V].
    targets: [B, L] integers.
    weights: [B, L] or None; a token counts where its weight is not 0.

  Returns:
    (correct, counted), float32 scalars.
  """
  logits, targets = jnp.asarray(logits), jnp.asarray(targets)
  chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)
  # "No entry beats the target, and none before it ties": argmax at a fifth of its price on a CPU.
  entry = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
  beaten = (logits > chosen) | ((logits == chosen) & (entry < targets[..., None]))
  correct = ~jnp.any(beaten, axis=-1)
  counted = jnp.ones(targets.shape, bool) if weights is None else weights != 0
  total = functools.partial(jnp.sum, dtype=jnp.float32)
  return total(correct & counted), total(counted)


def sequence_scores(logits, targets, weights=None):
  """Log-probability of each target sequence: [B, L, V], [B, L], [B, L] -> [B] float32."""
  logits, targets = jnp.asarray(logits, jnp.float32), jnp.asarray(targets)
  loss, _ = _cross_entropy(logits, targets, 0.0, 0.0)
  return -jnp.sum(loss if weights is None else loss * jnp.asarray(weights, jnp.float32), axis=-1)


def loss_normalizer(setting, batch):
  """What the summed loss is divided by, and the token weights to sum it with.

  Args:
    setting: LossConfig.loss_normalizing_factor.
    batch: holds decoder_target_tokens [B, L], decoder_loss_weights [B, L] (absent: target != 0)
      and, where rows are packed, decoder_segment_ids [B, L].

  Returns:
    (factor, weights): a float32 scalar, 1 where the loss is summed, and weights [B, L].
    AVERAGE_PER_SEQUENCE changes the weights so that each sequence counts the same, however long.
  """
  targets = batch['decoder_target_tokens']
  weights = batch.get('decoder_loss_weights')
  weights = jnp.asarray(targets != 0 if weights is None else weights, jnp.float32)
  if setting is None:
    return jnp.float32(1), weights
  if setting == 'NUM_REAL_TARGET_TOKENS':
    return jnp.sum(weights), weights
  if setting == 'NUM_TOTAL_TARGET_TOKENS':
    return jnp.float32(targets.size), weights
  if setting == 'AVERAGE_PER_SEQUENCE':
    lengths = _weight_of_own_sequence(weights, batch.get('decoder_segment_ids'))
    weights = jnp.where(lengths > 0, weights / jnp.where(lengths > 0, lengths, 1.0), 0.0)
    return jnp.sum(weights), weights
  return jnp.float32(setting), weights


def _weight_of_own_sequence(weights, segment_ids):
  """Sum of the weights of the sequence that a token belongs to, [B, L] or [B, 1]."""
  if segment_ids is None:
    return jnp.sum(weights, axis=-1, keepdims=True)
  same = segment_ids[:, :, None] == segment_ids[:, None, :]
  return jnp.sum(jnp.where(same, weights[:, None, :], 0.0), axis=-1)
