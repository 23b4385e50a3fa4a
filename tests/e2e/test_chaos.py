"""Runs of their own process that are killed, refused room, moved away, started twice.

All trains the tiny model of benchmarks/chaos.py, with dropout, gradient accumulation, shuffling and
four padded lengths; `unkilled` is the run that nothing happens to.
"""

import contextlib
import pathlib
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from benchmarks import chaos
from prompt_tuning.checkpoints import prompt_file
from prompt_tuning.checkpoints.run_lock import NAME as LOCK
from prompt_tuning.cli.interruption import EXIT_CODE

pytestmark = pytest.mark.slow

HALF = chaos.STEPS // 2  # the step that the whole run keeps


@pytest.fixture(scope='module')
def workshop(tmp_path_factory):
  workshop = chaos.Workshop(tmp_path_factory.mktemp('chaos'))
  workshop.prepare()
  return workshop


@pytest.fixture(scope='module')
def expected(workshop):
  ending = chaos.ending(workshop.folder / 'unkilled')
  assert len(ending['arrays']) > 3 and len(ending['metrics']) > 30
  assert ending['step'] == str(chaos.STEPS)
  return ending


def assert_as_unkilled(workshop, run, expected):
  assert chaos.differences(expected, chaos.ending(workshop.folder / run)) == []


@pytest.fixture
def begun(workshop):
  """Starts a run and waits until it has saved something; none outlives its test."""
  started = []

  def begin(run, until=None):
    process = workshop.start(run)
    started.append(process)
    chaos.wait_until(process, until or (lambda: chaos.steps_on_disk(workshop.folder / run)))
    return process
  yield begin
  for process in started:
    process.kill()
    process.wait()


def failed(workshop, process, run) -> str:
  """What a process that ended by itself, without a traceback, has said."""
  assert process.wait(timeout=120) in (1, 2)
  log = workshop.log(run)
  assert 'Traceback' not in log, log
  return log


def as_if_killed_at_half(workshop, run):
  """A copy of the whole run whose later checkpoints were never written."""
  model_dir = workshop.folder / run
  shutil.copytree(workshop.folder / 'unkilled', model_dir)
  for step in chaos.steps_on_disk(model_dir):
    if step != HALF:
      shutil.rmtree(model_dir / 'checkpoints' / str(step))
  return model_dir


def test_five_kills(workshop):
  """Wherever they hit; one or more of them while something is saved."""
  result = chaos.chaos(workshop.folder, kills=5, seed=time.time_ns() % 1000)
  assert result['kills'] == 5 and result['equal'] == result['runs'] > 0, result
  assert {'save', 'inside a save'} & result['where'].keys()
  assert not list(workshop.folder.glob('run*/**/*orbax-checkpoint-tmp*'))
  assert not list(workshop.folder.glob(f'run*/{LOCK}'))


def test_asked_to_stop(workshop, expected, begun):
  """SIGTERM, as schedulers send it: saved where it stands, within ten seconds."""
  process = begun('asked')
  asked = time.monotonic()
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=60) == EXIT_CODE
  assert time.monotonic() - asked < 10
  stopped = chaos.steps_on_disk(workshop.folder / 'asked')[-1]
  log = workshop.log('asked')
  assert f'Stopped at step {stopped} and saved' in log and stopped < chaos.STEPS
  workshop.finish('asked')
  assert f'Continuing from step {stopped}' in workshop.log('asked')
  assert_as_unkilled(workshop, 'asked', expected)


def test_a_damaged_newest_checkpoint(workshop, expected):
  """The one before it is taken, and that is said."""
  run = workshop.folder / 'damaged'
  shutil.copytree(workshop.folder / 'unkilled', run)
  files = [path for path in (run / 'checkpoints' / str(chaos.STEPS)).rglob('*') if path.is_file()]
  assert len(files) > 5
  for file in files:
    file.write_bytes(file.read_bytes()[:file.stat().st_size // 2])
  workshop.finish('damaged')
  log = workshop.log('damaged')
  assert f'checkpoints/{chaos.STEPS} cannot be read; going back to the one before' in log
  assert f'Continuing from step {chaos.STEPS - 5}' in log
  assert_as_unkilled(workshop, 'damaged', expected)


def test_two_runs_in_one_folder(workshop, begun):
  first = begun('two', until=(workshop.folder / 'two' / LOCK).exists)
  second = subprocess.run(workshop.command('two'), capture_output=True, text=True, cwd=chaos.ROOT)
  assert second.returncode == 2
  assert f'is in use: process {first.pid} on host' in second.stderr
  assert 'Traceback' not in second.stderr


def test_a_folder_that_is_moved_away(workshop, expected, begun):
  run, away = workshop.folder / 'moved', workshop.folder / 'away'
  process = begun('moved')
  run.rename(away)
  log = failed(workshop, process, 'moved')
  assert 'is gone' in log or 'No such file' in log
  assert not (run / 'checkpoints').exists()
  if run.exists():
    shutil.rmtree(run)
  away.rename(run)
  workshop.finish('moved')
  assert_as_unkilled(workshop, 'moved', expected)


@contextlib.contextmanager
def mounted(folder: pathlib.Path, *options):
  """A file system at a folder; skips where that is not allowed."""
  folder.mkdir(exist_ok=True)
  done = subprocess.run(['mount', *options, str(folder)], capture_output=True, text=True)
  if done.returncode:
    pytest.skip(f'mount is not allowed here: {done.stderr.strip()}')
  try:
    yield
  finally:
    subprocess.run(['umount', '--lazy', str(folder)], check=True)


def test_a_full_disk(workshop, expected, begun):
  """A file system of 4 MB that fills up while the run goes on; then there is room again."""
  run = workshop.folder / 'full'
  with mounted(run, '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs'):
    process = begun('full')
    filler = run / 'filler'
    with filler.open('wb', buffering=0) as file, contextlib.suppress(OSError):
      while process.poll() is None:  # also what the run frees meanwhile
        with contextlib.suppress(OSError):
          file.write(b'0' * 4096)
    log = failed(workshop, process, 'full')
    assert 'No space left on device' in log
    filler.unlink()
    workshop.finish('full')
    assert_as_unkilled(workshop, 'full', expected)


def make_read_only(folder):
  """Waits for a moment when nobody writes there: the system allows it only then."""
  end = time.monotonic() + 60
  while subprocess.run(['mount', '-o', 'remount,ro,bind', str(folder)]).returncode:
    assert time.monotonic() < end


def test_checkpoints_that_become_read_only(workshop, begun):
  folder = workshop.folder / 'saved' / 'checkpoints'
  folder.mkdir(parents=True)
  with mounted(folder, '--bind', str(folder)):
    process = begun('saved')
    make_read_only(folder)
    assert 'failed: [Errno 30] Read-only file system' in failed(workshop, process, 'saved')


def test_a_read_only_folder(workshop):
  folder = workshop.folder / 'read_only'
  with mounted(folder, '--bind', str(folder)):
    make_read_only(folder)
    log = failed(workshop, workshop.start('read_only'), 'read_only')
    assert f'{folder}/{LOCK} cannot be written: Read-only file system. Give a MODEL_DIR' in log


def test_another_number_of_devices(workshop, expected):
  """From one device to two: the same numbers up to the order in which they are added."""
  as_if_killed_at_half(workshop, 'devices')
  chaos.Workshop(workshop.folder, devices=2).finish('devices')
  assert f'Continuing from step {HALF}' in workshop.log('devices')
  ending = chaos.ending(workshop.folder / 'devices')
  assert len(ending['metrics']) == len(expected['metrics'])
  compared = 0
  for ours, theirs in zip(ending['metrics'], expected['metrics'], strict=True):
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=2e-3, atol=1e-6)
    compared += ours['step'] > HALF
  assert compared > 15
  prompts = [prompt_file.load_prompt(workshop.folder / run / 'prompt.safetensors').array
             for run in ('unkilled', 'devices')]
  np.testing.assert_allclose(*prompts, rtol=1e-3, atol=1e-4)
