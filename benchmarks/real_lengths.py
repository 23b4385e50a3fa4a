"""Compares training at real lengths: our buckets or packed rows against PEFT's dynamic padding.

Needs torch, transformers and peft (the extra `interop`), the task in SuperGLUE's or GLUE's file
layout and a T5 vocabulary. Both sides train on the same tokens, tokenised beforehand; a round takes
batches spread evenly over an epoch's sizes; reading and padding count, compilation does not.

  python benchmarks/real_lengths.py --task=rte --data_dir=SUPERGLUE --vocabulary=spiece.model
  python benchmarks/real_lengths.py --task=sst2 --batch=32 --layout=packed --data_dir=GLUE ...
"""

import dataclasses

import numpy as np
import rounds
import workload

from prompt_tuning import vocabulary as vocabulary_lib
from prompt_tuning.data import cache as cache_lib
from prompt_tuning.data import task as task_lib

# Name -> (task, how many times PEFT's examples a second are wanted).
TASKS = {'rte': ('super_glue_rte_v102', 2.6), 'wic': ('super_glue_wic_v102', 1.8),
         'sst2': ('glue_sst2_v200', 1.8)}


def main():
  parser = workload.parser(__doc__.split('\n')[0])
  parser.set_defaults(rounds=3)
  parser.add_argument('--batches', type=int, default=8, help='batches of a round, default 8')
  parser.add_argument('--task', choices=list(TASKS), default='rte', help='default rte')
  parser.add_argument('--layout', choices=['buckets', 'packed'], default='buckets',
                      help='of our batches, default buckets')
  parser.add_argument('--data_dir', required=True, help='folder that holds RTE/, WiC/ or SST-2/')
  parser.add_argument('--vocabulary', required=True, help='SentencePiece model of T5')
  flags = parser.parse_args()
  fields = {f.name: getattr(flags, f.name) for f in dataclasses.fields(workload.Workload)}
  work = workload.Workload(**fields)
  rounds.pin_cores(work.cores)
  with workload.prepare(work) as folder:
    options = fields | {'folder': folder, 'job': 'real_lengths', 'batches': flags.batches,
                        'layout': flags.layout}
    task, wanted = TASKS[flags.task]
    cache = tokenize(task, flags.data_dir, flags.vocabulary, folder)
    ours = rounds.Peer('prompt_tuning', 'peer_ours.py', **options, cache=cache.path)
    theirs = rounds.Peer('PEFT', 'peer_peft.py', **options)
    warm = {peer: peer.ask('warm') for peer in (theirs, ours)}
    rounds.interleave([theirs, ours], work.rounds, warmups=0)
    examples = flags.batches * work.batch
    print(f'{len(cache)} examples of {cache.lengths[:, 0].mean():.0f} input tokens on average, '
          f'{cache.lengths[:, 0].max()} at most; our shapes {warm[ours]["shapes"]}, compiled in '
          f'{warm[ours]["seconds"]:.0f} s\n')
    for peer in (theirs, ours):
      print(f'{rounds.timing(peer, work=examples)} an example')
      peer.close()
  print()
  rounds.report_speed(f'{flags.task}, {flags.layout}: our examples/s / PEFT', theirs, ours,
                      at_least=wanted)


def tokenize(task, data_dir, vocabulary, folder):
  """Builds the cache of the training split, and `examples.npz` with the same tokens for PEFT."""
  cache = cache_lib.build(
      task_lib.get(task, data_dir=data_dir), 'train',
      vocabulary_lib.load_vocabulary(vocabulary), {'inputs': 512, 'targets': 16}, folder + '/cache')
  inputs, targets = zip(*cache.tokens(range(len(cache))), strict=True)
  np.savez(folder + '/examples.npz', inputs=np.concatenate(inputs),
           targets=np.concatenate(targets), lengths=cache.lengths)
  return cache


if __name__ == '__main__':
  main()
