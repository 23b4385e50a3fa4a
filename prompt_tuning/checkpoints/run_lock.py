"""One run in one folder: a lock file whose holder shows signs of life.

No lock of the operating system is used: those do not reach over most remote file systems. The file
says who holds it; the holder changes it every few seconds. A process on the same machine that is
gone is recognised at once. Anybody else is watched for a while, by the watcher's own clock: a file
that does not change belongs to nobody.
"""

import contextlib
import json
import logging
import os
import pathlib
import socket
import threading
import time
import uuid

from prompt_tuning.atomic_file import write_atomically
from prompt_tuning.errors import UserError

NAME = 'run.lock'
BEAT = 5.0  # seconds between signs of life
STALE = 30.0  # seconds without one after which a lock belongs to nobody

_log = logging.getLogger(__name__)


class RunLock(contextlib.AbstractContextManager):
  """Holds a folder for this process while the block runs.

  Args:
    folder: the folder, which exists.
    beat: seconds between signs of life.
    stale: seconds without one after which another's lock is taken over.

  Example:
    with RunLock(folder) as lock:
      ...
      lock.check()  # before anything is written
  """

  def __init__(self, folder, *, beat: float = BEAT, stale: float = STALE):
    self._path = pathlib.Path(folder) / NAME
    self._beat, self._stale = beat, stale
    self._own = {'token': uuid.uuid4().hex, 'host': socket.gethostname(), 'pid': os.getpid(),
                 'machine': _machine(), 'process_start': _process_start(os.getpid()),
                 'started': time.time(), 'beat': 0}
    self._lost = None
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._live, name='run lock', daemon=True)

  def __enter__(self):
    """Takes the lock.

    Raises:
      UserError: another process has it, or the folder cannot be written.
    """
    while not self._create():
      self._clear_away(_read(self._path))
    self._thread.start()
    return self

  def __exit__(self, *unused):
    self._ended.set()
    self._thread.join()
    if (_read(self._path) or {}).get('token') == self._own['token']:
      self._path.unlink(missing_ok=True)

  def check(self):
    """Raises UserError where the lock is no longer ours: nothing more may be written then."""
    if self._lost is not None:
      raise UserError(f'{self._path} {self._lost}. This run stops here and leaves the folder as it '
                      'is; the same command goes on from the last checkpoint in it.')

  def _create(self) -> bool:
    """Makes the file; False where there is one."""
    try:
      with open(self._path, 'x', encoding='utf-8') as file:
        json.dump(self._own, file)
      return True
    except FileExistsError:
      return False
    except OSError as error:
      raise UserError(f'{self._path} cannot be written: {error.strerror}. Give a MODEL_DIR that '
                      'can be written and has room.') from None

  def _clear_away(self, holder: dict | None):
    """Removes the lock of a process that is gone; refuses where it lives."""
    if holder is None:  # it was being made or removed just now
      holder = self._watch(None)
      if holder is None:
        return
    if _is_here(holder):
      if _process_start(holder['pid']) == holder['process_start']:
        raise self._refusal(holder)
    else:
      now = self._watch(holder)
      if now != holder:
        if now is not None:
          raise self._refusal(now)
        return
    _log.warning('%s is of process %s on %s, which is gone: taking over.', self._path,
                 holder.get('pid'), holder.get('host'))
    # Of two that find the same lock stale, one removes it; should the other then remove what the
    # first has made, the first sees it at its next sign of life and stops.
    if _read(self._path) == holder:
      self._path.unlink(missing_ok=True)

  def _watch(self, holder: dict | None) -> dict | None:
    """What the file says once it has changed, or as it is after the time to be stale."""
    if holder is not None:
      _log.warning('%s is of process %s on %s; waiting up to %.0f s for a sign of life from it.',
                   self._path, holder.get('pid'), holder.get('host'), self._stale)
    end = time.monotonic() + self._stale
    while time.monotonic() < end:
      time.sleep(min(self._beat, 1.0))
      now = _read(self._path)
      if now != holder or not self._path.exists():
        return now
    if holder is None:  # empty or torn, and nobody writes it
      self._path.unlink(missing_ok=True)
    return holder

  def _refusal(self, holder: dict) -> UserError:
    now = time.time()
    with contextlib.suppress(OSError):
      seen = now - self._path.stat().st_mtime
      return UserError(
          f'MODEL_DIR={self._path.parent} is in use: process {holder["pid"]} on host '
          f'{holder["host"]} began {now - holder["started"]:.0f} s ago and gave a sign of life '
          f'{max(seen, 0):.0f} s ago ({self._path}). Stop it first, or choose another MODEL_DIR.')
    return UserError(f'MODEL_DIR={self._path.parent} is in use by process {holder["pid"]} on host '
                     f'{holder["host"]}. Stop it first, or choose another MODEL_DIR.')

  def _live(self):
    """Gives signs of life until the end, or until the lock is another's."""
    while not self._ended.wait(self._beat):
      holder = _read(self._path)
      if holder is None and not self._path.exists():
        self._lost = 'is gone, and perhaps the folder with it'
      elif holder is not None and holder.get('token') != self._own['token']:
        self._lost = f'was taken over by process {holder.get("pid")} on host {holder.get("host")}'
      if self._lost is not None:
        _log.error('%s %s.', self._path, self._lost)
        return
      self._own['beat'] += 1
      try:
        write_atomically(self._path, lambda file: file.write(json.dumps(self._own).encode()))
      except UserError as error:  # a full disk, say: the run's own writes will tell
        _log.warning('No sign of life could be given: %s', error)


def _read(path: pathlib.Path) -> dict | None:
  """What a lock file says; None where there is none, or not a whole one."""
  try:
    holder = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError):
    return None
  return holder if isinstance(holder, dict) and 'pid' in holder else None


def _machine() -> str | None:
  """Names what a process id belongs to: this boot of this machine, this container."""
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    return f'{boot} {os.readlink("/proc/self/ns/pid")}'
  except OSError:  # not Linux: the lock is watched
    return None


def _process_start(pid: int) -> str | None:
  """When a living process began, in clock ticks since boot: its id may be used again later."""
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return None
  state, *fields = stat.rpartition(')')[2].split()
  return None if state in 'ZX' else fields[18]  # Z, X: dead, and nobody has asked how it ended


def _is_here(holder: dict) -> bool:
  return holder.get('machine') is not None and holder['machine'] == _machine()
