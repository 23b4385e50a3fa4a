"""Compares peers that each live in a process of their own, in interleaved rounds.

A peer keeps its process through all rounds, so its peak memory is its own, and the peers take
turns: the ratio of neighbours in time means something where absolute seconds do not. It still
wants a quiet machine, for the peers' thread pools do not suffer alike from a busy one.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time


class Peer:
  """One side of a comparison: a script that answers commands on its standard input.

  Args:
    name: what the table calls this side.
    script: file beside this one whose main hands its commands to `serve`.
    **options: given to the script as one JSON argument.
  """

  def __init__(self, name, script, **options):
    self.name = name
    self.seconds = []
    self.cpu_seconds = []
    self._process = subprocess.Popen(
        [sys.executable, str(pathlib.Path(__file__).parent / script), json.dumps(options)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

  def ask(self, command):
    """Runs one command in the peer's process and returns its answer, a dict."""
    self._process.stdin.write(command + '\n')
    self._process.stdin.flush()
    answer = self._process.stdout.readline()
    if not answer:
      raise RuntimeError(f'{self.name} ended while it ran {command!r}; its own message is above.')
    return json.loads(answer)

  def close(self):
    self._process.stdin.close()
    self._process.wait()


def serve(commands):
  """Answers the parent's commands until it hangs up.

  Args:
    commands: name -> function without arguments that returns a dict or None. The answer carries
      the seconds it took, on the clock and on the CPU; `memory` is built in.
  """
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # Whatever a library prints goes to stderr and never into the answers.
  commands = commands | {'memory': lambda: {'bytes': peak_memory()}}
  for line in sys.stdin:
    start, cpu_start = time.perf_counter(), time.process_time()
    answer = commands[line.strip()]() or {}
    answer |= {'seconds': time.perf_counter() - start,
               'cpu_seconds': time.process_time() - cpu_start}
    print(json.dumps(answer), file=answers, flush=True)


def peak_memory():
  """The largest resident set this process has had, in bytes (Linux)."""
  # Not getrusage: its ru_maxrss is inherited from the parent through fork and exec.
  status = pathlib.Path('/proc/self/status').read_text()
  return int(status.split('VmHWM:')[1].split()[0]) * 1024


def interleave(peers, rounds, warmups=2):
  """Lets the peers run in turns and collects the seconds of each one's rounds."""
  for peer in peers:
    for _ in range(warmups):
      peer.ask('run')
  for number in range(rounds):
    # Every other round goes backwards: nobody always runs after the same neighbour.
    for peer in peers if number % 2 == 0 else peers[::-1]:
      answer = peer.ask('run')
      peer.seconds.append(answer['seconds'])
      peer.cpu_seconds.append(answer['cpu_seconds'])


def pin_cores(count):
  """Keeps this process and the peers it starts on `count` cores."""
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def timing(peer, work=1.0):
  """One line on a peer's rounds; `work` is what a round did, seconds are per unit of it."""
  seconds = [s / work for s in peer.seconds]
  return (f'{peer.name:22} {statistics.median(seconds):7.3f} s ({min(seconds):.3f} to '
          f'{max(seconds):.3f}), CPU {statistics.median(peer.cpu_seconds) / work:7.3f} s')


def report(name, value, *, at_least=None, at_most=None):
  """Prints one ratio with its target, if it has one."""
  line = f'{name:42} {value:5.2f}'
  if at_least is not None:
    line += f'   target at least {at_least}: {"reached" if value >= at_least else "MISSED"}'
  if at_most is not None:
    line += f'   target at most {at_most}: {"reached" if value <= at_most else "MISSED"}'
  print(line)


def report_speed(name, slow, fast, *, at_least=None, at_most=None):
  """Prints how many times as fast `fast` is, on the clock and in CPU time.

  The ratio of neighbours in time is taken and then the median over the rounds. On a busy machine
  only CPU time means something, and only with one core: threads that wait for each other spin.
  """
  ratios = lambda a, b: statistics.median(x / y for x, y in zip(a, b, strict=True))
  report(name, ratios(slow.seconds, fast.seconds), at_least=at_least, at_most=at_most)
  report('  in CPU time', ratios(slow.cpu_seconds, fast.cpu_seconds))
