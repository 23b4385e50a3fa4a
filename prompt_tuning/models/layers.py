"""Layers of the T5 family: dense, norm, relative bias, attention, feed-forward.

Shapes: B batch, Q query length, K key length, H emb_dim, N heads, D head_dim, F mlp_dim.
Kernels have two axes ([H, N*D]), as T5X and Flaxformer write them. Parameters are float32 or
bfloat16 and are cast to the activation dtype where they are used; kernels and the embedding table
may be int8 with scales beside them (int8.py).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning.models import int8, masks, products

# Large and finite: exp underflows to exactly 0, and a row that sees nothing gives no NaN.
MASKED = -1e10


@functools.cache
def fan_in_normal(scale: float = 1.0):
  """Truncated normal with standard deviation `scale` / sqrt(fan in)."""
  init = nn.initializers.variance_scaling(scale**2, 'fan_in', 'truncated_normal')
  # Flax asks for the shape at every use of a parameter: under jit each shape is traced once.
  return jax.jit(init, static_argnums=(1, 2))


class Dense(nn.Module):
  """Linear map without bias: [..., in] -> [..., features]. The first seam of PEFT methods."""

  features: int
  dtype: str
  kernel_init: nn.initializers.Initializer = fan_in_normal()

  @nn.compact
  def __call__(self, x):
    kernel, scale = self._kernel(x.shape[-1])
    if scale is not None:
      return int8.dot(x.astype(self.dtype), kernel, scale)
    return products.dot(x.astype(self.dtype), kernel.astype(self.dtype))

  @nn.compact
  def kernel(self, inputs):
    """The map itself as it is kept, for who can do without its outputs.

    Returns:
      (kernel [inputs, features], its scales [features] where that is int8, else None).
    """
    return self._kernel(inputs)

  @nn.nowrap
  def _kernel(self, inputs):
    """The kernel as it is kept, and its scales where that is int8, else None."""
    kernel = self.param('kernel', self.kernel_init, (inputs, self.features), jnp.float32)
    return kernel, self.get_variable('params', 'kernel' + int8.SCALE)


class Embed(nn.Module):
  """Token embedding table [V, H]."""

  num_embeddings: int
  features: int
  dtype: str

  def setup(self):
    self.embedding = self.param('embedding', nn.initializers.normal(1.0),
                                (self.num_embeddings, self.features), jnp.float32)
    self.scale = self.get_variable('params', 'embedding' + int8.SCALE)  # None: not in int8

  def __call__(self, tokens):
    """[B, T] int32 -> [B, T, H]."""
    if self.scale is not None:
      return int8.widen(self.embedding[tokens], self.scale[tokens][..., None], self.dtype)
    return self.embedding[tokens].astype(self.dtype)

  def attend(self, x):
    """Logits with the table as head: [B, T, H] -> [B, T, V] float32."""
    if self.scale is not None:
      return int8.dot(x.astype(jnp.float32), self.embedding.T, self.scale)
    return jnp.dot(x.astype(jnp.float32), self.embedding.astype(jnp.float32).T)


class RMSNorm(nn.Module):
  """Root mean square norm without mean or bias; the variance is taken in float32."""

  dtype: str
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],), jnp.float32)
    return rms_norm(x, scale, self.epsilon, self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def rms_norm(x, scale, epsilon, dtype):
  """x [..., H] / root mean square, times scale [H]."""
  x = x.astype(jnp.float32)
  return (x * _inverse_rms(x, epsilon) * scale.astype(jnp.float32)).astype(dtype)


def _inverse_rms(x, epsilon):
  """[..., H] float32 -> [..., 1]."""
  return jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)


def _rms_norm_forward(x, scale, epsilon, dtype):
  return rms_norm(x, scale, epsilon, dtype), (x, scale)


def _rms_norm_backward(epsilon, dtype, residuals, grad):
  # Written by hand because it needs x alone, which the residual stream holds anyway, and because
  # XLA on a CPU would fuse the sums of reverse-mode differentiation with the products before them,
  # a seventh slower from 8 MiB of activations on. Factoring x * inverse out brings that back.
  x, scale = residuals
  x32, grad = x.astype(jnp.float32), grad.astype(jnp.float32)
  inverse = _inverse_rms(x32, epsilon)
  scale_grad = jnp.sum(grad * x32 * inverse, axis=tuple(range(x.ndim - 1)))
  grad = grad * scale.astype(jnp.float32)
  mean = jnp.mean(x32 * grad, axis=-1, keepdims=True)
  x_grad = inverse * (grad - x32 * (mean * inverse * inverse))
  return x_grad.astype(x.dtype), scale_grad.astype(scale.dtype)


rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


class Dropout(nn.Module):
  """Dropout with one mask for all positions of `shared_axis`, as T5X draws it."""

  rate: float
  enabled: bool
  shared_axis: int = -2

  @nn.compact
  def __call__(self, x):
    return nn.Dropout(self.rate, broadcast_dims=(self.shared_axis,))(
        x, deterministic=not self.enabled)


class RelativePositionBias(nn.Module):
  """Learned bias of attention scores by bucketed distance (Raffel et al. 2020)."""

  num_heads: int
  num_buckets: int
  max_distance: int
  bidirectional: bool

  @nn.compact
  def __call__(self, query_positions, key_positions):
    """Bias for every pair of positions.

    Args:
      query_positions: [1 or B, Q] int32.
      key_positions: [1 or B, K] int32; may lie before the queries, even below 0.

    Returns:
      [1 or B, N, Q, K] float32.
    """
    table = self.param('rel_embedding', fan_in_normal(), (self.num_heads, self.num_buckets),
                       jnp.float32)
    buckets = masks.relative_position_bucket(
        key_positions[:, None, :] - query_positions[:, :, None],
        bidirectional=self.bidirectional, num_buckets=self.num_buckets,
        max_distance=self.max_distance)
    return jnp.moveaxis(table.astype(jnp.float32)[:, buckets], 0, 1)


class AttentionCore(nn.Module):
  """Softmax attention without parameters. The third seam: it sees keys after the cache."""

  dtype: str
  dropout_rate: float
  enable_dropout: bool

  @nn.compact
  def __call__(self, query, key, value, mask, bias):
    """T5 attention: no scaling of the scores, softmax in float32.

    Args:
      query: [B, Q, N, D].
      key: [B, K, N, D], or [B, K, 1, D] for all heads.
      value: [B, K, N, D], or [B, K, 1, D] for all heads.
      mask: [1 or B, 1, Q, K] bool, True where a query sees a key.
      bias: [1 or B, N, Q, K] float32, or None.

    Returns:
      [B, Q, N, D].
    """
    # With heads before positions the batched products take a third less time on a CPU.
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    scores = products.einsum('bnqd,bnkd->bnqk', query, key, jnp.float32)
    if bias is not None:
      scores = scores + bias
    weights = masked_softmax(scores, mask).astype(self.dtype)
    weights = Dropout(self.dropout_rate, self.enable_dropout)(weights)
    return products.einsum('bnqk,bnkd->bnqd', weights, value).swapaxes(1, 2)


@jax.custom_vjp
def masked_softmax(scores, mask):
  """Softmax over the last axis where mask is True; [B, N, Q, K] float32, [1 or B, 1, Q, K] bool."""
  return jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1)


def _masked_softmax_forward(scores, mask):
  weights = masked_softmax(scores, mask)
  return weights, (weights, mask)


def _masked_softmax_backward(residuals, grad):
  # Written by hand because it needs the weights alone; reverse-mode differentiation keeps the
  # masked scores and their exponentials too, each as large.
  weights, mask = residuals
  # Masked here, not after the sum, so that XLA does not fuse that with the product before it,
  # which is slower for long inputs on a CPU. It matters to rows that see nothing: the others have
  # weights of exactly 0 where they are masked.
  grad = jnp.where(mask, grad, 0.0)
  return weights * (grad - jnp.sum(weights * grad, axis=-1, keepdims=True)), None


masked_softmax.defvjp(_masked_softmax_forward, _masked_softmax_backward)


class Attention(nn.Module):
  """Multi-head attention, for self-attention and cross-attention, with a cache for decoding."""

  num_heads: int
  head_dim: int
  dtype: str
  dropout_rate: float = 0.0
  enable_dropout: bool = False

  def _dense(self, name, scale=1.0):
    return Dense(self.num_heads * self.head_dim, self.dtype, fan_in_normal(scale), name=name)

  def _heads(self, x):
    return x.reshape(*x.shape[:-1], self.num_heads, self.head_dim)

  @nn.compact
  def __call__(self, x, source, mask, bias=None, *, cache_index=None, cache_length=None,
               cache_source=False):
    """Attends from x to source.

    Args:
      x: [B, Q, H] rows that ask.
      source: [B, K, H] rows that are asked; x itself in self-attention.
      mask: [1 or B, 1, Q, K or cache_length] bool.
      bias: [1 or B, N, Q, K or cache_length] float32, or None.
      cache_index: int32 scalar, the slot of x[:, 0] in the self-attention cache; None: no cache.
      cache_length: slots of that cache; needed in the call that creates it. In cross-attention, the
        queries that are to come.
      cache_source: keep keys and values of `source` in the cache (cross-attention), so that
        later calls need not compute them again.

    Returns:
      [B, Q, H].
    """
    # T5 folds the usual 1/sqrt(D) of attention into the initial query kernel.
    query = self._heads(self._dense('query', self.head_dim**-0.5)(x))
    key_dense, value_dense = self._dense('key'), self._dense('value')
    core = AttentionCore(self.dtype, self.dropout_rate, self.enable_dropout, name='core')
    cached = self.has_variable('cache', 'cached_key')
    if cache_index is not None:
      y = core(query, *self._extend_cache(self._heads(key_dense(source)), self._heads(
          value_dense(source)), cache_index, cache_length), mask, bias)
    elif not cached and source is not x and self.skips_keys(cache_length or x.shape[1],
                                                            source.shape[1:]):
      # (q Wk^T) source^T are the scores of q and source Wk, (weights source) Wv is weights
      # (source Wv): where queries are few, products with each row of the source are saved.
      rows = source.astype(self.dtype)[:, :, None]
      query = self._contract('bqnd,hnd->bqnh', query, *key_dense.kernel(source.shape[-1]))
      y = self._contract('bqnh,hnd->bqnd', core(query, rows, rows, mask, bias),
                         *value_dense.kernel(source.shape[-1]))
    elif cache_source or cached:
      key = self.variable('cache', 'cached_key', lambda: self._heads(key_dense(source))).value
      value = self.variable('cache', 'cached_value', lambda: self._heads(value_dense(source))).value
      y = core(query, key, value, mask, bias)
    else:
      y = core(query, self._heads(key_dense(source)), self._heads(value_dense(source)), mask, bias)
    return Dense(x.shape[-1], self.dtype, name='out')(y.reshape(*y.shape[:2], -1))

  def _contract(self, equation, x, kernel, scale):
    """einsum of x with a kernel [H, N*D], seen as [H, N, D]."""
    kernel = self._heads(kernel)
    if scale is None:
      return products.einsum(equation, x, kernel.astype(self.dtype))
    return int8.einsum(equation, x, kernel, self._heads(scale))

  def skips_keys(self, queries, source):
    """Whether to attend to the rows of the source instead of making keys and values of them.

    The numbers are the same. Whoever changes key, value or core of this attention must make this
    answer False; see `peft.Method.changes`.

    Args:
      queries: Q, all that will ask about the same source.
      source: its shape (K, H).

    Returns:
      True where that takes fewer FLOPs and no more memory, forward and backward.
    """
    rows, width = source
    flops = 6 * queries * width <= 4 * width * self.head_dim + 6 * queries * self.head_dim
    return flops and queries * width <= rows * self.head_dim

  def _extend_cache(self, key, value, index, length):
    """Writes [B, Q, N, D] keys and values at slot `index`; returns all slots [B, length, N, D]."""
    created = not self.has_variable('cache', 'cached_key')
    shape = (key.shape[0], length, *key.shape[2:])
    keys = self.variable('cache', 'cached_key', jnp.zeros, shape, key.dtype)
    values = self.variable('cache', 'cached_value', jnp.zeros, shape, value.dtype)
    if not created:  # the creating call leaves the cache empty
      keys.value = jax.lax.dynamic_update_slice_in_dim(keys.value, key, index, axis=1)
      values.value = jax.lax.dynamic_update_slice_in_dim(values.value, value, index, axis=1)
    return keys.value, values.value


ACTIVATIONS = ('relu', 'gelu', 'linear')


def activate(name: str, x):
  """T5's activations by name: 'relu', 'gelu' (the tanh form) or 'linear'."""
  if name == 'relu':
    return jax.nn.relu(x)
  if name == 'gelu':
    return jax.nn.gelu(x, approximate=True)
  if name == 'linear':
    return x
  raise ValueError(f'unknown activation {name!r}; known: {", ".join(ACTIVATIONS)}')


# Only the branches are kept for the backward pass: computing tanh again takes less time than
# writing and reading what it would need.
@functools.partial(jax.checkpoint, static_argnums=0)
def gate(activations, *branches):
  """Product of the activated branches, each [..., F]."""
  dtype = branches[0].dtype
  if products.is_cpu_bfloat16(dtype):  # each rounding would take time, so there is one, at the end
    branches = [branch.astype(jnp.float32) for branch in branches]
  return functools.reduce(jnp.multiply, map(activate, activations, branches)).astype(dtype)


class MLP(nn.Module):
  """Feed-forward block; with two activations the branches are multiplied (gated)."""

  mlp_dim: int
  activations: tuple[str, ...]
  dtype: str
  dropout_rate: float = 0.0
  enable_dropout: bool = False

  @nn.compact
  def __call__(self, x):
    """[B, T, H] -> [B, T, H]."""
    count = len(self.activations)
    names = ['wi'] if count == 1 else [f'wi_{i}' for i in range(count)]
    branches = [Dense(self.mlp_dim, self.dtype, name=name)(x) for name in names]
    hidden = gate(self.activations, *branches)
    hidden = Dropout(self.dropout_rate, self.enable_dropout)(hidden)
    return Dense(x.shape[-1], self.dtype, name='wo')(hidden)
