"""Some rows of a cache, and several caches one behind the other: both are read like a cache."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.data.cache import FEATURES, Cache


@dataclasses.dataclass(frozen=True, eq=False)
class Selected:
  """Some rows of a cache, in their order.

  Attributes:
    cache: of the whole split.
    selection: [n] rows of it.
  """
  cache: Cache
  selection: np.ndarray

  @property
  def name(self) -> str:
    """Another one for every choice of rows."""
    digest = hashlib.sha256(np.asarray(self.selection, '<i8').tobytes()).hexdigest()
    return f'{self.cache.name}-{digest[:16]}'

  @functools.cached_property
  def lengths(self) -> np.ndarray:
    """[n, 2] int32, number of input and of target tokens."""
    return self.cache.lengths[self.selection]

  @property
  def info(self) -> dict[str, Any]:
    """That of the cache; of what was cut there, the rows that fill their length count."""
    info = dict(self.cache.info, examples=len(self), empty={})
    limits = info['key']['lengths']
    full = {feature: int((self.lengths[:, i] == limits[feature]).sum())
            for i, feature in enumerate(FEATURES)}
    info['truncated'] = {feature: cut | {'examples': min(cut['examples'], full[feature])}
                         for feature, cut in info['truncated'].items()}
    return info

  @property
  def ids(self) -> list[str]:
    """Ids of the examples."""
    return [record['id'] for record in self.records(range(len(self)))]

  def __len__(self) -> int:
    return len(self.selection)

  def tokens(self, rows: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """As Cache.tokens, of rows of this selection."""
    return self.cache.tokens(self.selection[np.asarray(rows, int)])

  def records(self, rows: Sequence[int]) -> list[dict[str, Any]]:
    """As Cache.records, of rows of this selection."""
    return self.cache.records(self.selection[np.asarray(rows, int)])


@dataclasses.dataclass(frozen=True, eq=False)
class Joined:
  """The examples of several tasks: those of the first, then those of the second, and so on.

  Attributes:
    parts: task -> its cache, or a selection of it; all of the same TASK_FEATURE_LENGTHS.
  """
  parts: Mapping[str, Cache | Selected]

  @property
  def name(self) -> str:
    """Those of the parts."""
    return '+'.join(part.name for part in self.parts.values())

  @property
  def sizes(self) -> tuple[int, ...]:
    """Number of examples of each part."""
    return tuple(map(len, self.parts.values()))

  @functools.cached_property
  def lengths(self) -> np.ndarray:
    """[N, 2] int32, number of input and of target tokens."""
    return np.concatenate([part.lengths for part in self.parts.values()])

  @property
  def info(self) -> dict[str, Any]:
    """What all parts have in common."""
    first = next(iter(self.parts.values())).info
    return {'split': first['split'], 'examples': len(self),
            'key': {'lengths': first['key']['lengths']}}

  def __len__(self) -> int:
    return sum(self.sizes)

  def tokens(self, rows: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """As Cache.tokens."""
    return self._read(rows, lambda task, rows: self.parts[task].tokens(rows))

  def records(self, rows: Sequence[int]) -> list[dict[str, Any]]:
    """As Cache.records, and the `task` of each; an id is unique within its task."""
    return self._read(rows, lambda task, rows: [
        {**record, 'task': task} for record in self.parts[task].records(rows)])

  def _read(self, rows, read):
    """Reads each part once and puts what comes into the order of the rows."""
    rows = np.asarray(rows, int)
    ends = np.cumsum(self.sizes)
    part_of = np.searchsorted(ends, rows, side='right')
    found = [None] * len(rows)
    for number, task in enumerate(self.parts):
      places = np.flatnonzero(part_of == number)
      if not len(places):
        continue
      start = ends[number] - self.sizes[number]
      for place, value in zip(places, read(task, rows[places] - start), strict=True):
        found[place] = value
    return found


def by_task(cache: Cache | Selected | Joined, name: str) -> Mapping[str, Cache | Selected]:
  """The caches of a mixture by task; any other cache under the name given."""
  return cache.parts if isinstance(cache, Joined) else {name: cache}
