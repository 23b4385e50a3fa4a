"""Kills one of two processes at random moments, starts both again, and compares their end with one.

  python -m benchmarks.processes --kills=4

The runs are those of benchmarks/chaos.py. The unkilled one is a single process with eight virtual
devices, the killed ones are two processes of four. Equal means: the same lines in metrics.jsonl and
the same prompt, up to the order of float32 sums.
"""

import argparse
import contextlib
import json
import pathlib
import random
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import chaos
from prompt_tuning.checkpoints import prompt_file

CLOSE = dict(rtol=2e-3, atol=1e-4)


def free_address() -> str:
  """localhost and a port that nobody listens at."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return f'localhost:{probe.getsockname()[1]}'


def start_pair(folder: pathlib.Path, run: str) -> list[subprocess.Popen]:
  """Starts a run as two processes."""
  workshop, address = chaos.Workshop(folder, devices=4), free_address()
  flags = [f'--coordinator_address={address}', '--num_processes=2']
  return [workshop.start_command([*workshop.command(run), *flags, f'--process_id={index}'],
                                 f'{run}.{index}') for index in range(2)]


def wait(pair) -> list[int]:
  """The exit codes of both, within ten minutes."""
  try:
    return [process.wait(timeout=600) for process in pair]
  finally:
    for process in pair:
      with contextlib.suppress(OSError):
        process.kill()


def differs(run: pathlib.Path, other: pathlib.Path) -> list[str]:
  """What is not close."""
  lines = [[{name: value for name, value in json.loads(line).items() if name not in chaos.CLOCKS}
            for line in (folder / 'metrics.jsonl').read_text().splitlines()]
           for folder in (run, other)]
  if [list(line) for line in lines[0]] != [list(line) for line in lines[1]]:
    return ['names or number of metrics']
  wrong = [f'metrics of step {ours["step"]}' for ours, theirs in zip(*lines, strict=True)
           if not np.allclose(list(ours.values()), list(theirs.values()), **CLOSE)]
  prompts = [prompt_file.load_prompt(folder / 'prompt.safetensors').array
             for folder in (run, other)]
  return wrong + ([] if np.allclose(*prompts, **CLOSE) else ['prompt'])


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--kills', type=int, default=4)
  parser.add_argument('--seed', type=int, default=0)
  flags = parser.parse_args()
  rng, kills = random.Random(flags.seed), []
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    chaos.Workshop(folder, devices=8).prepare()
    for number in range(flags.kills):
      pair, run = start_pair(folder, 'pair'), folder / 'pair'
      before = chaos.steps_on_disk(run)
      chaos.wait_until(pair[0], lambda run=run, before=before: chaos.steps_on_disk(run) > before)
      time.sleep(rng.uniform(0, 0.2))
      pair[number % 2].kill()
      began = time.monotonic()
      codes = wait(pair)
      kills.append({'killed': number % 2, 'codes': codes, 'step': chaos.steps_on_disk(run)[-1],
                    'seconds': round(time.monotonic() - began, 1)})
    codes = wait(start_pair(folder, 'pair'))
    wrong = differs(run, folder / 'unkilled') if codes == [0, 0] else [f'ended with {codes}']
  print(json.dumps({'kills': kills, 'wrong': wrong}, indent=2))
  sys.exit(1 if wrong else 0)


if __name__ == '__main__':
  main()
