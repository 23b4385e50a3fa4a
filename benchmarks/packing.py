"""What padding costs on real lengths: length buckets and packing against the bound of the lengths.

Needs the data sets in the file layouts of SuperGLUE, GLUE and MRQA and a T5 vocabulary. For each
task and prompt length it prints the share of slots that hold a token or a prompt's row, and how
many FLOPs are spent in comparison with padding everything to 512 and with dynamic padding in random
batches; the bound is every example in a row of exactly its own length, of which at least 85 % have
to be reached. Time is measured for one task, in turns of buckets and packed rows.

  python benchmarks/packing.py --superglue=FOLDER --glue=FOLDER --mrqa=FOLDER \\
      --vocabulary=spiece.model
"""

import argparse
import statistics
import tempfile
import time

import jax
import numpy as np
import rounds
import workload

from prompt_tuning import params as params_lib
from prompt_tuning import vocabulary as vocabulary_lib
from prompt_tuning.data import cache as cache_lib
from prompt_tuning.data import loader, packing, plan
from prompt_tuning.data import task as task_lib
from prompt_tuning.models.t5 import T5, T5Config
from prompt_tuning.peft import model as peft_model
from prompt_tuning.peft.prompt_init import Uniform
from prompt_tuning.peft.soft_prompt import SoftPrompt
from prompt_tuning.training import optimizer as optimizer_lib
from prompt_tuning.training import state as state_lib
from prompt_tuning.training import step as step_lib

# Name -> (task, flag that gives its folder, most target tokens).
TASKS = {name: (f'super_glue_{name}_v102', 'superglue', 16)
         for name in ('boolq', 'rte', 'wic', 'cb')} | {
             'sst2': ('glue_sst2_v200', 'glue', 16), 'squad': ('mrqa_squad_v001', 'mrqa', 32)}
INPUTS = 512
CONFIG = T5Config(dropout_rate=0.0)  # T5 1.1 small


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--superglue', required=True, help='folder that holds RTE/, BoolQ/, ...')
  parser.add_argument('--glue', required=True, help='folder that holds SST-2/')
  parser.add_argument('--mrqa', required=True, help='folder that holds SQuAD.train*.jsonl')
  parser.add_argument('--vocabulary', required=True, help='SentencePiece model of T5')
  parser.add_argument('--prompts', default='100,20', help='prompt lengths, default 100,20')
  parser.add_argument('--batch', type=int, default=32, help='examples of a batch, default 32')
  parser.add_argument('--timed', choices=[*TASKS, 'none'], default='none',
                      help='task whose steps are timed, default none')
  parser.add_argument('--batches', type=int, default=4, help='batches of a round, default 4')
  parser.add_argument('--rounds', type=int, default=3, help='timed rounds, default 3')
  parser.add_argument('--cores', type=int, default=2, help='default 2')
  flags = parser.parse_args()
  rounds.pin_cores(flags.cores)
  vocabulary = vocabulary_lib.load_vocabulary(flags.vocabulary)
  prompts = [int(length) for length in flags.prompts.split(',')]
  print(f'{"":6} {"":>5} {"share of real slots":>20} {"share of the bound":>18} {"":>8}'
        f'{"bound of the speed-up":>24}')
  print(f'{"task":6} {"P":>5} {"buckets":>10} {"packed":>9} {"buckets":>10} {"packed":>7} '
        f'{"":>8} {"to 512":>11} {"dynamic":>11}')
  with tempfile.TemporaryDirectory() as folder:
    for name, (task, source, targets) in TASKS.items():
      cache = cache_lib.build(task_lib.get(task, data_dir=getattr(flags, source)), 'train',
                              vocabulary, {'inputs': INPUTS, 'targets': targets}, folder)
      for prompt in prompts:
        compare(name, cache, prompt, flags)
        if name == flags.timed:
          measure(cache, prompt, flags)


def batches_of(cache, prompt, size):
  """(batches in buckets, packed ones) of an epoch."""
  layout = packing.choose_packing(
      cache.lengths, size, packing.row_cost(CONFIG), prompt_length=prompt)
  buckets = loader.buckets_of(cache, prompt_length=prompt)
  return plan.epoch_plan(cache.lengths, buckets, size), layout.epoch(cache.lengths)


def compare(name, cache, prompt, flags):
  """Prints the row of a task."""
  cost, lengths = packing.row_cost(CONFIG), cache.lengths
  layouts = batches_of(cache, prompt, flags.batch)
  bound = np.mean([cost(t + prompt, l) for t, l in lengths.tolist()])
  longest = lengths.max(axis=0).tolist()
  whole = cost(INPUTS + prompt, longest[1])
  single = plan.epoch_plan(lengths, (tuple(longest),), flags.batch, remainder='drop')
  dynamic = np.mean([cost(*(lengths[batch.rows].max(axis=0) + [prompt, 0])) for batch in single])
  reached = [1 - packing.wasted_flops(lengths, batches, cost, prompt) for batches in layouts]
  shares = [real_share(lengths, batches, prompt) for batches in layouts]
  print(f'{name:6} {prompt:5} {shares[0]:10.3f} {shares[1]:9.3f} {reached[0]:10.1%} '
        f'{reached[1]:7.1%} {"" if max(reached) >= 0.85 else "MISSED":>8} {whole / bound:11.2f} '
        f'{dynamic / bound:11.2f}')


def real_share(lengths, batches, prompt):
  """Share of the encoder's slots that hold a token or a row of the prompt."""
  real = slots = 0
  for batch in batches:
    members = batch.rows[batch.rows >= 0]
    inserted = 0 if isinstance(batch, packing.PackedBatch) else prompt
    real += int(lengths[members, 0].sum()) + prompt * len(members)
    slots += len(batch.rows) * (batch.shape[0] + inserted)
  return real / slots


def measure(cache, prompt, flags):
  """Prints seconds of a training step per example, in interleaved rounds on random weights."""
  model = peft_model.PeftModel(T5(CONFIG), (SoftPrompt(length=prompt, init=Uniform()),))
  params = jax.jit(lambda key: peft_model.init_params(model, key))(jax.random.key(0))
  trainable, frozen = params_lib.split(params, model.trainable)
  optimizer = optimizer_lib.adafactor(0.3)
  state = state_lib.create(trainable, optimizer)
  step = step_lib.make_train_step(model, optimizer)
  sides = [workload.spread(batches, lambda batch: batch.shape[0] * len(batch.rows), flags.batches)
           for batches in batches_of(cache, prompt, flags.batch)]
  seconds = [[], []]
  for turn in range(flags.rounds + 1):  # the first compiles
    for side, batches in enumerate(sides):
      start, examples = time.perf_counter(), 0
      for batch in batches:
        state, metrics = step(state, frozen, loader.read(cache, batch), jax.random.key(0))
        examples += int((batch.rows >= 0).sum())
      float(metrics['loss'][0])
      if turn:
        seconds[side].append((time.perf_counter() - start) / examples)
  medians = [statistics.median(side) for side in seconds]
  print(f'{"":12} seconds an example: buckets {medians[0]:.4f}, packed {medians[1]:.4f}; packed is '
        f'{medians[0] / medians[1]:.2f} times as fast '
        f'({min(seconds[0]) / max(seconds[1]):.2f} to {max(seconds[0]) / min(seconds[1]):.2f})')


if __name__ == '__main__':
  main()
