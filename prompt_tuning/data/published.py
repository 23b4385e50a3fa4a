"""Published datasets: in the files of their authors, or from TensorFlow Datasets."""

import dataclasses
import functools
import glob
import hashlib
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prompt_tuning.data import files, xml_rows
from prompt_tuning.data.cache_key import identity
from prompt_tuning.data.sources import NO_LABEL, Example, Rows, Source, plain
from prompt_tuning.errors import UserError, excerpt, listed

log = logging.getLogger(__name__)

_NUMBER = re.compile(r'-?[0-9]{1,18}')


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
    header: column names of TSV and CSV files without a line of them, of JSON rows that are lists.
    list_in: name of the list of rows in JSON files that are one object.
    skip_short_rows: published files have rows with missing columns, which TFDS leaves out too.
    readers: ending of a file's name, without `.gz` -> path -> (place, row), for files that are not
      tables or JSON. A reader of two files has `other_path`; of texts that lie elsewhere the cache
      knows the list alone.
    splits_in_rows: a row that has a `split` is in that one alone: its file holds several.
    many: all files that match a pattern are the split, in the order of their names.
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
  readers: Mapping[str, Callable[[str], Rows]] = dataclasses.field(default_factory=dict)
  splits_in_rows: bool = False
  many: bool = False


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
    found = tuple(split for split in self.layout.files if self._find(split))
    if not found:
      self.paths(next(iter(self.layout.files)))  # raises, naming the files
    return found

  def in_folder(self, data_dir: str) -> 'FolderSource':
    """The same dataset from another folder."""
    return FolderSource(self.layout, data_dir)

  def read(self, split: str) -> Rows:
    paths = self.paths(split)
    folder = _folder_of(paths)
    log.info('%s is read from %s', split,
             paths[0] if len(paths) == 1 else f'{len(paths)} files in {folder}')
    number = 0
    for path in paths:
      columns = None
      name = f'{os.path.relpath(path, folder)}:' if len(paths) > 1 else ''
      for place, row in self._rows(path):
        if self.layout.splits_in_rows and row.get('split', split) != split:
          continue
        if columns is None:
          columns = self._columns(row, path, split)
        yield f'{name}{place}', self._example(row, columns, f'{path}:{place}', number)
        number += 1

  def _example(self, row: Example, columns: Mapping[str, str], place: str, number: int) -> Example:
    """The features of one row; `number` is its idx where it has none."""
    example = {feature: row.get(column) for feature, column in columns.items()}
    for feature, value in example.items():
      self._check_kind(feature, value, columns[feature], place)
    if self.layout.labels != ():
      example['label'] = self._label(example['label'], place) if 'label' in columns else NO_LABEL
    idx = example.get('idx', number)
    example['idx'] = int(idx) if isinstance(idx, str) and _NUMBER.fullmatch(idx) else idx
    return example

  def _rows(self, path: str) -> Rows:
    """(place, flat row); rows that stand in one row of the file are numbered."""
    rows = self._reader(path)(path)
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

  def _reader(self, path: str) -> Callable[[str], Rows]:
    name = path.removesuffix('.gz')
    for ending, read in {**self.layout.readers, '.xml': xml_rows.read_entries}.items():
      if name.endswith(ending):
        return read
    return functools.partial(
        files.read_rows, skip_short_rows=self.layout.skip_short_rows, header=self.layout.header,
        list_in=self.layout.list_in)

  def _check_kind(self, feature: str, value: Any, column: str, place: str):
    kind = self.layout.kinds.get(feature, str)
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if feature not in ('label', 'idx') and not fits:
      wanted = 'text' if kind is str else f'of type {kind.__name__}'
      raise UserError(f'{place}: field {column!r} has to be {wanted}, it is {excerpt(value)}.')

  def fingerprint(self, split: str) -> str:
    paths = list(self.paths(split))
    readers = [(path, self._reader(path)) for path in paths]
    paths += [read.other_path(path) for path, read in readers if hasattr(read, 'other_path')]
    parts = [identity(self.layout), *map(files.content_hash, paths)]
    return hashlib.sha256(' '.join(parts).encode()).hexdigest()

  def where(self, split: str, row: str) -> str:
    paths = self.paths(split)
    return f'{paths[0]}:{row}' if len(paths) == 1 else os.path.join(_folder_of(paths), row)

  def paths(self, split: str) -> tuple[str, ...]:
    """The files of a split, in the order in which they are read.

    Raises:
      UserError: there are none; says which names were looked for.
    """
    found = self._find(split)
    if not found:
      raise UserError(
          f'DATA_DIR={self.data_dir!r} has no {split} file of this dataset. Looked for '
          f'{", ".join(self.layout.files.get(split, ()))} (also with .gz) there and in folders '
          f'named {", ".join(self.layout.folders)} below it.')
    return found

  def _find(self, split: str) -> tuple[str, ...]:
    if not os.path.isdir(self.data_dir):
      raise UserError(f'DATA_DIR={self.data_dir!r} is no folder. Give the folder of the dataset.')
    for parent in self._folders():
      for pattern in self.layout.files.get(split, ()):
        path = os.path.join(glob.escape(parent), pattern)
        found = sorted({*glob.glob(path), *glob.glob(f'{path}.gz')})
        if len(found) > 1 and not self.layout.many:
          raise UserError(
              f'{os.path.dirname(found[0])} has several files that could be the {split} split: '
              f'{", ".join(map(os.path.basename, found))}. Leave one of them in DATA_DIR.')
        if found:
          return tuple(found)
    return ()

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

  def _label(self, value: Any, place: str) -> int:
    """Class id of a label given as a name, an id or a boolean; the number itself without names."""
    labels = self.layout.labels
    text = str(value)
    if labels is None:
      return self._number(text, place)
    if text in labels:
      return labels.index(text)
    if isinstance(value, str | int) and _NUMBER.fullmatch(text):
      if NO_LABEL <= int(text) < len(labels):
        return int(text)
    lowered = [label.lower() for label in labels]
    if text.lower() in lowered:
      return lowered.index(text.lower())
    raise UserError(
        f'{place}: {excerpt(value)} is no label of this dataset; expected one of '
        f'{", ".join(labels)}, or 0 to {len(labels) - 1}.')

  def _number(self, text: str, place: str) -> float:
    try:
      number = float(text)
    except ValueError:
      number = math.nan
    if not math.isfinite(number):
      raise UserError(f'{place}: the label {excerpt(text)} has to be a number.')
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
    if self.only:
      return self.only
    ours = {theirs: split for split, theirs in self.renamed}
    try:
      return tuple(ours.get(split, split) for split in self._builder().info.splits)
    except UserError:
      if self.layout is None:
        raise
      return tuple(self.layout.files)  # enough for a run whose caches are there

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
    # The version says it all, so a cache is found where TFDS is not installed.
    name = self.name if ':' in self.name else self._builder().info.full_name
    return f'tfds {name} {dict(self.renamed).get(split, split)}'

  def _builder(self):
    try:
      import tensorflow_datasets as tfds
    except ImportError as error:
      raise UserError(
          f'{self.name} is read through TensorFlow Datasets unless DATA_DIR names a folder with '
          f'its files, and tensorflow_datasets cannot be imported ({error}). Set DATA_DIR, or '
          'install tensorflow and tensorflow_datasets.') from None
    return tfds.builder(self.name)


def _folder_of(paths: tuple[str, ...]) -> str:
  """The innermost folder that all files lie in."""
  return os.path.commonpath([os.path.dirname(path) for path in paths])


def _subfolders(folder: str, names: tuple[str, ...]) -> list[str]:
  """Folders in `folder` that have one of the names, compared without case."""
  wanted = {name.lower() for name in names}
  paths = [os.path.join(folder, f) for f in sorted(os.listdir(folder)) if f.lower() in wanted]
  return [path for path in paths if os.path.isdir(path)]
