"""Set-up of the process: log lines, and compiled programs that the next start finds again."""

import logging
import os
import sys

import jax

from prompt_tuning.cli import data


class _Stderr(logging.StreamHandler):
  """Writes to whatever sys.stderr is at the moment: a progress bar replaces it while it runs."""

  def __init__(self):
    logging.Handler.__init__(self)
    self.setFormatter(logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))

  @property
  def stream(self):
    return sys.stderr


def start():
  """Prepares logging and the compilation cache; harmless when called again."""
  logger = logging.getLogger('prompt_tuning')
  if not logger.handlers:
    logger.addHandler(_Stderr())
    logger.setLevel(logging.INFO)
    logger.propagate = False
  # orbax narrates every save, and prints the traceback of every error that it also raises.
  logging.getLogger('absl').setLevel(logging.CRITICAL)
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    jax.config.update('jax_compilation_cache_dir', str(data.user_cache() / 'compiled'))
