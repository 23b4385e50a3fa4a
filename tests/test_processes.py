"""How processes are found: flags, environment, launchers; and what is refused."""

import pathlib
import subprocess
import sys
import time

import jax
import pytest

from prompt_tuning import processes
from prompt_tuning.errors import UserError


@pytest.fixture(autouse=True)
def joined(monkeypatch):
  """What jax.distributed.initialize is called with; the environment knows of no launcher."""
  calls = []
  for name in (*processes._ENVIRONMENT.values(), *processes._LAUNCHED, 'JOB_COMPLETION_INDEX'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(jax.distributed, 'initialize', lambda **given: calls.append(given))
  return calls


def test_one_process_looks_for_no_others(joined, monkeypatch):
  processes.start()
  processes.start(num_processes=1)
  monkeypatch.setenv('SLURM_NTASKS', '1')
  processes.start()
  assert joined == []
  assert processes.is_first() and not processes.are_joined()


def test_all_three_flags(joined):
  processes.start('host:1234', 2, 0)
  call, = joined
  assert call['coordinator_address'] == 'host:1234' and call['process_id'] == 0
  assert call['cluster_detection_method'] == 'deactivate'


def test_the_environment_fills_in(joined, monkeypatch):
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'host:1234')
  monkeypatch.setenv('JAX_NUM_PROCESSES', '4')
  processes.start(process_id=3)
  call, = joined
  assert call['num_processes'] == 4 and call['process_id'] == 3
  monkeypatch.setenv('JAX_NUM_PROCESSES', 'four')
  with pytest.raises(UserError, match="JAX_NUM_PROCESSES is 'four'"):
    processes.start(process_id=3)


@pytest.mark.parametrize('name', processes._LAUNCHED)
def test_a_launcher_of_several(joined, monkeypatch, name):
  monkeypatch.setenv(name, '2')
  processes.start()
  call, = joined
  assert call['cluster_detection_method'] is None and call['process_id'] is None


@pytest.mark.parametrize(('given', 'message'), [
    (dict(coordinator_address='host', num_processes=2, process_id=0), 'give HOST:PORT'),
    (dict(coordinator_address='host:1', num_processes=2, process_id=2), '--process_id=2; give 0'),
    (dict(coordinator_address='host:1', num_processes=0, process_id=0), '--num_processes=0'),
    (dict(num_processes=2, process_id=-1), '--process_id=-1')])
def test_values_that_cannot_be(joined, given, message):
  with pytest.raises(UserError, match=message):
    processes.start(**given)
  assert joined == []


def test_a_launcher_that_jax_does_not_know(monkeypatch):
  """Open MPI 5; a job of SLURM outside of srun is one process."""
  def initialize(**given):
    raise ValueError('coordinator_address should be defined.')
  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  monkeypatch.setenv('SLURM_NTASKS', '2')
  processes.start()
  monkeypatch.setenv('OMPI_COMM_WORLD_SIZE', '2')
  with pytest.raises(UserError, match='Started by Open MPI: .* give --coordinator_address'):
    processes.start()


def test_what_jax_finds_wanting():
  """With jax's own function: half of the flags; others that do not come, in time and one line."""
  code = """
from prompt_tuning import processes
from prompt_tuning.errors import UserError
try:
  processes.start(num_processes=2)
except UserError as error:
  print(error)
processes.start('localhost:9', 2, 1, timeout=2)
"""
  began = time.monotonic()
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=100,
                        cwd=pathlib.Path(processes.__file__).parents[1])
  assert done.returncode == 2 and time.monotonic() - began < 60
  assert '--num_processes=2: coordinator_address should be defined' in done.stdout
  assert 'all three, to every process' in done.stdout
  message, = done.stderr.splitlines()
  assert 'not all processes were there within 2 s' in message
