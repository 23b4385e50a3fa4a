"""Compares greedy decoding under a prompt with Hugging Face PEFT's `generate`.

Needs torch, transformers and peft (the extra `interop`). The weights never prefer the end of the
sequence, so both sides decode every token; the sequences are compared first.

  python benchmarks/decode.py [--dtype=bfloat16]
"""

import dataclasses

import rounds
import workload

# Share of sequences that have to be the same. A near tie between two tokens may fall either way and
# changes all that follow; random weights in bfloat16 give many.
SAME = {'float32': 0.9, 'bfloat16': 0.4}


def main():
  work = workload.Workload(**vars(workload.parser(__doc__.split('\n')[0]).parse_args()))
  rounds.pin_cores(work.cores)
  with workload.prepare(work) as folder:
    options = dataclasses.asdict(work) | {'folder': folder, 'job': 'decode'}
    ours = rounds.Peer('prompt_tuning', 'peer_ours.py', **options)
    theirs = rounds.Peer('PEFT', 'peer_peft.py', **options)
    compare(ours.ask('run')['sequences'], theirs.ask('run')['sequences'], SAME[work.dtype])
    rounds.interleave([theirs, ours], work.rounds)
    memory = {peer: peer.ask('memory')['bytes'] for peer in (theirs, ours)}
    for peer in (theirs, ours):
      print(f'{rounds.timing(peer)} for {work.batch} x {work.targets} tokens, '
            f'peak memory {memory[peer] / 2**20:5.0f} MiB')
      peer.close()
  print()
  rounds.report_speed('greedy decoding: PEFT s / ours', theirs, ours, at_least=1.6)
  rounds.report('peak memory: ours / PEFT', memory[ours] / memory[theirs])


def compare(ours, theirs, share):
  """Checks that both sides decoded the same tokens."""
  equal = sum(a == b for a, b in zip(ours, theirs, strict=True))
  print(f'{equal} of {len(ours)} sequences of {len(ours[0])} tokens are the same\n')
  assert equal >= share * len(ours), (ours, theirs)


if __name__ == '__main__':
  main()
