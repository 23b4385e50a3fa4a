"""Compares a prompt-tuning training step with Hugging Face PEFT's: time and peak memory.

Needs torch, transformers and peft (the extra `interop`). Each side is a process of its own and
they take turns; both start from the same weights, prompt and batch, and their losses and
gradients are compared first.

  python benchmarks/train_step.py [--shape=base] [--dtype=bfloat16]
"""

import dataclasses

import numpy as np
import rounds
import workload

# Of loss and gradient, relative to the largest entry; the sides round bfloat16 in other places.
TOLERANCE = {'float32': 1e-4, 'bfloat16': 0.1}


def main():
  work = workload.Workload(**vars(workload.parser(__doc__.split('\n')[0]).parse_args()))
  rounds.pin_cores(work.cores)
  with workload.prepare(work) as folder:
    options = dataclasses.asdict(work) | {'folder': folder, 'job': 'train'}
    ours = rounds.Peer('prompt_tuning', 'peer_ours.py', **options)
    remat = rounds.Peer('the same with remat', 'peer_ours.py', **options, remat='full')
    theirs = rounds.Peer('PEFT', 'peer_peft.py', **options)
    products = rounds.Peer('matrix products alone', 'peer_products.py', **options)
    peers = [theirs, ours, remat, products]
    rounds.interleave(peers, work.rounds)
    memory = {peer: peer.ask('memory')['bytes'] for peer in peers}
    if not work.dropout:
      check(ours, theirs, folder, TOLERANCE[work.dtype])
    for peer in peers:
      print(f'{rounds.timing(peer)} a step, peak memory {memory[peer] / 2**20:5.0f} MiB')
      peer.close()
  print()
  rounds.report_speed('training step: PEFT s / ours', theirs, ours, at_least=1.6)
  rounds.report('peak memory: ours / PEFT', memory[ours] / memory[theirs], at_most=1.0)
  rounds.report('peak memory with remat: ours / PEFT', memory[remat] / memory[theirs], at_most=0.75)
  rounds.report_speed('training step with remat: PEFT s / ours', theirs, remat)
  rounds.report_speed('our step / matrix products alone', ours, products, at_most=1.8)


def check(ours, theirs, folder, tolerance):
  """Compares loss and prompt gradient of both sides; ends the program where they differ."""
  losses = ours.ask('check')['loss'], theirs.ask('check')['loss']
  gradients = [np.load(f'{folder}/gradient_{side}.npy') for side in ('ours', 'peft')]
  difference = np.abs(gradients[0] - gradients[1]).max() / np.abs(gradients[1]).max()
  print(f'same loss ({losses[0]:.5f}, {losses[1]:.5f}); largest difference of the prompt gradients '
        f'{difference:.1e} of the largest entry\n')
  assert abs(losses[0] - losses[1]) < tolerance * losses[1] and difference < tolerance


if __name__ == '__main__':
  main()
