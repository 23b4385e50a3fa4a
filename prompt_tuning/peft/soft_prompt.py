"""Prompt tuning (Lester et al. 2021): P trained rows beside the embedded input."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from prompt_tuning.errors import UserError
from prompt_tuning.models import int8
from prompt_tuning.models.t5 import Encoder
from prompt_tuning.peft import prompt_init
from prompt_tuning.peft.method import Method

PLACEMENTS = ('prefix', 'after_first', 'suffix', 'suffix_before_eos')


class Prompt(nn.Module):
  """Holds the prompt [P, H] at .../prompt/prompt/prompt, where google-research has it.

  With `count`, so many prompts [N, P, H].
  """

  length: int
  count: int | None = None

  @nn.compact
  def __call__(self, features):
    init = prompt_init.Uniform()
    shape = (*_axes(self.count), self.length, features)

    def make(rng):
      rows = init(rng, jnp.zeros((1, features)), math.prod(shape[:-1]), None)
      return {'prompt': rows.reshape(shape)}
    return self.param('prompt', make)['prompt']


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftPrompt(Method):
  """Trains a prompt of the encoder; everything else stays frozen.

  Attributes:
    length: rows of the prompt, P.
    placement: 'prefix' (before the input), 'after_first' (after its first token), 'suffix' (after
      its last token, before padding) or 'suffix_before_eos'.
    init: where the prompt starts; see `prompt_init`.
    num_prompts: N, so many prompts side by side, of which every example names one: calls get
      `prompt_ids`, int32 [B], or [B, segments] of packed rows; one that does not exist gives NaN.
      None: one prompt for all.
  """

  length: int = 100
  placement: str = 'prefix'
  init: Callable = prompt_init.SampledVocab()
  num_prompts: int | None = None

  unseen: ClassVar = ('placement',)
  features: ClassVar = ('prompt_ids',)

  def __post_init__(self):
    if self.length < 1:
      raise UserError(f'The prompt length is {self.length}; it must be at least 1.')
    if self.placement not in PLACEMENTS:
      raise UserError(f'The placement is {self.placement!r}; allowed: {list(PLACEMENTS)}.')
    if self.num_prompts is not None and self.num_prompts < 1:
      raise UserError(f'num_prompts is {self.num_prompts}; it must be at least 1, or None.')

  @property
  def trainable(self):
    return (prompt_init.PROMPT_PATH,)

  @property
  def logical_axes(self):
    # No 'embed': a few thousand numbers stay whole on every device, however the rest is split.
    return ((prompt_init.PROMPT_PATH, (*[None] * len(_axes(self.num_prompts)), 'prompt', None)),)

  def __call__(self, next_fun, args, kwargs, context, prompt_ids=None):
    if not (isinstance(context.module, Encoder) and context.method_name == 'embed'):
      return next_fun(*args, **kwargs)
    x, segment_ids, positions = next_fun(*args, **kwargs)
    prompt = Prompt(self.length, self.num_prompts, name='prompt')(x.shape[-1]).astype(x.dtype)
    if self.num_prompts is not None:
      prompt = self._choose(prompt, prompt_ids, len(x), context.module.is_initializing())
    if positions is not None:
      return self._fill_slots(prompt, x, segment_ids, positions)
    return (*insert(prompt[:, 0] if prompt.ndim == 4 else prompt, x, segment_ids, self.placement),
            None)

  def _choose(self, prompts, prompt_ids, batch, initializing):
    """The prompts [B, segments, P, H] that the examples of every row name."""
    if prompt_ids is None:
      if not initializing:
        raise UserError(f'There are {self.num_prompts} prompts and the batch does not say which '
                        'its examples use: give prompt_ids.')
      prompt_ids = jnp.zeros(batch, jnp.int32)
    return prompts.at[prompt_ids.reshape(batch, -1)].get(mode='fill', fill_value=jnp.nan)

  def changes(self, path):
    return path == 'encoder'

  def _fill_slots(self, prompt, x, segment_ids, positions):
    """Packed rows: the packer has left P free slots in every segment, where the prompt belongs."""
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    tokens = jnp.sum(same, axis=-1, dtype=jnp.int32) - self.length  # of each slot's own segment
    row = positions - slot_start(self.placement, tokens)
    slots = (row >= 0) & (row < self.length) & (segment_ids > 0)
    row = jnp.clip(row, 0, self.length - 1)
    if prompt.ndim == 2:
      rows = prompt[row]
    else:
      rows = prompt[jnp.arange(len(x))[:, None], jnp.maximum(segment_ids - 1, 0), row]
    return jnp.where(slots[..., None], rows, x), segment_ids, positions

  def initialize(self, rng, backbone, params, encode_text):
    embedding = int8.embedding_table(params)
    draw = functools.partial(self.init, embedding=embedding, length=self.length,
                             encode_text=encode_text)
    if self.num_prompts is None:
      return {prompt_init.PROMPT_PATH: draw(rng)}
    keys = [jax.random.fold_in(rng, i) for i in range(self.num_prompts)]
    return {prompt_init.PROMPT_PATH: jnp.stack([draw(key) for key in keys])}


def _axes(count):
  """The leading axes of prompts: none of one prompt, or [N]."""
  return () if count is None else (count,)


def slot_start(placement, tokens):
  """How many of an example's tokens stand before the prompt.

  Args:
    placement: one of PLACEMENTS.
    tokens: number of tokens of each example, an integer array of JAX or NumPy.

  Returns:
    An array of the same kind.
  """
  some = (tokens > 0).astype(tokens.dtype)
  return {'prefix': tokens * 0, 'after_first': some, 'suffix': tokens,
          'suffix_before_eos': tokens - some}[placement]


def insert(prompt, x, segment_ids, placement):
  """Puts a prompt into every row of an unpacked batch.

  Args:
    prompt: [P, H], or [B, P, H] with one prompt an example.
    x: [B, T, H] embedded inputs.
    segment_ids: [B, T] int32, 0 at padding.
    placement: one of PLACEMENTS.

  Returns:
    ([B, P+T, H], segment ids [B, P+T]).
  """
  batch, inputs = segment_ids.shape
  length = prompt.shape[-2]
  prompt = jnp.broadcast_to(prompt, (batch, length, x.shape[-1]))
  x = jnp.concatenate([prompt, x], axis=1)
  segment_ids = jnp.concatenate([jnp.ones((batch, length), jnp.int32), segment_ids], axis=1)
  if placement == 'prefix':
    return x, segment_ids
  tokens = jnp.sum(segment_ids[:, length:] > 0, axis=1, dtype=jnp.int32)
  start = slot_start(placement, tokens)[:, None]
  slot = jnp.arange(length + inputs, dtype=jnp.int32)[None]
  # Where each output slot is read from [prompt; input]: input, then prompt, then input again.
  source = jnp.where(slot < start, slot + length,
                     jnp.where(slot < start + length, slot - start, slot))
  return (jnp.take_along_axis(x, source[..., None], axis=1),
          jnp.take_along_axis(segment_ids, source, axis=1))
