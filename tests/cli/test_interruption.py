"""Signals: the first is heard, the second ends the process; a cluster's notice is honoured."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading

import pytest

from prompt_tuning.cli.interruption import EXIT_CODE, Interruption

ROOT = pathlib.Path(__file__).parents[2]


def test_the_exit_code_is_that_of_a_temporary_failure():
  assert EXIT_CODE == os.EX_TEMPFAIL == 75


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_heard(number, capfd):
  before = signal.getsignal(number), signal.getsignal(signal.SIGINT)
  with Interruption() as interruption:
    interruption.begun = True
    stop = interruption.agreed()
    assert not interruption.requested and not stop()
    signal.raise_signal(number)
    assert interruption.requested and stop()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
  assert (signal.getsignal(number), signal.getsignal(signal.SIGINT)) == before
  assert f'{number.name}: finishing the step and saving' in capfd.readouterr().err


def test_in_another_thread_the_program_around_decides():
  before, seen = signal.getsignal(signal.SIGTERM), []

  def listen():
    with Interruption() as interruption:
      seen.append((signal.getsignal(signal.SIGTERM), interruption.agreed()()))
  thread = threading.Thread(target=listen)
  thread.start()
  thread.join()
  assert seen == [(before, False)]


def start(code):
  return subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, env=dict(os.environ, XLA_FLAGS=''))


def test_the_second_interrupt_stops_at_once():
  """Also a process that never comes back to the interpreter."""
  code = """
import ctypes, time
from prompt_tuning.cli.interruption import Interruption
with Interruption() as interruption:
  interruption.begun = True
  print('ready', flush=True)
  while not interruption.requested:
    time.sleep(0.01)
  print('heard', flush=True)
  ctypes.PyDLL(None).sleep(60)  # holds the interpreter's lock
"""
  with start(code) as process:
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == 'heard\n'
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == -signal.SIGINT


def test_before_the_first_step_a_signal_ends_the_process():
  """Also one that is busy outside of the interpreter, as while a program compiles."""
  code = """
import hashlib
from prompt_tuning.cli.interruption import Interruption
with Interruption():
  print('ready', flush=True)
  hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)  # minutes
"""
  with start(code) as process:
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == EXIT_CODE
    assert 'SIGTERM: no step is done yet' in process.stderr.read()


@pytest.mark.parametrize('listens', [True, False])
def test_a_request_before_the_first_question(listens):
  """Also one that jax's own service hears, which answers at the first number after its count."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  code = f"""
import contextlib, os, signal, time, jax
jax.distributed.initialize('localhost:{port}', num_processes=1, process_id=0)
from prompt_tuning.cli.interruption import Interruption
interruption = Interruption()
interruption.begun = True
with interruption if {listens} else contextlib.nullcontext():
  stop = interruption.agreed()
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(1.5)  # the service looks once a second
  print(stop(), flush=True)
os._exit(0)
"""
  with start(code) as process:
    assert process.stdout.readline() == 'True\n', process.stderr.read()
    assert process.wait(timeout=20) == 0
