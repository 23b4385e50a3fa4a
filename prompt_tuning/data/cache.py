"""Examples tokenised once, in ArrayRecord files that are read by index.

A cache is a folder: `tokens.array_record` (one record an example: the number of input tokens, the
input ids and the target ids, int32), `texts.array_record` (the same example's id, texts and raw
fields as JSON, for evaluation), `lengths.npy` [N, 2] and `info.json`. Its name holds a hash of all
that decides its content. It is written under a temporary name and renamed when complete.
"""

import array
import dataclasses
import functools
import hashlib
import inspect
import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.data.task import Task
from prompt_tuning.errors import UserError
from prompt_tuning.vocabulary import EOS_ID, Vocabulary

log = logging.getLogger(__name__)

_VERSION = 1  # of the file layout and of tokenisation; part of every key
_CHUNK = 2048  # examples tokenised in one call, at most
_CHUNK_CHARACTERS = 2**22  # and characters of them, at about which a call ends
_WRITER_OPTIONS = 'group_size:1'  # one record a group: random access reads nothing else
FEATURES = ('inputs', 'targets')


@dataclasses.dataclass(frozen=True)
class Cache:
  """A built cache; opened files are found again after pickling.

  Attributes:
    path: its folder.
    info: what info.json holds: key parts, number of examples, how many were truncated or
      empty.
    lengths: [N, 2] int32, number of input and of target tokens, end of sequence included.
  """
  path: str
  info: Mapping[str, Any]
  lengths: np.ndarray

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

  def _read(self, name: str, rows: Sequence[int]) -> list[bytes]:
    return self._sources[name].__getitems__([int(r) for r in rows])

  @functools.cached_property
  def _sources(self) -> dict[str, Any]:
    import grain
    return {name: grain.sources.ArrayRecordDataSource(
        os.path.join(self.path, f'{name}.array_record')) for name in ('tokens', 'texts')}

  def __getstate__(self):
    return {'path': self.path, 'info': self.info, 'lengths': self.lengths}

  def __setstate__(self, state):
    self.__dict__.update(state)


def build(
    task: Task,
    split: str,
    vocabulary: Vocabulary,
    lengths: Mapping[str, int | None],
    cache_dir: str | os.PathLike,
    rebuild: bool = False,
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

  Returns:
    The cache. What was cut to fit `lengths` is counted in `info['truncated']` and logged.

  Raises:
    UserError: an empty split, a label without tokens, lengths below 1, another vocabulary than the
      task's own, or a broken source.
  """
  _check_lengths(lengths)
  _check_vocabulary(task, vocabulary)
  check_labels(task, vocabulary, lengths.get('targets'))
  task.check_split(split)
  if hasattr(task.source, 'at_lengths'):
    task = _with_lengths_if_needed(task, split, lengths)
  parts = key_parts(task, split, vocabulary, lengths)
  key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
  path = pathlib.Path(cache_dir) / f'{_file_name(task.name)}-{split}-{key}'
  if rebuild or not (path / 'info.json').exists():
    _write(task, split, vocabulary, lengths, path, parts)
  cache = load(path)
  _report(cache, task.name, split)
  return cache


def load(path: str | os.PathLike) -> Cache:
  """Opens a cache by its folder."""
  path = pathlib.Path(path)
  info = json.loads((path / 'info.json').read_text())
  return Cache(os.fspath(path), info, np.load(path / 'lengths.npy', allow_pickle=False))


def key_parts(
    task: Task, split: str, vocabulary: Vocabulary, lengths: Mapping[str, int | None],
) -> dict[str, Any]:
  """Everything that decides the content of a cache."""
  index = {} if task.task_index is None else {'task_index': task.task_index}
  return {
      **index,
      'version': _VERSION,
      'split': split,
      'source': task.source.fingerprint(split),
      'preprocess': identity(task.preprocess),
      'objective': identity(task.objective),
      'vocabulary': vocabulary.content_hash,
      'lengths': {f: lengths.get(f) for f in FEATURES},
  }


def identity(value: Any) -> str:
  """A text that changes when what a preprocessor does changes.

  A dataclass is its type, source code and fields; a function its name, source code, defaults and
  the values it closes over. What these call is not seen: after a change there, build anew.
  """
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    fields = {f.name: identity(getattr(value, f.name)) for f in dataclasses.fields(value)}
    kind = type(value)
    return f'{kind.__module__}.{kind.__qualname__} {_code_hash(kind)} {fields}'
  if isinstance(value, functools.partial):
    return f'partial({identity(value.func)}, {identity(value.args)}, {identity(value.keywords)})'
  if inspect.isfunction(value):
    given = identity([value.__defaults__, [c.cell_contents for c in value.__closure__ or ()]])
    return f'{value.__module__}.{value.__qualname__} {_code_hash(value)} {given}'
  if isinstance(value, Mapping):
    return repr({repr(k): identity(v) for k, v in value.items()})
  if isinstance(value, list | tuple):
    return repr([identity(v) for v in value])
  if isinstance(value, np.ndarray):  # repr leaves out the middle
    return f'{value.dtype}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()}'
  return repr(value)


def _code_hash(value: Any) -> str:
  """Hash of the source code of a class or function, of its byte code where there is none."""
  try:
    code = inspect.getsource(value)
  except (OSError, TypeError):  # typed into a prompt
    function = value if inspect.isfunction(value) else value.__call__
    code = function.__code__.co_code.hex() + repr(function.__code__.co_consts)
  return hashlib.sha256(code.encode()).hexdigest()[:16]


def tokenize(
    task: Task, split: str, vocabulary: Vocabulary, lengths: Mapping[str, int | None],
) -> Iterator[tuple[str, dict[str, Any], np.ndarray, np.ndarray]]:
  """Yields (example id, example, input ids, target ids), before truncation.

  Ids of text have no end of sequence yet; ids that preprocess gave are passed on as they are.
  """
  for chunk in _chunks(task.examples(split)):
    columns = {}
    for feature in FEATURES if task.objective is None else (*FEATURES, 'text'):
      texts = [ex[feature] for _, ex in chunk if isinstance(ex.get(feature), str)]
      columns[feature] = iter(vocabulary.encode_batch(texts) if texts else ())
    for example_id, example in chunk:
      if task.objective is None:
        inputs, targets = (_ids(example, f, columns[f]) for f in FEATURES)
        if task.task_index is not None:
          inputs = np.insert(inputs, 0, vocabulary.sentinel(task.task_index))
        yield example_id, example, inputs, targets
      elif 'text' in example:
        ids = np.asarray(next(columns['text']), np.int32)
        rng = np.random.default_rng(_seed(task.objective.seed, example_id))
        pairs = task.objective(ids, vocabulary, lengths, rng)
        for k, (inputs, targets) in enumerate(pairs):
          yield f'{example_id}.{k}', example, inputs, targets
      else:
        yield example_id, example, *(_ids(example, f, columns[f]) for f in FEATURES)


def check_labels(task: Task, vocabulary: Vocabulary, length: int | None = None):
  """Checks that the vocabulary can write and tell apart a task's labels.

  Args:
    task: the task.
    vocabulary: of the backbone.
    length: most tokens of a target, end of sequence included.

  Raises:
    UserError: a label gives no tokens or too many, or two give the same.
  """
  seen: dict[tuple[int, ...], str] = {}
  for label in task.labels or ():
    ids = tuple(vocabulary.encode(label))
    if not ids:
      raise UserError(
          f'Label {label!r} of task {task.name!r} gives no tokens with this vocabulary; choose '
          'another text in CLASS_LABELS.')
    if length is not None and len(ids) >= length:
      raise UserError(
          f'Label {label!r} of task {task.name!r} is {len(ids) + 1} tokens with its end of '
          f'sequence; TASK_FEATURE_LENGTHS cuts targets to {length}: give {len(ids) + 1} or more.')
    if ids in seen:
      raise UserError(
          f'Labels {seen[ids]!r} and {label!r} of task {task.name!r} are the same tokens with this '
          'vocabulary; choose texts that differ.')
    seen[ids] = label
    if vocabulary.decode(ids) != label:
      log.warning(
          'Label %r of task %s reads back as %r with this vocabulary: a prediction of it will not '
          'count as right. Choose a label text that the vocabulary can write.',
          label, task.name, vocabulary.decode(ids))


def _ids(example: Mapping[str, Any], feature: str, encoded: Iterator) -> np.ndarray:
  if feature not in example:
    raise UserError(
        f'An example has no {feature!r}; preprocess has to give "inputs" and "targets" (or "text" '
        f'for a task with an objective). It has {", ".join(map(repr, example))}.')
  value = example[feature]
  return np.asarray(next(encoded) if isinstance(value, str) else value, np.int32)


def _seed(seed: int, example_id: str) -> list[int]:
  digest = hashlib.sha256(example_id.encode()).digest()
  return [seed, int.from_bytes(digest[:8], 'little')]


def _chunks(examples: Iterator) -> Iterator[list]:
  """Lists of examples, few of them where texts are long."""
  chunk, characters = [], 0
  for example_id, example in examples:
    chunk.append((example_id, example))
    characters += sum(len(value) for value in example.values() if isinstance(value, str))
    if len(chunk) == _CHUNK or characters > _CHUNK_CHARACTERS:
      yield chunk
      chunk, characters = [], 0
  if chunk:
    yield chunk


def _write(task: Task, split: str, vocabulary: Vocabulary, lengths: Mapping[str, int | None],
           path: pathlib.Path, parts: Mapping[str, Any]):
  """Tokenises into a temporary folder and renames it; a failure leaves nothing behind."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp(prefix='.building-', dir=path.parent))
  except OSError as error:
    raise UserError(
        f'The cache folder {path.parent} cannot be written: {error.strerror}.') from None
  try:
    rows, found = _write_records(task, split, vocabulary, lengths, folder)
    if not len(rows):
      raise UserError(
          f'Split {split!r} of task {task.name!r} gives no examples; nothing can be done with it.')
    np.save(folder / 'lengths.npy', rows)
    info = {'task': task.name, 'split': split, 'examples': len(rows), **found, 'key': parts}
    (folder / 'info.json').write_text(json.dumps(info, indent=2, sort_keys=True))
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
    if not (path / 'info.json').exists():
      raise
  finally:
    if old is not None:
      shutil.rmtree(old, ignore_errors=True)


def _write_records(
    task: Task, split: str, vocabulary: Vocabulary, lengths: Mapping[str, int | None],
    folder: pathlib.Path) -> tuple[np.ndarray, dict[str, Any]]:
  """Writes both record files; returns lengths [N, 2] and what was cut and what was empty."""
  from array_record.python.array_record_module import ArrayRecordWriter
  rows, untrimmed = array.array('i'), array.array('q')  # lists would take as much as short texts
  empty = {}
  writers = {name: ArrayRecordWriter(str(folder / f'{name}.array_record'), _WRITER_OPTIONS)
             for name in ('tokens', 'texts')}
  try:
    for example_id, example, *pair in tokenize(task, split, vocabulary, lengths):
      # Ids from outside carry their end of sequence where they want one.
      ended = [ids if _is_ids(example.get(f)) else np.append(ids, np.int32(EOS_ID))
               for ids, f in zip(pair, FEATURES, strict=True)]
      inputs, targets = (_trim(ids, lengths.get(f)) for ids, f in zip(ended, FEATURES, strict=True))
      rows.extend((len(inputs), len(targets)))
      untrimmed.extend(len(ids) for ids in ended)
      for feature, ids in zip(FEATURES, pair, strict=True):
        if not len(ids):
          count, first = empty.get(feature, (0, task.source.where(split, example_id)))
          empty[feature] = count + 1, first
      head = np.asarray([len(inputs)], np.int32)
      writers['tokens'].write(np.concatenate([head, inputs, targets]).tobytes())
      writers['texts'].write(_text_record(example_id, example, pair, vocabulary))
  finally:
    for writer in writers.values():
      writer.close()
  kept = np.asarray(rows, np.int32).reshape(-1, 2)
  truncated = _truncation(kept, np.asarray(untrimmed, np.int64).reshape(-1, 2))
  return kept, {'truncated': truncated, 'empty': empty}


def _trim(ids: np.ndarray, length: int | None) -> np.ndarray:
  """Cuts to a length; an end of sequence stays the last token, as in T5."""
  if length is None or len(ids) <= length:
    return ids
  return np.append(ids[:length - 1], ids[-1]) if ids[-1] == EOS_ID else ids[:length]


def _is_ids(value: Any) -> bool:
  return value is not None and not isinstance(value, str)


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


def _truncation(kept: np.ndarray, untrimmed: np.ndarray) -> dict[str, Any]:
  counts = {}
  for i, feature in enumerate(FEATURES):
    cut = untrimmed[:, i] - kept[:, i]
    counts[feature] = {
        'examples': int((cut > 0).sum()), 'tokens': int(cut.clip(0).sum()),
        'longest': int(untrimmed[:, i].max(initial=0))}
  return counts


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


def _file_name(name: str) -> str:
  return ''.join(c if c.isalnum() or c in '_.-' else '_' for c in name)
