"""Kills runs at random moments, starts them again, and compares their ends with an unkilled run.

  python -m benchmarks.chaos --kills=100

Every run trains a tiny model with dropout, gradient accumulation, shuffling and four padded
lengths, writes, evaluates and saves every few steps, and is killed by SIGKILL a few times: while it
starts, while it trains, or while it saves. The same command then brings it to its end. Equal means:
every bit of the trained parameters, the optimizer's state and the random key; the prompt file; the
history of evaluations; every number in metrics.jsonl but those that tell the time.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS = 90
KILLS_A_RUN = 5
MOMENTS = ('start', 'train', 'save', 'save')
# What tells when something was, or how fast.
CLOCKS = ('time', 'train/examples_per_second', 'train/tokens_per_second', 'train/steps_per_second')

MODEL = """\
from __gin__ import dynamic_registration

from prompt_tuning.models import t5

include 'models/family/t5_1_1.gin'

VOCABULARY = 'bytes'

t5.T5Config:
  vocab_size = 384
  emb_dim = 32
  num_heads = 2
  head_dim = 16
  mlp_dim = 64
  num_encoder_layers = 1
  num_decoder_layers = 1
"""


@dataclasses.dataclass(frozen=True)
class Workshop:
  """A folder with the model, the examples, compiled programs and the runs.

  Attributes:
    folder: an empty folder, or one that was prepared.
    devices: virtual CPU devices.
  """

  folder: pathlib.Path
  devices: int = 1

  def prepare(self):
    """Makes what is not there yet: model, examples, a first run that compiles, and `unkilled`."""
    if (self.folder / 'unkilled').exists():
      return
    (self.folder / 'tiny.gin').write_text(MODEL)
    for name, count in (('train', 40), ('dev', 8)):
      rows = [{'text': f'{i} ' + 'so ' * (i % 5 * 10), 'label': ('no', 'yes')[i % 2]}
              for i in range(count)]
      (self.folder / f'{name}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    self.finish('first')
    self.finish('unkilled')

  def spans(self) -> dict[str, float]:
    """Seconds that `unkilled` took to start and to train."""
    run = self.folder / 'unkilled'
    launched = float(self.log('unkilled').splitlines()[0])
    trained_from = (run / 'config.gin').stat().st_mtime
    return {'start': trained_from - launched,
            'train': (run / 'metrics.jsonl').stat().st_mtime - trained_from}

  def command(self, run: str, **overrides) -> list[str]:
    """The command of one run; macros may be given anew."""
    values = {
        'INITIAL_CHECKPOINT_PATH': 'random', 'TRAIN_FILE': self.folder / 'train.jsonl',
        'EVAL_FILE': self.folder / 'dev.jsonl', 'INPUT_TEMPLATE': "'say: {text}'",
        'CLASS_LABELS': "['yes', 'no']", 'METRICS': [], 'PROMPT_LENGTH': 3, 'BATCH_SIZE': 8,
        'TASK_FEATURE_LENGTHS': "{'inputs': 192, 'targets': 8}", 'MAX_BUCKETS': 4,
        'NUM_MICROBATCHES': 2, 'TRAIN_STEPS_RELATIVE': STEPS, 'EVAL_PERIOD': 6, 'SAVE_PERIOD': 5,
        'WRITE_PERIOD': 4, 'KEEP_EVERY': STEPS // 2, 'LEARNING_RATE': 0.1,
        'MODEL_DIR': self.folder / run, **overrides}
    return [sys.executable, '-m', 'prompt_tuning', 'train', f'--gin_search_paths={self.folder}',
            '--gin_file=tiny.gin', '--gin_file=peft/prompt.gin',
            '--gin_file=tasks/local_text.gin', '--gin_file=runs/train.gin',
            *(f'--gin.{name}={value}' for name, value in values.items())]

  def start(self, run: str, **overrides) -> subprocess.Popen:
    """Starts a run; its messages go to RUN.log."""
    return self.start_command(self.command(run, **overrides), run)

  def start_command(self, command: list[str], run: str) -> subprocess.Popen:
    """Starts any command in the workshop's environment."""
    compiled = str(self.folder / 'compiled')
    env = dict(
        os.environ, JAX_PLATFORMS='cpu', JAX_COMPILATION_CACHE_DIR=compiled,
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0', XDG_CACHE_HOME=compiled,
        XLA_FLAGS=f'--xla_force_host_platform_device_count={self.devices} '
        '--xla_backend_optimization_level=0')
    with (self.folder / f'{run}.log').open('a') as log:
      print(time.time(), file=log, flush=True)
      return subprocess.Popen(command, env=env, cwd=ROOT, stdout=log, stderr=log)

  def finish(self, run: str, **overrides):
    """Runs to the end; raises where that fails."""
    code = self.start(run, **overrides).wait()
    if code:
      raise RuntimeError(f'{run} ended with {code}:\n{self.log(run)}')

  def log(self, run: str) -> str:
    """The messages of a run's starts so far."""
    return (self.folder / f'{run}.log').read_text()


def steps_on_disk(model_dir: pathlib.Path) -> list[int]:
  """Steps of the whole checkpoints, in order."""
  folder = model_dir / 'checkpoints'
  names = os.listdir(folder) if folder.is_dir() else []
  return sorted(int(name) for name in names if name.isdigit())


def is_saving(model_dir: pathlib.Path) -> bool:
  """Whether an unfinished checkpoint lies there."""
  folder = model_dir / 'checkpoints'
  return folder.is_dir() and any('orbax-checkpoint-tmp' in name for name in os.listdir(folder))


def ending(model_dir: pathlib.Path) -> dict:
  """All that a run ends with and that has to be equal, as JSON values and bytes."""
  import orbax.checkpoint as ocp
  last = model_dir / 'checkpoints' / str(steps_on_disk(model_dir)[-1])
  arrays = ocp.PyTreeCheckpointer().restore(last / 'arrays')
  info = json.loads((last / 'run' / 'metadata').read_text())['info']
  lines = (model_dir / 'metrics.jsonl').read_text().splitlines()
  return {
      'step': last.name,
      'arrays': {path: (str(array.dtype), np.asarray(array).tobytes())
                 for path, array in arrays.items()},
      'info': {name: info[name] for name in ('history', 'best', 'data_index', 'totals')},
      'prompt': (model_dir / 'prompt.safetensors').read_bytes(),
      'metrics': [{name: value for name, value in json.loads(line).items() if name not in CLOCKS}
                  for line in lines]}


def differences(one: dict, other: dict) -> list[str]:
  """Names of what differs between two endings."""
  return [name for name in one if one[name] != other[name]]


def kill(process: subprocess.Popen, model_dir: pathlib.Path, moment: str, seconds: float,
         rng: random.Random) -> str | None:
  """Waits for a moment and kills.

  Args:
    process: the run.
    model_dir: its folder.
    moment: 'start', 'train' or 'save'.
    seconds: of a whole start or training, for the choice of a moment.
    rng: chooses it.

  Returns:
    Where it was hit: the moment, or 'inside a save'; None: it had ended before.
  """
  before = steps_on_disk(model_dir)
  if moment != 'start':
    wait_until(process, lambda: steps_on_disk(model_dir) > before or is_saving(model_dir))
  if moment == 'save':
    for _ in range(rng.randrange(4)):  # not always the first one
      wait_until(process, lambda: not is_saving(model_dir))
      wait_until(process, lambda: is_saving(model_dir))
    time.sleep(rng.uniform(0, 0.03))
  else:
    time.sleep(rng.uniform(0, seconds))
  if process.poll() is not None:
    return None
  process.kill()
  process.wait()
  return 'inside a save' if is_saving(model_dir) else moment


def wait_until(process: subprocess.Popen, true, seconds: float = 300):
  """Waits while the process lives and something is not true yet."""
  end = time.monotonic() + seconds
  while process.poll() is None and not true():
    if time.monotonic() > end:
      process.kill()
      raise TimeoutError(f'nothing came within {seconds} s')
    time.sleep(0.001)


def chaos(folder: pathlib.Path, kills: int, seed: int = 0, kills_a_run: int = KILLS_A_RUN) -> dict:
  """Does it.

  Args:
    folder: an empty folder, or one that was prepared; the runs stay in it.
    kills: how many.
    seed: of the moments.
    kills_a_run: after so many a run is brought to its end and compared.

  Returns:
    {'kills':, 'where': {moment: count}, 'runs':, 'equal':, 'seconds':, 'wrong': {run: names}}.
  """
  rng, began = random.Random(seed), time.monotonic()
  workshop = Workshop(folder)
  workshop.prepare()
  spans = workshop.spans()
  expected = ending(folder / 'unkilled')
  where, wrong, runs = collections.Counter(), {}, 0
  while where.total() < kills:
    run, runs = f'run{runs}', runs + 1
    model_dir = folder / run
    for _ in range(min(kills_a_run, kills - where.total())):
      moment = rng.choice(MOMENTS) if where else 'save'
      # Later starts have less to train: aim at what is left.
      left = 1 - max(steps_on_disk(model_dir), default=0) / STEPS if moment == 'train' else 1
      hit = kill(workshop.start(run), model_dir, moment, spans.get(moment, 0) * left, rng)
      if hit is None:
        break
      where[hit] += 1
    workshop.finish(run)
    names = differences(expected, ending(model_dir))
    if names:
      wrong[run] = names
  return {'kills': where.total(), 'where': dict(where), 'runs': runs, 'equal': runs - len(wrong),
          'seconds': round(time.monotonic() - began), 'wrong': wrong}


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--kills', type=int, default=100)
  parser.add_argument('--seed', type=int, default=0)
  flags = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    result = chaos(pathlib.Path(folder), flags.kills, flags.seed)
  print(json.dumps(result, indent=2))
  sys.exit(1 if result['wrong'] else 0)


if __name__ == '__main__':
  main()
