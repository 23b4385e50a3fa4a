"""Compares the time from process start to the first finished training step with PEFT's.

Needs torch, transformers and peft (the extra `interop`). Each start is a new process that imports,
reads the weights and takes one step. Ours finds its compiled programs in a cache, as every start of
`prompt-tuning train` but the first does; a start without it is printed beside it.

  python benchmarks/startup.py [--shape=base]
"""

import dataclasses
import os
import resource
import statistics
import tempfile
import time

import rounds
import workload


def main():
  parser = workload.parser(__doc__.split('\n')[0])
  parser.set_defaults(rounds=3)
  work = workload.Workload(**vars(parser.parse_args()))
  rounds.pin_cores(work.cores)
  with workload.prepare(work) as folder, tempfile.TemporaryDirectory() as cache:
    options = dataclasses.asdict(work) | {'folder': folder, 'job': 'train'}
    # Both are read when JAX starts; the second keeps small programs too.
    os.environ |= {'JAX_COMPILATION_CACHE_DIR': cache,
                   'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    cold = start('peer_ours.py', options)
    start('peer_peft.py', options)  # its files are in memory from now on, as ours are
    pairs = [(start('peer_peft.py', options), start('peer_ours.py', options))
             for _ in range(work.rounds)]
  theirs, ours = zip(*pairs, strict=True)
  for name, starts in (('PEFT', theirs), ('prompt_tuning', ours), ('without a cache', [cold])):
    seconds, cpu = map(statistics.median, zip(*starts, strict=True))
    print(f'{name:22} {seconds:7.2f} s, CPU {cpu:7.2f} s from process start to the first step')
  print()
  for name, i, target in (('start: PEFT s / ours', 0, 1.0), ('  in CPU time', 1, None)):
    ratio = statistics.median(a[i] / b[i] for a, b in pairs)
    rounds.report(name, ratio, at_least=target)


def start(script, options):
  """(seconds until the first step of a new process is done, CPU seconds of its whole life)."""
  before, begin = _cpu_of_ended(), time.perf_counter()
  peer = rounds.Peer(script, script, **options)
  peer.ask('run')
  seconds = time.perf_counter() - begin
  peer.close()
  return seconds, _cpu_of_ended() - before


def _cpu_of_ended():
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


if __name__ == '__main__':
  main()
