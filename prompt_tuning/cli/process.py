"""Set-up of the process: partners, memory, log lines, compiled programs for the next start."""

import ctypes
import logging
import os
import sys

import jax

from prompt_tuning import processes
from prompt_tuning.cli import data


class _Stderr(logging.StreamHandler):
  """Writes to whatever sys.stderr is at the moment: a progress bar replaces it while it runs."""

  def __init__(self, form):
    logging.Handler.__init__(self)
    self.setFormatter(logging.Formatter(form, '%H:%M:%S'))

  @property
  def stream(self):
    return sys.stderr


def start(flags=None):
  """Joins other processes, prepares memory, logging and the compilation cache.

  Harmless when called again.

  The first of several processes alone writes to stdout; the others log warnings only.

  Args:
    flags: of the command line, with coordinator_address, num_processes and process_id; None: of a
      verb that one process does.

  Raises:
    UserError: see processes.start.
  """
  if flags is not None:
    processes.start(flags.coordinator_address, flags.num_processes, flags.process_id)
  keep_memory()
  # Asking JAX starts its devices, which a dry run of another MESH has yet to choose.
  first = flags is None or processes.is_first()
  logger = logging.getLogger('prompt_tuning')
  if not logger.handlers:
    name = '' if first else f'process {jax.process_index()}: '
    logger.addHandler(_Stderr(f'%(asctime)s {name}%(message)s'))
    logger.setLevel(logging.INFO if first else logging.WARNING)
    logger.propagate = False
  if processes.are_joined():
    logger.info('%d processes, %d devices. Should one of them die, all end; the same commands go '
                'on from the last checkpoint.', jax.process_count(), jax.device_count())
  if not first:
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115 (until the process ends)
  # orbax narrates every save, and prints the traceback of every error that it also raises.
  logging.getLogger('absl').setLevel(logging.CRITICAL)
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    jax.config.update('jax_compilation_cache_dir', str(data.user_cache() / 'compiled'))
    # A start has some thirty small programs, which JAX would compile anew each time.
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)


# glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_memory():
  """Keeps freed memory for the next step in place of handing it back to the kernel; before devices.

  XLA on a CPU allocates the temporaries of each step anew, as one block. Mapped and zeroed page by
  page each time, it costs a tenth of a small step and up to two fifths of a larger one. The heap
  is kept of the main thread alone, so the step has to run in it. Nothing happens where malloc is
  not glibc's.
  """
  jax.config.update('jax_cpu_enable_async_dispatch', False)
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt:
    mallopt(M_MMAP_MAX, 0)  # Large blocks too come from the heap,
    mallopt(M_TRIM_THRESHOLD, -1)  # which never shrinks.
