"""The matrix products of a step and nothing else: how fast any implementation could be here."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import rounds
import workload


def shapes(work):
  """Products of one forward pass as (count, batch axes, rows, inner, columns)."""
  t5 = workload.T5_1_1_SMALL
  emb, mlp, heads, head = t5['d_model'], t5['d_ff'], t5['num_heads'], t5['d_kv']
  layers, decoder_layers = t5['num_layers'], t5['num_decoder_layers']
  source, target = work['prompt'] + work['inputs'], work['targets']
  rows, target_rows = work['batch'] * source, work['batch'] * target
  inner, pairs = heads * head, work['batch'] * heads
  return [
      (3 * layers + 2 * decoder_layers, 1, rows, emb, inner),  # query, key, value; cross key, value
      (layers, 1, rows, inner, emb),  # out
      (2 * layers, 1, rows, emb, mlp), (layers, 1, rows, mlp, emb),
      (layers, pairs, source, head, source), (layers, pairs, source, source, head),
      (4 * decoder_layers, 1, target_rows, emb, inner),
      (2 * decoder_layers, 1, target_rows, inner, emb),
      (2 * decoder_layers, 1, target_rows, emb, mlp), (decoder_layers, 1, target_rows, mlp, emb),
      (decoder_layers, pairs, target, head, source), (decoder_layers, pairs, target, source, head),
      (1, 1, target_rows, emb, t5['vocab_size'])]


def products(work):
  """A function that computes the products of one training step.

  The backward pass has the products of the forward pass again (gradients of activations; frozen
  kernels need none), and those of attention twice, for both of their sides are activations.
  """
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  dot = jax.jit(jnp.matmul)
  calls = []
  for count, batch, rows, inner, columns in shapes(work):
    lead = () if batch == 1 else (batch,)
    forward_and_backward = count * (2 if batch == 1 else 3)
    calls.append((forward_and_backward, draw(*lead, rows, inner), draw(*lead, inner, columns)))

  def run():
    for count, a, b in calls:
      for _ in range(count):
        dot(a, b).block_until_ready()

  return {'run': run}


if __name__ == '__main__':
  rounds.serve(products(json.loads(sys.argv[1])))
