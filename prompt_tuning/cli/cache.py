"""`prompt-tuning cache`: tokenises splits of a task ahead of time, for `train` to find.

Takes the command line of `train`, or as much of it as says what the tokens depend on: task,
lengths, vocabulary, and where caches are kept.
"""

import contextlib
import functools
import logging
import pathlib
import time

import rich.console

from prompt_tuning.cli import config as config_lib
from prompt_tuning.cli import data as data_lib
from prompt_tuning.cli import model as model_lib
from prompt_tuning.cli import process
from prompt_tuning.cli.data import DataConfig
from prompt_tuning.data import cache as cache_lib
from prompt_tuning.data import cache_processes, cache_shards
from prompt_tuning.errors import UserError

log = logging.getLogger(__name__)

RUN_FILE = 'runs/data.gin'
_LOGGED_S = 30  # between two lines about the shards so far, where there is no terminal


def main(flags) -> None:
  """Runs the verb."""
  process.start()
  parse(flags)
  if flags.verify:
    verify(_folder(config_lib.macro('CACHE_DIR')))
    return
  data = config_lib.build(DataConfig)
  folder = _folder(data.cache_dir)
  console = rich.console.Console(soft_wrap=True, highlight=False)
  for task, *both in data_lib.splits_in_use(data).values():
    used = dict.fromkeys(filter(None, both))
    splits = flags.split or [split for split in used if split in task.splits] or used
    vocabulary = find_vocabulary(task)
    if vocabulary is None:
      raise UserError('The tokens depend on the vocabulary, and none is known: give '
                      '--gin.VOCABULARY=... (a SentencePiece file or \'bytes\') or '
                      '--gin.INITIAL_CHECKPOINT_PATH=... of the model.')
    for split in splits:
      data_lib.check_split(task, split)
      if flags.dry_run:
        _print_plan(console, task, split, vocabulary, data, folder)
      else:
        _write(console, flags, task, split, vocabulary, data, folder)


def parse(flags):
  """Parses the gin files on top of what the data verbs start from."""
  config_lib.parse([RUN_FILE, *flags.gin_file], flags.overrides, flags.gin_search_paths)


def find_vocabulary(task):
  """The vocabulary of the model that is named, else the task's own, else None."""
  return model_lib.vocabulary(config_lib.build(model_lib.ModelConfig)) or task.vocabulary


def verify(folder: pathlib.Path):
  """Reads all caches of a folder through and compares their checksums.

  Raises:
    UserError: no caches there, or a damaged one.
  """
  paths = sorted(path.parent for path in folder.glob(f'[!.]*/{cache_lib.INFO}'))
  if not paths:
    raise UserError(f'CACHE_DIR={folder} holds no caches. Give the folder that `cache` wrote to.')
  for path in paths:
    cache = cache_lib.load(path, checksums=True)
    print(f'{path}: {len(cache)} examples, as they were written')


def _folder(cache_dir: str | None) -> pathlib.Path:
  if cache_dir is not None:
    return pathlib.Path(cache_dir)
  model_dir = config_lib.macro('MODEL_DIR')
  if model_dir is None:
    raise UserError('Where to? Give --gin.CACHE_DIR=..., a folder for caches, and give it to '
                    '`train` too; or the --gin.MODEL_DIR of the run that is to find them.')
  return pathlib.Path(model_dir) / 'cache'


def _print_plan(console, task, split, vocabulary, data, folder):
  """What would be written; reads the task's files."""
  path = cache_lib.locate(task, split, vocabulary, data.feature_lengths, folder)
  there = (path / cache_lib.INFO).exists() and data.use_cached_tasks
  console.print(f'Dry run: {path} {"is there already" if there else "would be written"}.')


def _write(console, flags, task, split, vocabulary, data, folder):
  """Writes one cache, unless it is there, and says how large it is."""
  start = time.monotonic()
  with _progress(f'{task.name} {split}') as on_shards:
    cache = cache_lib.build(
        task, split, vocabulary, data.feature_lengths, folder, rebuild=not data.use_cached_tasks,
        write=_writer(flags, on_shards))
  size = sum(entry['bytes'] for entry in cache.info['files'].values())
  console.print(f'{cache.path}: {len(cache):,} examples, {len(cache.info["shards"])} shards, '
                f'{size / 1e6:,.1f} MB, {time.monotonic() - start:.1f} s')


def _writer(flags, on_shards):
  """The function that writes all shards of a job, as the flags ask for it."""
  if flags.num_workers < 1:
    raise UserError(f'--num_workers is {flags.num_workers}; give 1 or more.')
  module = config_lib.macro('MIXTURE_OR_TASK_MODULE')
  modules = (module,) if module else ()
  if flags.pipeline_options is not None:
    return functools.partial(cache_processes.write_on_beam, parts=flags.num_workers,
                             options=flags.pipeline_options, modules=modules)
  if flags.num_workers > 1:
    return functools.partial(cache_processes.write_in_processes, processes=flags.num_workers,
                             modules=modules, on_shards=on_shards)
  return lambda job: cache_shards.write_part(
      job, on_shard=lambda _: on_shards(cache_shards.written(job.folder)))


@contextlib.contextmanager
def _progress(title: str):
  """Gives a function of the number of shards: a line that changes, or now and then a log line."""
  console = rich.console.Console(stderr=True)
  logged = time.monotonic()

  def on_shards(count):
    nonlocal logged
    text = f'{title}: {count} shards written'
    status.update(text)
    if not console.is_terminal and time.monotonic() - logged > _LOGGED_S:
      log.info('%s', text)
      logged = time.monotonic()

  with console.status(f'{title}: reading') as status:
    yield on_shards
