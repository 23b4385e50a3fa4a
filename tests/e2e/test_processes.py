"""Two processes of four devices each: the numbers of one process with eight, whatever happens."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from e2e import jsonl

from benchmarks import chaos
from benchmarks.processes import free_address
from prompt_tuning.checkpoints import prompt_file
from prompt_tuning.checkpoints.run_lock import NAME as LOCK
from prompt_tuning.cli import main
from prompt_tuning.cli.interruption import EXIT_CODE

pytestmark = pytest.mark.slow

STEPS, FIRST_STOP = 48, 16
# Sums over rows are made in another order: float32, 48 steps, a prompt of order 1.
CLOSE = dict(rtol=2e-4, atol=2e-5)


@contextlib.contextmanager
def two_processes(argv, log):
  """Starts a command as two processes of four devices; none outlives the block."""
  address = free_address()
  env = dict(
      os.environ, JAX_PLATFORMS='cpu', JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
      JAX_COMPILATION_CACHE_DIR=str(log.parent / 'compiled'),
      XLA_FLAGS='--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0')
  started = []
  try:
    for index in range(2):
      command = [sys.executable, '-m', 'prompt_tuning', *argv, f'--coordinator_address={address}',
                 '--num_processes=2', f'--process_id={index}']
      with log.with_suffix(f'.{index}').open('w') as file:
        started.append(subprocess.Popen(command, cwd=chaos.ROOT, env=env, stdout=file, stderr=file))
    yield started
  finally:
    for process in started:
      process.kill()
      process.wait()


def assert_equal_runs(run, whole):
  """The same metrics, predictions and prompt, up to the order of sums."""
  metrics = [[{name: value for name, value in row.items() if name not in chaos.CLOCKS}
              for row in jsonl.read(folder / 'metrics.jsonl')] for folder in (run, whole)]
  assert [list(row) for row in metrics[0]] == [list(row) for row in metrics[1]]
  assert len(metrics[0]) > STEPS // 4
  for ours, theirs in zip(*metrics, strict=True):
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), **CLOSE)
  names = sorted(path.name for path in (whole / 'predictions').iterdir())
  assert len(names) == 4
  for name in names[1:]:  # what FIRST_STOP lies before
    ours, theirs = (jsonl.read(folder / 'predictions' / name) for folder in (run, whole))
    assert len(ours) == 16
    scores = [[row.pop('score') for row in part] for part in (ours, theirs)]
    assert ours == theirs
    np.testing.assert_allclose(*scores, **CLOSE)
  prompts = [prompt_file.load_prompt(folder / 'prompt.safetensors').array
             for folder in (run, whole)]
  np.testing.assert_allclose(*prompts, **CLOSE)


@pytest.fixture
def compiled(tmp_path):
  """What one start has compiled in this process, the next finds."""
  before = jax.config.jax_persistent_cache_min_compile_time_secs
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  yield
  jax.config.update('jax_persistent_cache_min_compile_time_secs', before)


def test_one_process_two_processes_one_process(train_argv, folder, tmp_path, capsys, compiled):
  """A run that is stopped twice and goes on elsewhere, beside one that is not."""
  def argv(run):
    return train_argv(run, EVAL_FILE=folder / 'train.jsonl', TRAIN_STEPS_RELATIVE=STEPS,
                      EVAL_PERIOD=STEPS // 4, SAVE_PERIOD=2, KEEP_EVERY=FIRST_STOP)
  whole, run = tmp_path / 'whole', tmp_path / 'run'
  assert main.main(argv(whole)) == 0
  shutil.copytree(whole, run)
  for step in chaos.steps_on_disk(run):  # as if it had been stopped there
    if step != FIRST_STOP:
      shutil.rmtree(run / 'checkpoints' / str(step))
  for path in (run / 'predictions').iterdir():
    path.unlink()

  with two_processes(argv(run), tmp_path / 'pair') as pair:
    chaos.wait_until(pair[0], lambda: chaos.steps_on_disk(run)[-1] > FIRST_STOP)
    assert pair[0].poll() is None
    pair[1].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=120) for process in pair] == [EXIT_CODE] * 2
  logs = [(tmp_path / f'pair.{index}').read_text() for index in range(2)]
  stopped = chaos.steps_on_disk(run)[-1]
  assert f'Continuing from step {FIRST_STOP}' in logs[0]
  assert f'Stopped at step {stopped} and saved' in logs[0] and FIRST_STOP < stopped < STEPS
  assert 'SIGTERM: finishing the step' in logs[1] and 'Stopped at' not in logs[1]
  assert len(list(run.glob('events.*'))) == 2 and not (run / LOCK).exists()

  capsys.readouterr()
  assert main.main(argv(run)) == 0
  assert f'Continuing from step {stopped}' in capsys.readouterr().err
  assert_equal_runs(run, whole)


def test_a_process_that_is_killed_takes_the_others_along():
  """They have found each other by SLURM's variables; the message tells what has happened."""
  code = """
import sys, time
from prompt_tuning import processes
processes.SILENCE = 3
processes.start()
stop = processes.Agreement(lambda: False)
assert processes.from_first([1.5, sys.argv[1]]) == [1.5, '0']
with processes.first_before_others('a name'):
  print('ready', flush=True)
while not stop():
  time.sleep(0.01)
"""
  env = dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS='', SLURM_JOB_ID='1', SLURM_NTASKS='2',
             SLURM_STEP_NODELIST='localhost',
             JAX_COORDINATOR_PORT=free_address().partition(':')[2])
  pair = [subprocess.Popen([sys.executable, '-c', code, index], cwd=chaos.ROOT, text=True,
                           env=dict(env, SLURM_PROCID=index, SLURM_LOCALID=index),
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE) for index in '01']
  try:
    for process in pair:  # Gloo writes there too
      assert 'ready\n' in iter(process.stdout.readline, ''), process.stderr.read()
    pair[1].kill()
    _, err = pair[0].communicate(timeout=60)
  finally:
    for process in pair:
      process.kill()
      process.communicate()
  assert pair[0].returncode not in (0, EXIT_CODE)
  assert 'unhealthy' in err or 'loo' in err, err
