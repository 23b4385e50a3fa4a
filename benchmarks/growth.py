"""How the time of a training step grows with batch, input length, prompt length and depth.

Each size is varied alone over four values. Time is that of the CPUs, the least of several turns;
FLOPs are the compiler's. A line through their logarithms gives the exponents: a part of the step
that grew faster than its FLOPs would show as a larger exponent of the time.

  python benchmarks/growth.py
"""

import argparse
import dataclasses
import time

import numpy as np
import random_step
import rounds

from prompt_tuning.cli import process
from prompt_tuning.models.t5 import T5Config

BASE = {'batch': 16, 'inputs': 128, 'prompt': 100, 'depth': 8}
VALUES = {'batch': (4, 8, 16, 32), 'inputs': (64, 128, 256, 512), 'prompt': (20, 50, 100, 200),
          'depth': (2, 4, 8, 16)}
TARGETS = 8
NOISE = 0.05  # of an exponent: a tenth of the time over a factor of eight


@dataclasses.dataclass
class Point:
  """A step at one size: its FLOPs and the CPU time of its turns."""
  step: random_step.RandomStep
  batch: dict
  flops: float
  seconds: list

  def run(self):
    start = time.process_time()
    float(self.step.start(self.batch))
    self.seconds.append(time.process_time() - start)


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--axes', default=','.join(VALUES), help='default batch,inputs,prompt,depth')
  parser.add_argument('--scale', type=float, default=1.0, help='of all sizes, default 1')
  parser.add_argument('--rounds', type=int, default=5, help='measured turns, default 5')
  parser.add_argument('--cores', type=int, default=2, help='default 2')
  flags = parser.parse_args()
  rounds.pin_cores(flags.cores)
  process.keep_memory()
  print(f'{"":8} {"sizes":>18} {"GFLOP a step":>30} {"CPU s a step":>30} {"exponents":>16}')
  for axis in flags.axes.split(','):
    measure(axis, flags)


def measure(axis, flags):
  """Prints the row of one size."""
  values = [max(1, round(value * flags.scale)) for value in VALUES[axis]]
  base = {name: max(1, round(value * flags.scale)) for name, value in BASE.items()}
  points = [prepare(**base | {axis: value}) for value in values]
  for turn in range(flags.rounds):
    for point in points if turn % 2 == 0 else points[::-1]:
      point.run()
  flops = [point.flops for point in points]
  seconds = [min(point.seconds) for point in points]
  grows = {name: exponent(values, y) for name, y in (('time', seconds), ('FLOPs', flops))}
  verdict = 'reached' if grows['time'] <= grows['FLOPs'] + NOISE else 'MISSED'
  row = lambda numbers, form: ' '.join(f'{number:{form}}' for number in numbers)
  print(f'{axis:8} {row(values, "4d"):>18} {row([f / 1e9 for f in flops], "7.1f"):>30} '
        f'{row(seconds, "7.3f"):>30} {grows["time"]:5.2f} of {grows["FLOPs"]:5.2f}   {verdict}',
        flush=True)


def prepare(batch, inputs, prompt, depth):
  config = T5Config(dropout_rate=0.0, num_encoder_layers=depth, num_decoder_layers=depth)
  step = random_step.RandomStep(config, prompt)
  arrays = random_step.random_batch(batch, inputs, TARGETS)
  point = Point(step, arrays, step.flops(arrays), [])
  point.run()  # compiles, or reads the first pages
  point.seconds.clear()
  return point


def exponent(sizes, numbers):
  """Slope of the line through the logarithms."""
  return np.polyfit(np.log(sizes), np.log(numbers), 1)[0]


if __name__ == '__main__':
  main()
