"""LoRA (Hu et al. 2022): a trained low-rank update beside frozen dense layers."""

import dataclasses
import math
import re
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from prompt_tuning import params as trees
from prompt_tuning.errors import UserError
from prompt_tuning.models import products
from prompt_tuning.models.layers import Dense
from prompt_tuning.peft.method import Method


class LowRank(nn.Module):
  """x [..., in] -> scale * (x A) B [..., features]; B starts at zero."""

  rank: int
  features: int
  scale: float
  dtype: str

  @nn.compact
  def __call__(self, x):
    a = self.param('a', nn.initializers.he_uniform(), (x.shape[-1], self.rank), jnp.float32)
    b = self.param('b', nn.initializers.zeros, (self.rank, self.features), jnp.float32)
    x = products.dot(products.dot(x.astype(self.dtype), a.astype(self.dtype)), b.astype(self.dtype))
    return x * jnp.asarray(self.scale, x.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA(Method):
  """Adds scale * A B to every dense kernel whose module path matches; scale is alpha / rank.

  Attributes:
    targets: regular expressions over whole module paths, such as
      `encoder/layers(_\\d+)?/attention/query`; each must match a dense layer.
    rank: r, columns of A and rows of B.
    alpha: the update is scaled by alpha / rank.
    rank_stabilized: scale by alpha / sqrt(rank) instead (Kalajdzievski 2023), which keeps the size
      of the update where the rank grows.
  """

  targets: tuple[str, ...] = (r'.*/(query|value)',)
  rank: int = 8
  alpha: float = 16.0
  rank_stabilized: bool = False

  logical_axes: ClassVar = (
      (r'.*/(query|key|value)/lora/b', (None, 'joined_kv')),
      (r'.*/(wi|wi_0|wi_1)/lora/b', (None, 'mlp')),
      (r'.*/logits_dense/lora/b', (None, 'vocab')),
      (r'.*/out/lora/a', ('joined_kv', None)),
      (r'.*/wo/lora/a', ('mlp', None)),
      (r'.*/lora/a', ('embed', None)),
      (r'.*/lora/b', (None, 'embed')),
  )

  unseen: ClassVar = ('scale',)

  def __post_init__(self):
    targets = (self.targets,) if isinstance(self.targets, str) else tuple(self.targets)
    object.__setattr__(self, 'targets', targets)
    if self.rank < 1 or not targets:
      raise UserError(f'LoRA has rank {self.rank} and targets {list(targets)}; it needs rank >= 1 '
                      'and at least one target.')
    for target in targets:
      try:
        re.compile(target)
      except (re.error, TypeError) as error:
        raise UserError(f'The LoRA target {target!r} is no regular expression: {error}. Give one '
                        "over module paths, as in '.*/(query|value)'.") from None

  @property
  def scale(self) -> float:
    """What the product of A and B is multiplied by."""
    return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

  @property
  def trainable(self):
    return tuple(f'(?:{target})/lora/[ab]' for target in self.targets)

  def __call__(self, next_fun, args, kwargs, context):
    y, module = next_fun(*args, **kwargs), context.module
    if not isinstance(module, Dense) or not trees.matches(self.targets, '/'.join(module.path)):
      return y
    update = LowRank(self.rank, module.features, self.scale, module.dtype, name='lora')
    return y + update(*args)

  def changes(self, path):
    return trees.matches(self.targets, path)

  def merge(self, params):
    flat = trees.flatten(params)
    modules = [path.removesuffix('/lora/a') for path in flat if path.endswith('/lora/a')]
    for module in (m for m in modules if trees.matches(self.targets, m)):
      a, b = flat.pop(f'{module}/lora/a'), flat.pop(f'{module}/lora/b')
      kernel = flat[f'{module}/kernel']
      update = jnp.matmul(a, b) * self.scale  # [.., in, out], batched when stacked
      flat[f'{module}/kernel'] = (kernel.astype(jnp.float32) + update).astype(kernel.dtype)
    return trees.unflatten(flat)
