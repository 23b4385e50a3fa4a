"""The files of a cache: shards of so many rows of the source each, whoever writes them.

Work is divided by shards: part p of n writes the shards k with k % n == p. A source is read from
its beginning, so each part reads all rows and preprocesses only its own. The bytes of a shard
depend on its rows alone; so a cache is the same whatever the number of parts and wherever they run.
"""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.data.task import Task
from prompt_tuning.data.tokenizing import FEATURES, ended, tokenize
from prompt_tuning.errors import UserError
from prompt_tuning.vocabulary import EOS_ID, Vocabulary

KINDS = ('tokens', 'texts')
LENGTHS = 'lengths.npy'
_WRITER_OPTIONS = 'group_size:1'  # one record a group: random access reads nothing else
_DONE = 'shard-{:05d}.json'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """What has to be written, for this process or another.

  Attributes:
    task: the task.
    split: name of the split.
    vocabulary: of the backbone.
    lengths: TASK_FEATURE_LENGTHS.
    folder: where the files go; every part sees the same one.
    rows: of the source in a shard; the number of parts never changes it.
  """
  task: Task
  split: str
  vocabulary: Vocabulary
  lengths: Mapping[str, int | None]
  folder: str
  rows: int = 8192

  def portable(self) -> 'Job':
    """The same work without what only an evaluation needs, and other processes may not import."""
    task = dataclasses.replace(self.task, postprocess_fn=str, metric_fns=())
    return dataclasses.replace(self, task=task)


def file_name(kind: str, shard: int) -> str:
  """Name of the file of a shard with its `tokens` or its `texts`."""
  return f'{kind}-{shard:05d}.array_record'


def write_part(job: Job, part: int = 0, parts: int = 1,
               on_shard: Callable[[int], None] = lambda examples: None):
  """Writes every `parts`-th shard, from number `part` on.

  Args:
    job: what has to be written.
    part: which part.
    parts: number of parts.
    on_shard: called with the number of examples of each shard that was written.

  Raises:
    UserError: a row that cannot be used, a folder that cannot be written.
  """
  rows = iter(job.task.source.read(job.split))
  for shard in itertools.count():
    first = next(rows, None)
    if first is None:
      return
    ours = itertools.chain([first], itertools.islice(rows, job.rows - 1))
    if shard % parts == part:
      on_shard(_write_shard(job, shard, ours))
    collections.deque(ours, maxlen=0)  # rows of another part are read past


def written(folder: str | os.PathLike) -> int:
  """How many shards are there so far."""
  return sum(1 for _ in pathlib.Path(folder).glob(_DONE.replace('{:05d}', '*')))


def _write_shard(job: Job, shard: int, rows: Iterable) -> int:
  """Writes the files of one shard, each whole or not at all; returns the number of examples."""
  folder = pathlib.Path(job.folder)
  # A runner may do the same shard twice, even at the same time: the last rename wins, with the
  # same bytes.
  with writing(folder.parent):
    building = pathlib.Path(tempfile.mkdtemp(prefix='.shard-', dir=folder))
  try:
    found = _write_records(job, shard, rows, building)
    done = _DONE.format(shard)
    with writing(folder.parent):
      found['files'] = {path.name: checksum(path) for path in sorted(building.iterdir())}
      (building / done).write_text(json.dumps(found))
      for name in (*found['files'], done):
        os.replace(building / name, folder / name)
  finally:
    shutil.rmtree(building, ignore_errors=True)
  return len(found['lengths'])


def _write_records(job: Job, shard: int, rows: Iterable, folder: pathlib.Path) -> dict[str, Any]:
  """Writes tokens and texts; returns the lengths, what was cut and what was empty."""
  from array_record.python.array_record_module import ArrayRecordWriter
  kept, untrimmed, empty = [], [], {}
  cache_dir = pathlib.Path(job.folder).parent
  with writing(cache_dir):
    writers = [ArrayRecordWriter(str(folder / file_name(kind, shard)), _WRITER_OPTIONS)
               for kind in KINDS]
  try:
    for example_id, example, *pair in tokenize(
        job.task, job.split, job.vocabulary, job.lengths, rows):
      whole = ended(example, pair)
      inputs, targets = (
          trim(ids, job.lengths.get(f)) for ids, f in zip(whole, FEATURES, strict=True))
      kept.append((len(inputs), len(targets)))
      untrimmed.append(tuple(map(len, whole)))
      for feature, ids in zip(FEATURES, pair, strict=True):
        if not len(ids):
          count, first = empty.get(feature, (0, job.task.source.where(job.split, example_id)))
          empty[feature] = count + 1, first
      head = np.asarray([len(inputs)], np.int32)
      records = (np.concatenate([head, inputs, targets]).tobytes(),
                 _text_record(example_id, example, pair, job.vocabulary))
      with writing(cache_dir):
        for writer, record in zip(writers, records, strict=True):
          writer.write(record)
  finally:
    with writing(cache_dir):
      for writer in writers:
        writer.close()
  return {'lengths': kept, 'truncated': _truncation(kept, untrimmed), 'empty': empty}


@contextlib.contextmanager
def writing(folder: str | os.PathLike):
  """What the system says where it cannot write, as a UserError; ArrayRecord's own error has it."""
  try:
    yield
  except (OSError, RuntimeError) as error:
    raise UserError(f'Cannot write to {folder}: {error}. Give CACHE_DIR a folder that can be '
                    'written and has room.') from None


def merge(folder: str | os.PathLike) -> tuple[np.ndarray, dict[str, Any]]:
  """Joins what the parts have left beside their shards.

  Args:
    folder: of a job whose parts are all done.

  Returns:
    Lengths [N, 2] int32, and for info.json: `shards` (examples of each), `files` (size and
    checksum of each), `truncated`, `empty`.
  """
  folder = pathlib.Path(folder)
  paths = [folder / _DONE.format(shard) for shard in range(written(folder))]
  shards = [json.loads(path.read_text()) for path in paths]
  lengths = np.concatenate(
      [np.zeros((0, 2), np.int32),
       *(np.asarray(shard['lengths'], np.int32).reshape(-1, 2) for shard in shards)])
  np.save(folder / LENGTHS, lengths)
  files = {name: entry for shard in shards for name, entry in shard['files'].items()}
  files[LENGTHS] = checksum(folder / LENGTHS)
  for path in paths:
    path.unlink()
  return lengths, {
      'shards': [len(shard['lengths']) for shard in shards], 'files': files,
      'truncated': {f: _joined([shard['truncated'][f] for shard in shards]) for f in FEATURES},
      'empty': _joined_empty([shard['empty'] for shard in shards])}


def checksum(path: str | os.PathLike) -> dict[str, Any]:
  """Size and sha256 of a file, as info.json holds them."""
  with open(path, 'rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  return {'bytes': os.stat(path).st_size, 'sha256': digest}


def _joined(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
  return {**{name: sum(count[name] for count in counts) for name in ('examples', 'tokens')},
          'longest': max((count['longest'] for count in counts), default=0)}


def _joined_empty(shards: Sequence[Mapping[str, Sequence]]) -> dict[str, list]:
  empty: dict[str, list] = {}
  for shard in shards:
    for feature, (count, first) in shard.items():
      before = empty.setdefault(feature, [0, first])
      before[0] += count
  return empty


def trim(ids: np.ndarray, length: int | None) -> np.ndarray:
  """Cuts to a length; an end of sequence stays the last token, as in T5."""
  if length is None or len(ids) <= length:
    return ids
  return np.append(ids[:length - 1], ids[-1]) if ids[-1] == EOS_ID else ids[:length]


def _text_record(example_id: str, example: Mapping[str, Any], pair: Sequence[np.ndarray],
                 vocabulary: Vocabulary) -> bytes:
  record = {'id': example_id}
  raw = dict(example)
  for feature, ids in zip(FEATURES, pair, strict=True):
    text = raw.pop(feature, None)
    if not isinstance(text, str):
      text = raw.pop(f'{feature}_pretokenized', None) or vocabulary.decode(ids)
    record[f'{feature}_pretokenized'] = text
  record['example'] = raw
  return json.dumps(record, ensure_ascii=False, default=_jsonable).encode('utf-8')


def _jsonable(value: Any) -> Any:
  if isinstance(value, bytes):
    return value.decode('utf-8', errors='replace')
  if isinstance(value, np.ndarray | np.generic):
    return value.tolist()
  return repr(value)


def _truncation(kept: Sequence, untrimmed: Sequence) -> dict[str, Any]:
  kept, untrimmed = (np.asarray(rows, np.int64).reshape(-1, 2) for rows in (kept, untrimmed))
  counts = {}
  for i, feature in enumerate(FEATURES):
    cut = untrimmed[:, i] - kept[:, i]
    counts[feature] = {
        'examples': int((cut > 0).sum()), 'tokens': int(cut.clip(0).sum()),
        'longest': int(untrimmed[:, i].max(initial=0))}
  return counts
