"""Being asked to stop: SIGTERM and SIGINT, and the preemption notice of a cluster.

The first signal is remembered; the loop asks between steps, saves and ends, and the process leaves
with EXIT_CODE. A second SIGINT ends the process at once, by the signal itself. Where
jax.distributed is set up, its own service hears SIGTERM (or the cluster's notice) and agrees with
all processes on the step to stop at, so nothing of ours stands in its way.
"""

import contextlib
import os
import signal
import threading

import jax

# EX_TEMPFAIL of sysexits.h, "try again later": what schedulers and service managers are told to
# start anew. 143 and 130 would say that the signal killed the run and nothing was saved.
EXIT_CODE = 75

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption(contextlib.AbstractContextManager):
  """Listens for requests to stop while the block runs.

  Example:
    with Interruption() as interruption:
      loop.train(..., should_stop=interruption.should_stop)
  """

  def __init__(self):
    self._requested = False
    self._before = {}

  def __enter__(self):
    # Handlers can be set from the main thread alone; elsewhere the program around decides.
    if not jax.distributed.is_initialized() and (
        threading.current_thread() is threading.main_thread()):
      self._before = {number: signal.signal(number, self._hear) for number in _SIGNALS}
    return self

  def __exit__(self, *unused):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  @property
  def requested(self) -> bool:
    """Whether a signal has come."""
    return self._requested

  def should_stop(self, step: int) -> bool:
    """Whether to stop before this step; over several processes all get the same answer.

    Args:
      step: asked at every step, by every process.
    """
    if jax.distributed.is_initialized():
      from jax.experimental import multihost_utils
      return multihost_utils.reached_preemption_sync_point(step)
    return self._requested

  def _hear(self, number, frame):
    self._requested = True
    # The system's own reaction from now on: it needs no interpreter, so it works in the middle of
    # a long computation too.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Not through logging, whose locks the interrupted code may hold.
    os.write(2, f'\n{signal.Signals(number).name}: finishing the step and saving; Ctrl-C (once '
             'more) stops at once.\n'.encode())
