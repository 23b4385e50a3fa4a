"""The work that both sides get: the shape of a T5 1.1, the same random weights, prompt, batches."""

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
    shape: the T5 1.1 whose shape the weights have, one of SHAPES.
    batch: rows in a batch.
    inputs: input tokens in a row, without the prompt.
    targets: target tokens in a row.
    prompt: prompt length P.
    cores: cores that all peers share.
    rounds: measured turns of each peer.
    dropout: percent of activations dropped in training, on both sides.
    dtype: of weights and activations, on both sides.
  """
  shape: str = 'small'
  batch: int = 16
  inputs: int = 128
  targets: int = 8
  prompt: int = 100
  cores: int = 2
  rounds: int = 7
  dropout: int = 0
  dtype: str = 'float32'


def parser(description):
  """A command line with the fields of a Workload as flags."""
  parser = argparse.ArgumentParser(description=description)
  for field in dataclasses.fields(Workload):
    parser.add_argument(f'--{field.name}', type=field.type, default=field.default,
                        choices=CHOICES.get(field.name),
                        help=f'default {field.default}')
  return parser


T5_1_1 = dict(
    vocab_size=32128, d_kv=64, feed_forward_proj='gated-gelu', decoder_start_token_id=0,
    pad_token_id=0, eos_token_id=1, tie_word_embeddings=False)
SHAPES = {
    'small': T5_1_1 | dict(d_model=512, d_ff=1024, num_layers=8, num_decoder_layers=8, num_heads=6),
    'base': T5_1_1 | dict(d_model=768, d_ff=2048, num_layers=12, num_decoder_layers=12,
                          num_heads=12)}


CHOICES = {'shape': list(SHAPES), 'dtype': ['float32', 'bfloat16']}


def write_weights(folder, shape):
  """Writes a Hugging Face folder of a T5 1.1 with random weights.

  The head's row of the end-of-sequence token is zero: it never has the largest logit, and greedy
  decoding always runs to its last token.
  """
  import torch
  import transformers
  torch.manual_seed(0)
  config = transformers.T5Config(**SHAPES[shape])
  model = transformers.T5ForConditionalGeneration(config)
  with torch.no_grad():
    torch.nn.init.normal_(model.lm_head.weight, std=config.d_model ** -0.5)
    model.lm_head.weight[config.eos_token_id] = 0
  model.save_pretrained(folder)


def write_prompt(path, length, shape):
  """Writes a random prompt [P, H], at the scale of the embedding table's rows."""
  shape = (length, SHAPES[shape]['d_model'])
  np.save(path, np.random.default_rng(1).normal(size=shape).astype(np.float32))


def prepare(workload):
  """Writes weights and prompt into a new temporary folder, for the peers to read.

  Returns:
    The TemporaryDirectory; it holds `weights/` and `prompt.npy`.
  """
  folder = tempfile.TemporaryDirectory(prefix='prompt_tuning_benchmark_')
  # In a process of its own: the parent of the peers stays free of torch.
  subprocess.run([sys.executable, __file__, folder.name + '/weights', workload.shape], check=True)
  write_prompt(pathlib.Path(folder.name) / 'prompt.npy', workload.prompt, workload.shape)
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
  write_weights(*sys.argv[1:])
