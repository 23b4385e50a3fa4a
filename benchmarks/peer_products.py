"""The matrix products of a step and nothing else: how fast any implementation could be here."""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import rounds
import workload

from prompt_tuning.cli import process
from prompt_tuning.models.layers import Attention


def shapes(work):
  """Products of a step as (count, batch axes, rows, inner, columns).

  A dense layer counts twice, for the gradient of its input (frozen kernels need none), a product
  of activations three times, for both of its sides are such. (At the start of the
  decoder nothing depends on the prompt yet, and the step leaves out a little more.)
  """
  t5 = workload.SHAPES[work['shape']]
  emb, mlp, heads, head = t5['d_model'], t5['d_ff'], t5['num_heads'], t5['d_kv']
  layers, decoder_layers = t5['num_layers'], t5['num_decoder_layers']
  source, target = work['prompt'] + work['inputs'], work['targets']
  rows, target_rows = work['batch'] * source, work['batch'] * target
  inner = heads * head
  return [
      *stack(layers, rows, source, work['batch'], emb, mlp, inner, heads),
      *stack(decoder_layers, target_rows, target, work['batch'], emb, mlp, inner, heads),
      (2 * decoder_layers, 1, target_rows, emb, inner),  # query of the cross-attention
      (2 * decoder_layers, 1, target_rows, inner, emb),
      *cross(work, decoder_layers, (rows, source), (target_rows, target), emb, head, heads),
      (2, 1, target_rows, emb, t5['vocab_size'])]


def stack(layers, rows, length, batch, emb, mlp, inner, heads):
  """Self-attention and feed-forward of `layers` layers on `rows` rows."""
  pairs, head = batch * heads, inner // heads
  return [
      (6 * layers, 1, rows, emb, inner), (2 * layers, 1, rows, inner, emb),
      (4 * layers, 1, rows, emb, mlp), (2 * layers, 1, rows, mlp, emb),
      (3 * layers, pairs, length, head, length), (3 * layers, pairs, length, length, head)]


def cross(work, layers, source, target, emb, head, heads):
  """Keys and values of the source and their products, or the short cut of few queries."""
  attention = Attention(num_heads=heads, head_dim=head, dtype=work['dtype'])
  if attention.skips_keys(target[1], (source[1], emb)):
    asked = target[1] * heads
    return [
        (2 * layers, heads, target[0], head, emb), (2 * layers, heads, target[0], emb, head),
        (3 * layers, work['batch'], asked, emb, source[1]),
        (3 * layers, work['batch'], asked, source[1], emb)]
  pairs = work['batch'] * heads
  return [
      (4 * layers, 1, source[0], emb, heads * head),
      (3 * layers, pairs, target[1], head, source[1]),
      (3 * layers, pairs, target[1], source[1], head)]


def products(work):
  """A function that computes the products of one training step."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), work['dtype'])
  dot = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))
  calls = []
  for count, batch, rows, inner, columns in shapes(work):
    lead = () if batch == 1 else (batch,)
    calls.append((count, draw(*lead, rows, inner), draw(*lead, inner, columns)))

  def run():
    for count, a, b in calls:
      for _ in range(count):
        dot(a, b).block_until_ready()

  return {'run': run}


if __name__ == '__main__':
  process.keep_memory()  # As our step has it.
  rounds.serve(products(json.loads(sys.argv[1])))
