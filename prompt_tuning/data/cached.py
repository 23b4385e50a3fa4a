"""A task that is known by the caches that `prompt-tuning cache` has written of it.

What the examples were made of is not asked for again: neither the files of the dataset nor
TensorFlow nor SeqIO are needed.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning.data import cache as cache_lib
from prompt_tuning.data import metrics as metrics_lib
from prompt_tuning.data import sources
from prompt_tuning.data import task as task_lib
from prompt_tuning.data.mixture import Mixture
from prompt_tuning.data.postprocessors import Text
from prompt_tuning.data.task import Task
from prompt_tuning.data.tokenizing import FEATURES
from prompt_tuning.errors import UserError
from prompt_tuning.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class CachedSource(sources.Source):
  """The examples of the caches of one task.

  Attributes:
    name: of the task.
    cache_dir: folder of all caches.
  """
  name: str
  cache_dir: str

  @property
  def splits(self) -> tuple[str, ...]:
    return tuple(dict.fromkeys(info['split'] for info in self._infos().values()))

  def read(self, split: str) -> sources.Rows:
    path = next(path for path, info in self._infos().items() if info['split'] == split)
    cache = cache_lib.load(path)
    for row in range(len(cache)):
      [record] = cache.records([row])
      yield record['id'], {
          **record['example'], **{f: record[f'{f}_pretokenized'] for f in FEATURES}}

  def fingerprint(self, split: str) -> str:
    return ' '.join(path.name for path, info in self._infos().items() if info['split'] == split)

  def cache_of(self, split: str, vocabulary: Vocabulary,
               lengths: Mapping[str, int | None]) -> pathlib.Path:
    """The folder of the cache of a split with these tokens.

    Raises:
      UserError: there is none, or several that were made of different sources.
    """
    wanted = {'split': split, 'vocabulary': vocabulary.content_hash,
              'lengths': {f: lengths.get(f) for f in FEATURES}}
    fitting, others = [], []
    for path, info in self._infos().items():
      found = {name: info['key'].get(name) for name in wanted}
      (fitting if found == wanted else others).append((path, found))
    if len(fitting) > 1:
      raise UserError(
          f'CACHE_DIR={self.cache_dir} holds several caches of {self.name} {split} for these '
          f'lengths: {", ".join(path.name for path, _ in fitting)}. Leave one of them there.')
    if not fitting:
      raise UserError(
          f'CACHE_DIR={self.cache_dir} holds no cache of {self.name} {split} for this vocabulary '
          f'and TASK_FEATURE_LENGTHS={wanted["lengths"]}. It holds ' + '; '.join(
              f'{found["split"]} with {found["lengths"]}'
              f'{"" if found["vocabulary"] == wanted["vocabulary"] else ", another vocabulary"}'
              for _, found in others) + '. Write it with `prompt-tuning cache`.')
    return fitting[0][0]

  def _infos(self) -> dict[pathlib.Path, dict[str, Any]]:
    """Folder -> info.json of every cache of the task."""
    paths = sorted(pathlib.Path(self.cache_dir).glob(f'[!.]*/{cache_lib.INFO}'))
    infos = {path.parent: cache_lib.read_info(path.parent) for path in paths}
    found = {path: info for path, info in infos.items() if info.get('task') == self.name}
    if not found:
      names = sorted({str(info.get('task')) for info in infos.values()})
      raise UserError(
          f'CACHE_DIR={self.cache_dir} holds no cache of a task {self.name!r}; it holds caches of '
          f'{", ".join(names) or "no task"}. Write it with `prompt-tuning cache`.')
    return found


def make(*, name: str, cache_dir: str | None, metrics: Sequence[str] | None = None,
         ) -> Task | Mixture:
  """Builds the task: of a built-in one everything but the source, of another one with `metrics`.

  Args:
    name: MIXTURE_OR_TASK_NAME.
    cache_dir: CACHE_DIR, where its caches are.
    metrics: METRICS, see metrics.by_name; None is those of the built-in task, else exact_match.

  Raises:
    UserError: no CACHE_DIR, or metrics that do not exist.
  """
  if cache_dir is None:
    raise UserError('tasks/cached.gin reads a task from its caches: give --gin.CACHE_DIR=..., the '
                    'folder that `prompt-tuning cache` wrote to.')
  found = task_lib.built_in(name)
  if isinstance(found, Mixture):
    return dataclasses.replace(found, parts=tuple(
        (_cached(task, cache_dir, metrics), rate) for task, rate in found.parts))
  return _cached(found or Task(
      name=name, source=None, postprocess_fn=Text(strip=True),
      metric_fns=metrics_lib.by_name(('exact_match',), None)), cache_dir, metrics)


def _cached(task: Task, cache_dir: str | os.PathLike, metrics: Sequence[str] | None) -> Task:
  """A task with its texts as they were when they were cached.

  `task_index` and `on_tokens` stay: labels that are ranked and inputs of `infer` need them.
  """
  if metrics is not None:
    task = dataclasses.replace(task, metric_fns=metrics_lib.by_name(metrics, task.labels))
  return dataclasses.replace(
      task, source=CachedSource(task.name, os.fspath(cache_dir)), preprocess=task_lib.as_is,
      objective=None)
