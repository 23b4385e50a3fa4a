"""Where raw examples come from.

A source names its splits, reads one as (row id, example), and gives a fingerprint of a split's
content, which the cache is keyed by.
"""

import abc
import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from prompt_tuning.data import files
from prompt_tuning.errors import UserError

log = logging.getLogger(__name__)

Example = Mapping[str, Any]
Rows = Iterator[tuple[str, Example]]

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


def plain(value: Any) -> Any:
  """Python text and numbers of TFDS's bytes and numpy values."""
  if isinstance(value, bytes):
    return value.decode('utf-8')
  if isinstance(value, dict):
    return {k: plain(v) for k, v in value.items()}
  if isinstance(value, np.ndarray) and value.ndim:
    return [plain(v) for v in value]
  return value.item() if isinstance(value, np.generic | np.ndarray) else value
