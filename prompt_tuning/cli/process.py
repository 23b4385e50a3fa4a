"""Set-up of the process: its partners, log lines, compiled programs that the next start finds."""

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
  """Joins other processes, prepares logging and the compilation cache; harmless when called again.

  The first of several processes alone writes to stdout; the others log warnings only.

  Args:
    flags: of the command line, with coordinator_address, num_processes and process_id; None: of a
      verb that one process does.

  Raises:
    UserError: see processes.start.
  """
  if flags is not None:
    processes.start(flags.coordinator_address, flags.num_processes, flags.process_id)
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
