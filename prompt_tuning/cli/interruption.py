"""Being asked to stop: SIGTERM and SIGINT, and the preemption notice of a cluster.

Before the first step there is nothing to save, and a signal ends the process, even one that loads
or compiles. Later the first signal is remembered; the loop asks between steps, saves and ends. Both
ways the process leaves with EXIT_CODE. A second SIGINT ends it at once, by the signal itself. Of
several processes any one may be asked: all stop before the same step.
"""

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils

from prompt_tuning import processes

# EX_TEMPFAIL of sysexits.h, "try again later": what schedulers and service managers are told to
# start anew. 143 and 130 would say that the signal killed the run and nothing was saved.
EXIT_CODE = 75

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption(contextlib.AbstractContextManager):
  """Listens for requests to stop while the block runs.

  Example:
    with Interruption() as interruption:
      stop = interruption.agreed()
      loop.train(..., should_stop=lambda step: stop())

  Attributes:
    begun: whether there is something to save; to be set after the first step.
  """

  def __init__(self):
    self.begun = False
    self._requested = False
    self._before = {}
    self._calls = itertools.count(1)

  def __enter__(self):
    # Handlers can be set from the main thread alone; elsewhere the program around decides.
    if threading.current_thread() is threading.main_thread():
      self._before = {number: signal.signal(number, self._hear) for number in _SIGNALS}
      # A handler of Python's waits until a compilation is over; the number comes here at once.
      numbers, self._wakeup = os.pipe()
      os.set_blocking(self._wakeup, False)
      self._wakeup_before = signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
      threading.Thread(target=self._watch, args=[numbers], daemon=True).start()
    return self

  def __exit__(self, *unused):
    for number, handler in self._before.items():
      signal.signal(number, handler if handler is not None else signal.SIG_DFL)
    if self._before:
      signal.set_wakeup_fd(self._wakeup_before)
      os.close(self._wakeup)

  @property
  def requested(self) -> bool:
    """Whether this process was asked to stop."""
    if jax.distributed.is_initialized() and not self._requested:
      # The service of jax.distributed answers True at one call alone, the next after its largest
      # count so far: training steps would not do, which may begin above that.
      self._requested = multihost_utils.reached_preemption_sync_point(next(self._calls))
    return self._requested

  def agreed(self) -> Callable[[], bool]:
    """() -> whether to stop now, for every process to ask equally often; all get one answer."""
    if jax.process_count() == 1:
      return lambda: self.requested
    return processes.Agreement(lambda: self.requested)

  def _watch(self, numbers: int):
    """Reads the numbers of signals from a pipe, until it is closed."""
    while number := os.read(numbers, 1):
      if number[0] in _SIGNALS and not self.begun:
        os.write(2, f'\n{signal.Signals(number[0]).name}: no step is done yet, so nothing is '
                 'saved.\n'.encode())
        os._exit(EXIT_CODE)
    os.close(numbers)

  def _hear(self, number, frame):
    self._requested = True
    if not self.begun:
      return
    # The system's own reaction from now on: it needs no interpreter, so it works in the middle of
    # a long computation too.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Not through logging, whose locks the interrupted code may hold.
    os.write(2, f'\n{signal.Signals(number).name}: finishing the step and saving; Ctrl-C (once '
             'more) stops at once.\n'.encode())
