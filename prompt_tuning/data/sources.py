"""Where raw examples come from.

A source names its splits, reads one as (row id, example), and gives a fingerprint of a split's
content, which the cache is keyed by.
"""

import abc
import dataclasses
import fnmatch
import functools
import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from prompt_tuning.data import files, xml_rows
from prompt_tuning.errors import UserError, excerpt, listed

log = logging.getLogger(__name__)

Example = Mapping[str, Any]
Rows = Iterator[tuple[str, Example]]

_NUMBER = re.compile(r'-?[0-9]{1,18}')
NO_LABEL = -1  # class id of the examples of an unlabelled test split, as TFDS has it


class Source(abc.ABC):
  """Raw examples by split.

  Attributes:
    splits: names of the splits; a field or a property of each source.
    of_files: whether the examples are files of the user's, cheap to read and open to mistakes.
  """

  of_files = False

  @abc.abstractmethod
  def read(self, split: str) -> Rows:
    """Yields (row id, example); ids are unique in the split and stable."""

  @abc.abstractmethod
  def fingerprint(self, split: str) -> str:
    """A text that changes when the examples of the split do."""

  def where(self, split: str, row: str) -> str:
    """A place to look at for the example of this row, for error messages."""
    return f'{split} example {row}'


@dataclasses.dataclass(frozen=True)
class ListSource(Source):
  """Examples in memory.

  Attributes:
    examples: split -> examples.
  """
  examples: Mapping[str, tuple[Example, ...]]

  @property
  def splits(self) -> tuple[str, ...]:
    return tuple(self.examples)

  def read(self, split: str) -> Rows:
    for row, example in enumerate(self.examples[split]):
      yield str(row), example

  def fingerprint(self, split: str) -> str:
    text = json.dumps(list(self.examples[split]), sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class GeneratedSource(Source):
  """Examples made by a function.

  Attributes:
    generate: split -> examples, the same at every call.
    splits: names of the splits.
    version: has to change when the function gives other examples: caches are keyed by it.
  """
  generate: Callable[[str], Iterable[Example]]
  splits: tuple[str, ...]
  version: str

  def read(self, split: str) -> Rows:
    for row, example in enumerate(self.generate(split)):
      yield str(row), example

  def fingerprint(self, split: str) -> str:
    return f'{self.generate.__module__}.{self.generate.__qualname__} {split} {self.version}'


@dataclasses.dataclass(frozen=True)
class FileSource(Source):
  """One JSONL, JSON, TSV or CSV file a split; a row's id is the place where it begins.

  Attributes:
    files: split -> path.
    file_format: one of files.FORMATS, None reads it off the suffixes.
  """
  files: Mapping[str, str]
  file_format: str | None = None

  of_files = True

  @property
  def splits(self) -> tuple[str, ...]:
    return tuple(self.files)

  def read(self, split: str) -> Rows:
    return files.read_rows(self.files[split], self.file_format)

  def fingerprint(self, split: str) -> str:
    return files.content_hash(self.files[split])

  def where(self, split: str, row: str) -> str:
    return f'{self.files[split]}:{row}'


@dataclasses.dataclass(frozen=True)
class HeldOutSource(Source):
  """A source with a `train` split alone, of which a seeded share becomes `validation`.

  Attributes:
    source: the source that is divided.
    fraction: share of the rows that is held out, at least one row.
    seed: of the choice.
  """
  source: Source
  fraction: float = 0.1
  seed: int = 0

  splits = ('train', 'validation')

  @property
  def of_files(self) -> bool:
    return self.source.of_files

  def read(self, split: str) -> Rows:
    count = 0
    for count, row in enumerate(self.source.read('train'), 1):
      if count > len(self._held_out):
        break
      if self._held_out[count - 1] == (split == 'validation'):
        yield row
    if count != len(self._held_out):
      raise UserError(f'{self.where("train", str(count))}: the file has changed while it was read. '
                      'Start again when it is complete.')

  @functools.cached_property
  def _held_out(self) -> np.ndarray:
    """[rows] bool. The rows are counted, not kept: a file may be larger than the memory."""
    count, last = 0, '0'
    for place, _ in self.source.read('train'):
      count, last = count + 1, place
    if count < 2:
      raise UserError(
          f'{self.where("train", last)} is the only example; an evaluation split cannot be '
          'taken from it. Give EVAL_FILE, or more examples.')
    size = max(1, round(self.fraction * count))
    held_out = np.zeros(count, bool)
    held_out[np.random.default_rng(self.seed).permutation(count)[:size]] = True
    return held_out

  def fingerprint(self, split: str) -> str:
    return f'{self.source.fingerprint("train")} {split} {self.fraction} {self.seed}'

  def where(self, split: str, row: str) -> str:
    return self.source.where('train', row)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """How a dataset is published as files, and what its features are called.

  Attributes:
    folders: usual names of its folder, compared without case.
    collections: usual names of the folder above that one.
    files: split -> file name patterns in order of preference, without `.gz`; they may begin with
      a folder.
    columns: feature -> names that its column has in one file or another.
    labels: class names in class order; files may hold names, ids or booleans. () for a dataset
      without labels, None for one whose label is a number.
    kinds: type of the features that are no text.
    flatten: row of a file -> the rows that it holds, for files whose rows are nested.
    header: column names of TSV files without a line of them, of JSON rows that are lists.
    list_in: name of the list of rows in JSON files that are one object.
    skip_short_rows: published files have rows with missing columns, which TFDS leaves out too.
  """
  folders: tuple[str, ...]
  collections: tuple[str, ...]
  files: Mapping[str, tuple[str, ...]]
  columns: Mapping[str, tuple[str, ...]]
  labels: tuple[str, ...] | None = ()
  kinds: Mapping[str, type] = dataclasses.field(default_factory=dict)
  flatten: Callable[[Example], Iterable[Example]] | None = None
  header: tuple[str, ...] = ()
  list_in: str = ''
  skip_short_rows: bool = False


@dataclasses.dataclass(frozen=True)
class FolderSource(Source):
  """A published dataset from a folder, with the feature names and class ids of TFDS.

  Attributes:
    layout: its files.
    data_dir: the dataset's folder, or one above it.
  """
  layout: Layout
  data_dir: str

  of_files = True

  @property
  def splits(self) -> tuple[str, ...]:
    found = tuple(s for s in self.layout.files if self._find(s) is not None)
    if not found:
      self.path(next(iter(self.layout.files)))  # raises, naming the files
    return found

  def in_folder(self, data_dir: str) -> 'FolderSource':
    """The same dataset from another folder."""
    return FolderSource(self.layout, data_dir)

  def read(self, split: str) -> Rows:
    path = self.path(split)
    log.info('%s is read from %s', split, path)
    columns = None
    for i, (place, row) in enumerate(self._rows(path)):
      if columns is None:
        columns = self._columns(row, path, split)
      example = {feature: row.get(column) for feature, column in columns.items()}
      for feature, value in example.items():
        self._check_kind(feature, value, columns[feature], f'{path}:{place}')
      if self.layout.labels != ():
        example['label'] = (
            self._label(example['label'], path, place) if 'label' in columns else NO_LABEL)
      idx = example.get('idx', i)
      example['idx'] = int(idx) if isinstance(idx, str) and _NUMBER.fullmatch(idx) else idx
      yield place, example

  def _rows(self, path: str) -> Rows:
    """(place, flat row); rows that stand in one row of the file are numbered."""
    if path.removesuffix('.gz').endswith('.xml'):
      rows = xml_rows.read_entries(path)
    else:
      rows = files.read_rows(path, skip_short_rows=self.layout.skip_short_rows,
                             header=self.layout.header, list_in=self.layout.list_in)
    if self.layout.flatten is None:
      yield from rows
      return
    for place, nested in rows:
      try:
        flat = list(self.layout.flatten(nested))
      except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise UserError(
            f'{path}:{place}: this row does not have the parts that rows of this dataset have: '
            f'{type(error).__name__} {error}. It holds {listed(nested)}.') from None
      for k, row in enumerate(flat):
        yield place if len(flat) == 1 else f'{place}.{k}', row

  def _check_kind(self, feature: str, value: Any, column: str, place: str):
    kind = self.layout.kinds.get(feature, str)
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if feature not in ('label', 'idx') and not fits:
      wanted = 'text' if kind is str else f'of type {kind.__name__}'
      raise UserError(f'{place}: field {column!r} has to be {wanted}, it is {excerpt(value)}.')

  def fingerprint(self, split: str) -> str:
    return files.content_hash(self.path(split))

  def where(self, split: str, row: str) -> str:
    return f'{self.path(split)}:{row}'

  def path(self, split: str) -> str:
    """The file of a split.

    Raises:
      UserError: it is not there; says which names were looked for.
    """
    found = self._find(split)
    if found is None:
      raise UserError(
          f'DATA_DIR={self.data_dir!r} has no {split} file of this dataset. Looked for '
          f'{", ".join(self.layout.files.get(split, ()))} (also with .gz) there and in folders '
          f'named {", ".join(self.layout.folders)} below it.')
    return found

  def _find(self, split: str) -> str | None:
    if not os.path.isdir(self.data_dir):
      raise UserError(f'DATA_DIR={self.data_dir!r} is no folder. Give the folder of the dataset.')
    for parent in self._folders():
      for pattern in self.layout.files.get(split, ()):
        folder = os.path.join(parent, os.path.dirname(pattern))
        name = os.path.basename(pattern)
        present = sorted(os.listdir(folder)) if os.path.isdir(folder) else ()
        found = [f for f in present if fnmatch.fnmatchcase(f.removesuffix('.gz'), name)]
        if len(found) > 1:
          raise UserError(
              f'{folder} has several files that could be the {split} split: {", ".join(found)}. '
              'Leave one of them in DATA_DIR.')
        if found:
          return os.path.join(folder, found[0])
    return None

  def _folders(self) -> Iterator[str]:
    """Folders of the dataset at most two levels below `data_dir`, then `data_dir` itself."""
    collections = [self.data_dir, *_subfolders(self.data_dir, self.layout.collections)]
    for collection in collections:
      yield from _subfolders(collection, self.layout.folders)
    yield self.data_dir

  def _columns(self, row: Example, path: str, split: str) -> dict[str, str]:
    """Feature -> column name of this file."""
    columns = {}
    for feature, candidates in self.layout.columns.items():
      name = next((c for c in candidates if c in row), None)
      if name is not None:
        columns[feature] = name
      elif feature != 'idx' and not (feature == 'label' and split.startswith('test')):
        raise UserError(
            f'{path}: there is no field {" or ".join(map(repr, candidates))}; the first row has '
            f'{listed(row)}.')
    return columns

  def _label(self, value: Any, path: str, line: str) -> int:
    """Class id of a label given as a name, an id or a boolean; the number itself without names."""
    labels = self.layout.labels
    text = str(value)
    if labels is None:
      return self._number(text, path, line)
    if text in labels:
      return labels.index(text)
    if isinstance(value, str | int) and _NUMBER.fullmatch(text):
      if NO_LABEL <= int(text) < len(labels):
        return int(text)
    lowered = [label.lower() for label in labels]
    if text.lower() in lowered:
      return lowered.index(text.lower())
    raise UserError(
        f'{path}:{line}: {excerpt(value)} is no label of this dataset; expected one of '
        f'{", ".join(labels)}, or 0 to {len(labels) - 1}.')

  def _number(self, text: str, path: str, line: str) -> float:
    try:
      number = float(text)
    except ValueError:
      number = math.nan
    if not math.isfinite(number):
      raise UserError(f'{path}:{line}: the label {excerpt(text)} has to be a number.')
    return number


@dataclasses.dataclass(frozen=True)
class PublishedSource(Source):
  """A dataset that is read from the files of its authors alone.

  Attributes:
    layout: its files, in the folder that DATA_DIR names.
  """
  layout: Layout

  @property
  def splits(self) -> tuple[str, ...]:
    raise self._no_folder()

  def read(self, split: str) -> Rows:
    raise self._no_folder()

  def fingerprint(self, split: str) -> str:
    raise self._no_folder()

  def in_folder(self, data_dir: str) -> FolderSource:
    """The dataset in a folder."""
    return FolderSource(self.layout, data_dir)

  def _no_folder(self) -> UserError:
    return UserError(
        f'The dataset {self.layout.folders[0]} is read from the files of its authors. Set DATA_DIR '
        f'to the folder with {", ".join(names[0] for names in self.layout.files.values())}.')


@dataclasses.dataclass(frozen=True)
class TfdsSource(Source):
  """A dataset of TensorFlow Datasets; imported when it is read.

  Attributes:
    name: `dataset/config:version`.
    layout: the same dataset as files, for DATA_DIR.
    only: the splits that are used; () takes all.
    renamed: (split here, its name there) where they differ.
  """
  name: str
  layout: Layout | None = None
  only: tuple[str, ...] = ()
  renamed: tuple[tuple[str, str], ...] = ()

  @property
  def splits(self) -> tuple[str, ...]:
    ours = {theirs: split for split, theirs in self.renamed}
    return self.only or tuple(ours.get(split, split) for split in self._builder().info.splits)

  def in_folder(self, data_dir: str) -> Source:
    """The same dataset from files in a folder."""
    if self.layout is None:
      raise UserError(f'{self.name} has no known file layout; leave DATA_DIR out to use TFDS.')
    layout = self.layout
    if self.only:
      kept = {split: names for split, names in layout.files.items() if split in self.only}
      layout = dataclasses.replace(layout, files=kept)
    return FolderSource(layout, data_dir)

  def read(self, split: str) -> Rows:
    builder = self._builder()
    builder.download_and_prepare()
    import tensorflow_datasets as tfds
    theirs = dict(self.renamed).get(split, split)
    for row, example in enumerate(tfds.as_numpy(builder.as_dataset(split=theirs))):
      yield str(row), {k: plain(v) for k, v in example.items()}

  def fingerprint(self, split: str) -> str:
    return f'tfds {self._builder().info.full_name} {split}'

  def _builder(self):
    try:
      import tensorflow_datasets as tfds
    except ImportError as error:
      raise UserError(
          f'{self.name} is read through TensorFlow Datasets unless DATA_DIR names a folder with '
          f'its files, and tensorflow_datasets cannot be imported ({error}). Set DATA_DIR, or '
          'install tensorflow and tensorflow_datasets.') from None
    return tfds.builder(self.name)


def _subfolders(folder: str, names: tuple[str, ...]) -> list[str]:
  """Folders in `folder` that have one of the names, compared without case."""
  wanted = {name.lower() for name in names}
  paths = [os.path.join(folder, f) for f in sorted(os.listdir(folder)) if f.lower() in wanted]
  return [path for path in paths if os.path.isdir(path)]


def plain(value: Any) -> Any:
  """Python text and numbers of TFDS's bytes and numpy values."""
  if isinstance(value, bytes):
    return value.decode('utf-8')
  if isinstance(value, dict):
    return {k: plain(v) for k, v in value.items()}
  if isinstance(value, np.ndarray) and value.ndim:
    return [plain(v) for v in value]
  return value.item() if isinstance(value, np.generic | np.ndarray) else value
