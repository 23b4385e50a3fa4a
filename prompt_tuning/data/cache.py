"""Examples tokenised once, in ArrayRecord files that are read by index.

A cache is a folder: shards `tokens-00000.array_record` (one record an example: the number of input
tokens, the input ids and the target ids, int32) and `texts-00000.array_record` (the same examples'
ids, texts and raw fields as JSON, for evaluation), `lengths.npy` [N, 2] and `info.json`, which
holds the size and the sha256 of each. The folder's name holds a hash of all that decides its
content. It is written under a temporary name and renamed when complete.
"""

import dataclasses
import functools
import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.data import cache_shards
from prompt_tuning.data.cache_key import folder_name, key_parts
from prompt_tuning.data.cache_shards import Job
from prompt_tuning.data.task import Task
from prompt_tuning.data.tokenizing import FEATURES, check_labels
from prompt_tuning.errors import UserError
from prompt_tuning.vocabulary import Vocabulary

log = logging.getLogger(__name__)

INFO = 'info.json'
# What is read through in about a second to compare checksums at each opening; of a larger cache the
# sizes are compared, and each record carries a checksum of its own.
_CHECKED_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class Cache:
  """A built cache; opened files are found again after pickling.

  Attributes:
    path: its folder.
    info: what info.json holds: key parts, number of examples, how many were truncated or
      empty, shards, files.
    lengths: [N, 2] int32, number of input and of target tokens, end of sequence included.
  """
  path: str
  info: Mapping[str, Any]
  lengths: np.ndarray

  @property
  def name(self) -> str:
    """Another one for every content."""
    return os.path.basename(self.path)

  def __len__(self) -> int:
    return len(self.lengths)

  def tokens(self, rows: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(input ids, target ids) of the given rows, both int32 with end of sequence."""
    records = self._read('tokens', rows)
    pairs = []
    for record in records:
      ids = np.frombuffer(record, np.int32)
      pairs.append((ids[1:1 + ids[0]], ids[1 + ids[0]:]))
    return pairs

  def records(self, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Dicts with `id`, `inputs_pretokenized`, `targets_pretokenized` and `example`."""
    return [json.loads(record) for record in self._read('texts', rows)]

  def _read(self, kind: str, rows: Sequence[int]) -> list[bytes]:
    try:
      return self._sources[kind].__getitems__([int(r) for r in rows])
    except RuntimeError as error:
      check_files(self.path, self.info)  # names the file
      raise UserError(f'{self.path} cannot be read: {error}. {_REMEDY}') from None

  @functools.cached_property
  def _sources(self) -> dict[str, Any]:
    import grain
    return {kind: grain.sources.ArrayRecordDataSource([
        f'{os.path.join(self.path, cache_shards.file_name(kind, shard))}[0:{examples}]'
        for shard, examples in enumerate(self.info['shards'])]) for kind in cache_shards.KINDS}

  def __getstate__(self):
    return {'path': self.path, 'info': self.info, 'lengths': self.lengths}

  def __setstate__(self, state):
    self.__dict__.update(state)


_REMEDY = ('Copy it again, or let it be written again: --gin.USE_CACHED_TASKS=False, or remove the '
           'folder.')


def build(
    task: Task,
    split: str,
    vocabulary: Vocabulary,
    lengths: Mapping[str, int | None],
    cache_dir: str | os.PathLike,
    rebuild: bool = False,
    write: Callable[[Job], None] = cache_shards.write_part,
) -> Cache:
  """Opens the cache of one split of a task, tokenising it where there is none that fits.

  Args:
    task: the task.
    split: name of the split.
    vocabulary: of the backbone; a task's own one has to have the same hash.
    lengths: TASK_FEATURE_LENGTHS, most tokens of `inputs` and `targets`, end of sequence included,
      without the prompt; None keeps everything.
    cache_dir: folder of all caches.
    rebuild: tokenise again even where a cache fits (USE_CACHED_TASKS False).
    write: writes all shards of a job, in this process or in others.

  Returns:
    The cache. What was cut to fit `lengths` is counted in `info['truncated']` and logged.

  Raises:
    UserError: an empty split, a label without tokens, lengths below 1, another vocabulary than the
      task's own, a broken source, or a damaged cache.
  """
  task, path, parts = _find(task, split, vocabulary, lengths, cache_dir)
  if rebuild and not parts:
    raise UserError(f'{path} cannot be written again: the source of task {task.name!r} is not at '
                    'hand (tasks/cached.gin). Leave USE_CACHED_TASKS out.')
  if rebuild or not (path / INFO).exists():
    job = Job(task=task, split=split, vocabulary=vocabulary, lengths=lengths, folder='')
    _write(job, path, parts, write)
  cache = load(path)
  _report(cache, task.name, split)
  return cache


def locate(
    task: Task, split: str, vocabulary: Vocabulary, lengths: Mapping[str, int | None],
    cache_dir: str | os.PathLike) -> pathlib.Path:
  """The folder of the cache that `build` opens or writes.

  Raises:
    UserError: what can be known to be wrong without reading all examples, see `build`.
  """
  return _find(task, split, vocabulary, lengths, cache_dir)[1]


def _find(task, split, vocabulary, lengths, cache_dir):
  """(the task as it is read, folder of its cache, key parts)."""
  _check_lengths(lengths)
  _check_vocabulary(task, vocabulary)
  check_labels(task, vocabulary, lengths.get('targets'))
  task.check_split(split)
  if hasattr(task.source, 'cache_of'):  # known by its caches alone
    return task, task.source.cache_of(split, vocabulary, lengths), {}
  if hasattr(task.source, 'at_lengths'):
    task = _with_lengths_if_needed(task, split, lengths)
  parts = key_parts(task, split, vocabulary, lengths)
  return task, pathlib.Path(cache_dir) / folder_name(task.name, split, parts), parts


def load(path: str | os.PathLike, checksums: bool | None = None) -> Cache:
  """Opens a cache by its folder.

  Args:
    path: the folder.
    checksums: read all files through and compare their checksums; False compares sizes; None
      decides by the size of the cache.

  Raises:
    UserError: no cache there, or a damaged one; names the file.
  """
  path = pathlib.Path(path)
  info = read_info(path)
  total = sum(entry['bytes'] for entry in info['files'].values())
  check_files(path, info, total <= _CHECKED_BYTES if checksums is None else checksums)
  lengths = np.load(path / cache_shards.LENGTHS, allow_pickle=False)
  return Cache(os.fspath(path), info, lengths)


def check_files(path: str | os.PathLike, info: Mapping[str, Any], checksums: bool = True):
  """Compares the files of a cache with what was written.

  Args:
    path: the cache's folder.
    info: its info.json.
    checksums: read all files through; else their sizes are compared.

  Raises:
    UserError: naming the first file that is missing, cut short or changed.
  """
  for name, entry in info['files'].items():
    file = pathlib.Path(path) / name
    if not file.is_file():
      raise UserError(f'{file} is missing: the cache is damaged. {_REMEDY}')
    size = file.stat().st_size
    if size != entry['bytes']:
      raise UserError(f'{file} has {size:,} bytes, {entry["bytes"]:,} were written: the cache is '
                      f'damaged. {_REMEDY}')
    if checksums and cache_shards.checksum(file) != entry:
      raise UserError(f'{file} is not what was written (its sha256 differs): the cache is damaged. '
                      f'{_REMEDY}')


def read_info(path: pathlib.Path) -> dict[str, Any]:
  """What info.json of a cache holds.

  Raises:
    UserError: it is not there, or damaged.
  """
  try:
    info = json.loads((path / INFO).read_text(encoding='utf-8'))
    return {**info, 'files': dict(info['files']), 'shards': list(info['shards'])}
  except (ValueError, KeyError, TypeError):
    raise UserError(f'{path / INFO} is not what was written: the cache is damaged. '
                    f'{_REMEDY}') from None
  except OSError as error:
    raise UserError(f'{path} holds no cache: {INFO}: {error.strerror}. Give the folder of a '
                    'cache.') from None


def _write(job: Job, path: pathlib.Path, parts: Mapping[str, Any], write: Callable[[Job], None]):
  """Tokenises into a temporary folder and renames it; a failure leaves nothing behind."""
  with cache_shards.writing(path.parent):
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp(prefix='.building-', dir=path.parent))
  try:
    write(dataclasses.replace(job, folder=os.fspath(folder)))
    with cache_shards.writing(path.parent):
      lengths, found = cache_shards.merge(folder)
    if not len(lengths):
      raise UserError(f'Split {job.split!r} of task {job.task.name!r} gives no examples; nothing '
                      'can be done with it.')
    info = {'task': job.task.name, 'split': job.split, 'examples': len(lengths), **found,
            'key': parts}
    with cache_shards.writing(path.parent):
      (folder / INFO).write_text(json.dumps(info, indent=2, sort_keys=True), encoding='utf-8')
      _publish(folder, path)
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: pathlib.Path, path: pathlib.Path):
  """Puts the finished folder in its place; another process may have done the same before."""
  folder.chmod(0o755)  # mkdtemp makes it private
  old = None
  if path.exists():
    old = pathlib.Path(tempfile.mkdtemp(prefix='.old-', dir=path.parent))
    os.replace(path, old / 'cache')
  try:
    os.replace(folder, path)
  except OSError:
    if not (path / INFO).exists():
      raise
  finally:
    if old is not None:
      shutil.rmtree(old, ignore_errors=True)


def _report(cache: Cache, name: str, split: str):
  log.info('%s %s: %d examples, inputs up to %d tokens, targets up to %d (%s)', name, split,
           len(cache), *cache.lengths.max(axis=0), cache.path)
  for feature, cut in cache.info['truncated'].items():
    if cut['examples']:
      log.warning(
          '%s %s: %d of %d %s were cut to %d tokens (%d tokens lost; the longest had %d). Raise '
          'TASK_FEATURE_LENGTHS to keep them.', name, split, cut['examples'], len(cache), feature,
          cache.info['key']['lengths'][feature], cut['tokens'], cut['longest'])
  for feature, (count, first) in cache.info.get('empty', {}).items():
    log.warning('%s %s: %d of %d %s give no tokens (the first: %s). Mend or leave out these rows.',
                name, split, count, len(cache), feature, first)


def _with_lengths_if_needed(
    task: Task, split: str, lengths: Mapping[str, int | None]) -> Task:
  """Gives TASK_FEATURE_LENGTHS to a source whose preprocessors do not work without them."""
  try:
    next(iter(task.source.read(split)), None)
    return task
  except UserError:
    raise
  except (TypeError, KeyError, ValueError) as error:
    log.warning(
        'Task %s asks for sequence lengths (%s): it cuts its examples itself, and what it cuts is '
        'not counted.', task.name, error)
    return dataclasses.replace(task, source=task.source.at_lengths(lengths))


def _check_lengths(lengths: Mapping[str, int | None]):
  unknown = set(lengths) - set(FEATURES)
  if unknown:
    raise UserError(f'TASK_FEATURE_LENGTHS names {", ".join(sorted(unknown))}; it has the keys '
                    f'{" and ".join(FEATURES)}.')
  for feature, length in lengths.items():
    if length is not None and length < 1:
      raise UserError(f'TASK_FEATURE_LENGTHS has {feature}={length}; it has to be 1 or more.')


def _check_vocabulary(task: Task, vocabulary: Vocabulary):
  if task.vocabulary is not None and task.vocabulary.hash != vocabulary.hash:
    raise UserError(
        f'Task {task.name!r} brings its own vocabulary {task.vocabulary!r}, which is not the one '
        f'of the backbone, {vocabulary!r}.')
