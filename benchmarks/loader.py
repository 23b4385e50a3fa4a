"""Whether the data keeps up: the loader alone, and how long a real run waits for its batches.

Runs `prompt-tuning train` on a bundled task with random weights of T5 1.1 small shape, with a clock
at the loader; then the same loader gives batches to nobody.

  python benchmarks/loader.py
"""

import argparse
import tempfile
import time

import rounds

from prompt_tuning.cli import main as cli
from prompt_tuning.data import loader

FILES = ('models/t5_1_1_small.gin', 'tasks/demo_sentiment.gin', 'peft/prompt.gin',
         'runs/train.gin')
WARM_UP = 4  # steps that are not counted: the first compiles, and two are always on their way


class Clock:
  """Notes when a run asks for a batch and when it gets it.

  Attributes:
    loader: the TrainLoader of the run.
    calls: (asked, given) of every batch, in seconds.
  """

  def __init__(self):
    self.loader, self.calls = None, []

  def install(self):
    """Puts itself between a run and its loader."""
    original = loader.TrainLoader.__next__

    def timed(loader):
      asked = time.perf_counter()
      batch = original(loader)
      self.loader = loader
      self.calls.append((asked, time.perf_counter()))
      return batch

    loader.TrainLoader.__next__ = timed

  def per_step(self):
    """(seconds of a step, seconds of it that the run waited for its batch), on average."""
    calls = self.calls[WARM_UP:]
    asked = [call[0] for call in calls]
    waited = sum(given - asked for asked, given in calls[:-1])
    return (asked[-1] - asked[0]) / (len(calls) - 1), waited / (len(calls) - 1)


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--steps', type=int, default=30, help='of the run, default 30')
  parser.add_argument('--batches', type=int, default=300, help='of the loader alone, default 300')
  parser.add_argument('--cores', type=int, default=2, help='default 2')
  flags = parser.parse_args()
  rounds.pin_cores(flags.cores)
  clock = Clock()
  clock.install()
  with tempfile.TemporaryDirectory() as folder:
    code = cli.main(['train', *(f'--gin_file={name}' for name in FILES),
                     *bindings(folder, flags.steps)])
    assert code == 0, code
    alone = seconds_alone(clock.loader, flags.batches)
  step, waited = clock.per_step()
  print(f'\nA step takes {step * 1e3:.1f} ms, of which the run waits {waited * 1e3:.2f} ms for its '
        f'batch; the loader alone gives one every {alone * 1e3:.2f} ms.')
  rounds.report('loader alone: batches/s / steps/s', step / alone, at_least=20)
  rounds.report('waiting for data: % of the run', 100 * waited / step, at_most=2)


def bindings(folder, steps):
  values = {'MODEL_DIR': f'{folder}/run', 'INITIAL_CHECKPOINT_PATH': 'random',
            'VOCABULARY': 'bytes', 'TASK_FEATURE_LENGTHS': {'inputs': 128, 'targets': 12},
            'TRAIN_STEPS_RELATIVE': steps, 'EVAL_PERIOD': None,
            'EVAL_STEPS': 1, 'MAX_BUCKETS': 1, 'PACKING': False, 'DOCTOR': False,
            'WRITE_PERIOD': 10}
  return [f'--gin.{name}={value}' for name, value in values.items()]


def seconds_alone(used, batches):
  """Seconds a batch takes where nothing else runs: reading, padding and handing over."""
  with_thread = loader.TrainLoader(used.cache, used.plan)
  next(with_thread)
  start = time.perf_counter()
  for _ in range(batches):
    next(with_thread)
  seconds = time.perf_counter() - start
  with_thread.close()
  return seconds / batches


if __name__ == '__main__':
  main()
