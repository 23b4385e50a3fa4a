"""The lock of a folder: held, refused, given back, left by the dead, taken from the living."""

import json
import logging
import os
import pathlib
import subprocess
import sys
import time

import pytest

from prompt_tuning.checkpoints import run_lock
from prompt_tuning.checkpoints.run_lock import RunLock
from prompt_tuning.errors import UserError

HOLDER = """
import sys, time
from prompt_tuning.checkpoints.run_lock import RunLock
with RunLock({folder!r}, beat=0.1):
  print('held', flush=True)
  time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
  """A process that holds the folder."""
  process = subprocess.Popen(
      [sys.executable, '-c', HOLDER.format(folder=str(tmp_path))], stdout=subprocess.PIPE,
      text=True, cwd=pathlib.Path(__file__).parents[2])
  assert process.stdout.readline() == 'held\n'
  yield process
  process.kill()
  process.wait()
  process.stdout.close()


def content(folder):
  return json.loads((folder / run_lock.NAME).read_text())


def pretend(folder, **changes):
  """The lock as another process would have written it."""
  (folder / run_lock.NAME).write_text(json.dumps(content(folder) | changes))


def test_held_and_given_back(tmp_path):
  with RunLock(tmp_path) as lock:
    held = content(tmp_path)
    assert held['pid'] == os.getpid() and held['host']
    lock.check()
  assert list(tmp_path.iterdir()) == []


def test_signs_of_life(tmp_path):
  with RunLock(tmp_path, beat=0.02):
    beats = set()
    end = time.monotonic() + 10
    while len(beats) < 3 and time.monotonic() < end:
      beats.add(content(tmp_path)['beat'])
  assert len(beats) == 3


def test_the_second_is_refused_at_once(tmp_path, holder):
  began = time.monotonic()
  with pytest.raises(UserError) as error, RunLock(tmp_path):
    pass
  assert time.monotonic() - began < 1
  assert f'process {holder.pid} on host {content(tmp_path)["host"]} began' in str(error.value)
  assert 'sign of life' in str(error.value) and 'another MODEL_DIR' in str(error.value)


@pytest.mark.parametrize('reaped', [True, False])
def test_a_killed_holder_is_recognised_at_once(tmp_path, holder, reaped, caplog):
  holder.kill()
  if reaped:
    holder.wait()
  else:  # dead, but its parent has not asked yet: the process id is still taken
    end = time.monotonic() + 10
    while run_lock._process_start(holder.pid) and time.monotonic() < end:
      time.sleep(0.01)
  began = time.monotonic()
  with caplog.at_level(logging.WARNING), RunLock(tmp_path):
    assert content(tmp_path)['pid'] == os.getpid()
  assert time.monotonic() - began < 1
  assert 'is gone: taking over' in caplog.text


def test_a_process_id_that_is_used_again_is_not_the_holder(tmp_path, holder):
  """The holder's id now belongs to a process that began at another time."""
  holder.kill()
  holder.wait()
  pretend(tmp_path, pid=os.getpid(), process_start='1')
  with RunLock(tmp_path):
    assert content(tmp_path)['process_start'] != '1'


def test_a_living_holder_elsewhere_is_refused(tmp_path, holder):
  """On another machine a process id says nothing; the signs of life do."""
  held = content(tmp_path)
  holder.kill()
  holder.wait()
  pretend(tmp_path, machine='another', host='node7', beat=0)
  code = ('import json, pathlib, time\n'
          f'path = pathlib.Path({str(tmp_path / run_lock.NAME)!r})\n'
          'time.sleep(0.5)\n'
          'path.write_text(path.read_text().replace(\'"beat": 0\', \'"beat": 1\'))')
  with subprocess.Popen([sys.executable, '-c', code]):
    with pytest.raises(UserError, match=f'process {held["pid"]} on host node7'):
      with RunLock(tmp_path, beat=0.1, stale=20):
        pass


@pytest.mark.parametrize('text', [None, '', '{"pid"', '[]'])
def test_a_silent_holder_elsewhere_is_stale(tmp_path, text, caplog):
  """Also a file that was cut short while it was written."""
  with RunLock(tmp_path):
    held = content(tmp_path) | {'machine': 'another', 'host': 'node7'}
  (tmp_path / run_lock.NAME).write_text(json.dumps(held) if text is None else text)
  began = time.monotonic()
  with caplog.at_level(logging.WARNING), RunLock(tmp_path, beat=0.05, stale=0.3):
    assert content(tmp_path)['pid'] == os.getpid()
  assert time.monotonic() - began > 0.3
  if text is None:
    assert 'process' in caplog.text and 'node7' in caplog.text


@pytest.mark.parametrize(('damage', 'words'), [
    (lambda path: path.unlink(), 'is gone'),
    (lambda path: pretend(path.parent, token='other', pid=7, host='node7'),
     'taken over by process 7 on host node7')])
def test_a_lost_lock_is_noticed_and_left_alone(tmp_path, damage, words, caplog):
  with RunLock(tmp_path, beat=0.05) as lock:
    damage(tmp_path / run_lock.NAME)
    lock._thread.join(timeout=10)
    assert not lock._thread.is_alive()
    with pytest.raises(UserError, match=words):
      lock.check()
  assert words in caplog.text
  assert (tmp_path / run_lock.NAME).exists() == ('node7' in words)


def test_a_folder_that_cannot_be_written(tmp_path):
  with pytest.raises(UserError, match='cannot be written'), RunLock(tmp_path / 'none'):
    pass
