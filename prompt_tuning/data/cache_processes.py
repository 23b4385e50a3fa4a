"""Writes the shards of a cache in several processes: of this machine, or of Apache Beam."""

import functools
import importlib
import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.reduction
import pathlib
import shlex
import sys
from collections.abc import Callable, Sequence

from prompt_tuning.data import cache_shards
from prompt_tuning.data.cache_shards import Job
from prompt_tuning.errors import UserError

_POLL_S = 0.5  # between two looks at how many shards are there
_FAILED = 'failed.txt'  # what a worker of Beam could not use
_KILLED = ('A process that wrote the cache has ended before its time: by the error above, or for '
           'want of memory, where fewer --num_workers help.')


def write_in_processes(
    job: Job, *, processes: int, modules: Sequence[str] = (),
    on_shards: Callable[[int], None] = lambda written: None):
  """Writes all shards in processes of this machine.

  They are spawned: a forked copy of a process that runs JAX may hang.

  Args:
    job: what has to be written.
    processes: how many.
    modules: imported there first, where their import makes the task known to SeqIO.
    on_shards: called now and then with the number of shards that are there.

  Raises:
    UserError: a task that cannot be sent to other processes, see also cache_shards.write_part.
  """
  job = _portable(job)
  context = multiprocessing.get_context('spawn')
  errors = context.SimpleQueue()
  workers = [context.Process(
      target=_write_in_process, args=(job, part, processes, modules, errors), daemon=True)
             for part in range(processes)]
  try:
    for worker in workers:
      worker.start()
    while any(worker.is_alive() for worker in workers):
      multiprocessing.connection.wait([w.sentinel for w in workers if w.is_alive()], _POLL_S)
      on_shards(cache_shards.written(job.folder))
      if any(worker.exitcode for worker in workers):
        break  # the others need not go on
    if any(worker.exitcode for worker in workers):
      raise UserError(_KILLED if errors.empty() else errors.get())
  finally:
    for worker in workers:
      if worker.pid is not None:
        worker.terminate()
        worker.join()  # what it writes to is removed next


def write_on_beam(job: Job, *, parts: int, options: str, modules: Sequence[str] = ()):
  """Writes all shards in a pipeline of Apache Beam.

  All its workers have to see the same CACHE_DIR and the same files of the task under the same
  paths, and to have this package installed.

  Args:
    job: what has to be written.
    parts: how many pieces of work there are.
    options: of the pipeline, as on a command line: '--runner=DirectRunner --direct_num_workers=4'.
    modules: as of `write_in_processes`.

  Raises:
    UserError: apache_beam is not installed, see also `write_in_processes`.
  """
  try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise UserError(f'--pipeline_options asks for Apache Beam, which cannot be imported: {error}. '
                    "Install it with pip install 'prompt-tuning[beam]', or use --num_workers in "
                    'its place.') from None
  job = _portable(job)
  with beam.Pipeline(options=PipelineOptions(shlex.split(options))) as pipeline:
    _ = (pipeline | beam.Create(range(parts)) | beam.Reshuffle()
         | beam.Map(functools.partial(_write_for_beam, job, parts, modules)))
  failed = pathlib.Path(job.folder) / _FAILED
  if failed.exists():
    raise UserError(failed.read_text())


def _portable(job: Job) -> Job:
  """The job, once it is known that another process can be told of it."""
  job = job.portable()
  try:
    multiprocessing.reduction.ForkingPickler.dumps(job)
  except Exception as error:  # which one depends on what it is
    raise UserError(
        f'Task {job.task.name!r} cannot be sent to other processes: {error}. Its functions have to '
        'stand at the top level of a module that can be imported; or write its cache in one '
        'process.') from None
  return job


def _write_in_process(job: Job, part: int, parts: int, modules: Sequence[str], errors):
  """One part; what went wrong goes to the parent."""
  if part:  # all parts see the same, and the first says it
    logging.getLogger('prompt_tuning').setLevel(logging.ERROR)
  for module in modules:
    importlib.import_module(module)
  try:
    cache_shards.write_part(job, part, parts)
  except UserError as error:
    errors.put(str(error))
    sys.exit(1)


def _write_for_beam(job: Job, parts: int, modules: Sequence[str], part: int):
  """One part; a mistake of the user's is no reason to try again, as a runner does."""
  for module in modules:
    importlib.import_module(module)
  try:
    cache_shards.write_part(job, part, parts)
  except UserError as error:
    (pathlib.Path(job.folder) / _FAILED).write_text(str(error))
