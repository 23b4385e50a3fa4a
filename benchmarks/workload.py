"""The work that both sides get: T5 1.1 small shape, the same random weights, prompt and batches."""

import argparse
import dataclasses
import pathlib
import subprocess
import sys
import tempfile

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
  """Sizes of the synthetic work; every field is also a flag.

  Attributes:
    batch: rows in a batch.
    inputs: input tokens in a row, without the prompt.
    targets: target tokens in a row.
    prompt: prompt length P.
    cores: cores that all peers share.
    rounds: measured turns of each peer.
    dropout: percent of activations dropped in training, on both sides.
  """
  batch: int = 16
  inputs: int = 128
  targets: int = 8
  prompt: int = 100
  cores: int = 2
  rounds: int = 7
  dropout: int = 0


def parser(description):
  """A command line with the fields of a Workload as flags."""
  parser = argparse.ArgumentParser(description=description)
  for field in dataclasses.fields(Workload):
    parser.add_argument(f'--{field.name}', type=int, default=field.default,
                        help=f'default {field.default}')
  return parser


T5_1_1_SMALL = dict(
    vocab_size=32128, d_model=512, d_kv=64, d_ff=1024, num_layers=8, num_decoder_layers=8,
    num_heads=6, feed_forward_proj='gated-gelu', decoder_start_token_id=0, pad_token_id=0,
    eos_token_id=1, tie_word_embeddings=False)


def write_weights(folder):
  """Writes a Hugging Face folder of T5 1.1 small shape with random weights.

  The head's row of the end-of-sequence token is zero: it never has the largest logit, and greedy
  decoding always runs to its last token.
  """
  import torch
  import transformers
  torch.manual_seed(0)
  model = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5_1_1_SMALL))
  with torch.no_grad():
    torch.nn.init.normal_(model.lm_head.weight, std=T5_1_1_SMALL['d_model'] ** -0.5)
    model.lm_head.weight[T5_1_1_SMALL['eos_token_id']] = 0
  model.save_pretrained(folder)


def write_prompt(path, length):
  """Writes a random prompt [P, H], at the scale of the embedding table's rows."""
  shape = (length, T5_1_1_SMALL['d_model'])
  np.save(path, np.random.default_rng(1).normal(size=shape).astype(np.float32))


def prepare(workload):
  """Writes weights and prompt into a new temporary folder, for the peers to read.

  Returns:
    The TemporaryDirectory; it holds `weights/` and `prompt.npy`.
  """
  folder = tempfile.TemporaryDirectory(prefix='prompt_tuning_benchmark_')
  # In a process of its own: the parent of the peers stays free of torch.
  subprocess.run([sys.executable, __file__, folder.name + '/weights'], check=True)
  write_prompt(pathlib.Path(folder.name) / 'prompt.npy', workload.prompt)
  return folder


def batch(workload, seed=0):
  """A full batch of random tokens: inputs [B, T] and targets [B, L], int32, nothing padded."""
  rng = np.random.default_rng(seed)
  draw = lambda length: rng.integers(2, 32000, size=(workload['batch'], length), dtype=np.int32)
  return draw(workload['inputs']), draw(workload['targets'])


def spread(batches, size, count):
  """`count` batches that stand for all: every n-th in the order of their size."""
  ordered = sorted(batches, key=size)
  step = max(1, len(ordered) // count)
  return ordered[step // 2::step][:count]


if __name__ == '__main__':
  write_weights(sys.argv[1])
