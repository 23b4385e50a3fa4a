"""Several tasks trained together, each at its rate.

An epoch of a mixture has as many examples as its tasks have together, and of each task the same
number in every epoch: its rate's share, to the nearest example and at least one. Where a task has
fewer examples than that, each comes once or several times; the rest of its share is drawn evenly
over the sizes, other examples in every epoch, each equally often in the long run. So all epochs are
of the same sizes, and their order is random. SeqIO draws a task for every example instead, and
repeats each task without end: the same expectation with more chance.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from prompt_tuning.data import metrics
from prompt_tuning.data import task as task_lib
from prompt_tuning.data.task import Task
from prompt_tuning.data.views import Joined
from prompt_tuning.errors import UserError

_GOLDEN = (5**0.5 - 1) / 2  # whose multiples fill [0, 1) most evenly
Rate = float | Callable[[int], float]  # a number, or number of training examples -> number


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByExamples:
  """A rate that grows with the task's number of training examples, min(n, maximum)^(1 / T).

  Section 3.5.2 of Raffel et al. 2020, https://arxiv.org/abs/1910.10683.

  Attributes:
    maximum: the artificial limit of the number of examples, K; None for none.
    temperature: T; 1 is proportional to the number, more is nearer to equal rates.
  """
  maximum: int | None = None
  temperature: float = 1.0

  def __post_init__(self):
    if self.temperature <= 0 or self.maximum is not None and self.maximum <= 0:
      raise UserError(f'A mixture has maximum={self.maximum} and temperature={self.temperature}; '
                      'both have to be above 0 (maximum may be None).')

  def __call__(self, count: int) -> float:
    return min(count, self.maximum or count) ** (1 / self.temperature)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
  """Tasks with rates; task.register makes it known by its name.

  Training reads the training split of every task that has one and a rate above 0. An evaluation
  measures each task on its own split with its own metrics.

  Attributes:
    name: how users ask for it.
    parts: (task, rate) of each task.
    scored: names of the tasks that are evaluated; those of a group count as one task in the
      average. None: every task with metrics that has its evaluation split, by itself.
  """
  name: str
  parts: tuple[tuple[Task, Rate], ...]
  scored: tuple[tuple[str, ...], ...] | None = None

  def __post_init__(self):
    names = [task.name for task in self.members]
    unknown = set(itertools.chain(*self.scored or ())) - set(names)
    if not names or len(set(names)) < len(names) or unknown:
      raise UserError(f'Mixture {self.name!r} has the tasks {", ".join(names) or "none"}'
                      f'{"; it scores " + ", ".join(sorted(unknown)) if unknown else ""}. Give '
                      'different tasks, and score some of them.')
    for task, rate in self.parts:
      if not callable(rate) and not (math.isfinite(rate) and rate >= 0):
        raise UserError(f'Mixture {self.name!r} has {task.name} at rate {rate}; it has to be a '
                        'number from 0 on.')

  @property
  def members(self) -> tuple[Task, ...]:
    """All tasks."""
    return tuple(task for task, _ in self.parts)

  @property
  def trained(self) -> tuple[Task, ...]:
    """The tasks that training reads.

    Raises:
      UserError: there is none.
    """
    found = tuple(task for task, rate in self.parts
                  if rate != 0 and task.train_split in task.splits)
    if not found:
      raise UserError(f'Mixture {self.name!r} has nothing to train on: none of its tasks has a '
                      'rate above 0 and a training split.')
    return found

  @property
  def evaluated(self) -> tuple[Task, ...]:
    """The tasks that are evaluated.

    Raises:
      UserError: there is none.
    """
    if self.scored is not None:
      by_name = {task.name: task for task in self.members}
      return tuple(by_name[name] for group in self.scored for name in group)
    found = tuple(task for task in self.members if task.eval_split in task.splits)
    if not found:
      raise UserError(f'Mixture {self.name!r} has nothing to evaluate: none of its tasks has its '
                      'evaluation split.')
    return tuple(task for task in found if task.metric_fns) or found

  @property
  def labels(self) -> tuple[str, ...] | None:
    """The labels of all tasks with a rate above 0, each once; None where none has labels."""
    labels = itertools.chain(*(task.labels or () for task, rate in self.parts if rate != 0))
    return tuple(dict.fromkeys(labels)) or None

  def average(self, results: Mapping[str, Mapping[str, float]]) -> float:
    """The mean over tasks, and first over the metrics of each, as GLUE and SuperGLUE define it.

    Args:
      results: task -> its metrics, of every task that is evaluated.
    """
    groups = self.scored or tuple((name,) for name in results)
    return metrics.average({group[0]: {
        f'{name}/{metric}': value for name in group for metric, value in results[name].items()
    } for group in groups})

  def draws(self, cache: Joined) -> 'MixedDraws':
    """How the examples of `trained` are drawn, which the cache holds in this order."""
    used = {task.name for task in self.trained}
    given = [rate for task, rate in self.parts if task.name in used]
    rates = [rate(size) if callable(rate) else rate
             for rate, size in zip(given, cache.sizes, strict=True)]
    return MixedDraws(
        tuple(part.lengths for part in cache.parts.values()), _shares(rates, len(cache)))

  def read_from(self, data_dir: str) -> 'Mixture':
    """The same mixture with files of a folder; tasks that are not used are left out.

    Raises:
      UserError: a task that is used does not come from a folder.
    """
    scored = set(itertools.chain(*self.scored or ()))
    return dataclasses.replace(self, parts=tuple(
        (task.read_from(data_dir), rate) for task, rate in self.parts
        if rate != 0 or self.scored is None or task.name in scored))


@dataclasses.dataclass(frozen=True, eq=False)
class MixedDraws:
  """The examples of each epoch of a mixture: plan.Draws.

  Attributes:
    lengths: [n, 2] of each task; in the cache their examples stand one behind the other.
    counts: how many examples of each task an epoch has.
  """
  lengths: tuple[np.ndarray, ...]
  counts: tuple[int, ...]

  @functools.cached_property
  def sizes(self) -> np.ndarray:
    """[E, 2] input and target lengths of the places of an epoch."""
    return np.concatenate([part.sizes for part in self._parts])

  def rows(self, seed: int, epoch: int) -> np.ndarray:
    """[E] the example that is in each place."""
    starts = np.cumsum([0, *map(len, self.lengths)])
    return np.concatenate([start + part.rows([seed, number], epoch) for number, (start, part) in
                           enumerate(zip(starts, self._parts, strict=False))])

  @functools.cached_property
  def _parts(self):
    return [_TaskDraws(*each) for each in zip(self.lengths, self.counts, strict=True)]


class _TaskDraws:
  """`count` places for the n examples of a task: whole passes, then one for each nth of the rest.

  The examples stand in the order of sizes. A further place belongs to an equal part of this order,
  which may begin and end within an example, and moves over it by the golden ratio every epoch.
  """

  def __init__(self, lengths: np.ndarray, count: int):
    n = len(lengths)
    self._order = np.lexsort((lengths[:, 1], lengths[:, 0]))
    self._passes, self._more = divmod(count, n)
    bounds = np.arange(self._more + 1) * n
    more = max(self._more, 1)
    self._first, self._last = bounds[:-1] // more, -(-bounds[1:] // more) - 1
    self._width = n / more
    ordered = lengths[self._order]
    # The largest of each part: every second one of what lies between its ends and the next part's.
    ends = np.stack([self._first, self._last + 1], axis=1).ravel()
    largest = np.maximum.reduceat(np.append(ordered, ordered[-1:], axis=0), ends)[::2]
    self.sizes = np.concatenate([np.tile(ordered, (self._passes, 1)), largest])

  def rows(self, seed: Sequence[int], epoch: int) -> np.ndarray:
    """The example of each place."""
    starts = np.random.default_rng(seed).random(self._more)
    inside = (starts + epoch * _GOLDEN) % 1
    found = ((np.arange(self._more) + inside) * self._width).astype(int)
    found = np.clip(found, self._first, self._last)
    return np.concatenate([np.tile(self._order, self._passes), self._order[found]])


def make(tasks: Sequence[str], rates: str | Sequence[float] | Mapping[str, float] = 'examples',
         maximum: int | None = None, temperature: float = 1.0, module: str | None = None,
         data_dir: str | None = None) -> Mixture:
  """A mixture of a configuration.

  Args:
    tasks: MIXTURE_TASKS, names of tasks.
    rates: MIXTURE_RATES: 'examples' (by their number), 'equal', or numbers, in the order of the
      tasks or by name.
    maximum: MIXTURE_MAXIMUM, see ByExamples.
    temperature: MIXTURE_TEMPERATURE.
    module: MIXTURE_OR_TASK_MODULE.
    data_dir: DATA_DIR; of several datasets a folder that holds theirs.

  Raises:
    UserError: no such task, or rates that do not fit.
  """
  if isinstance(tasks, str) or not isinstance(tasks, Sequence) or not tasks:
    raise UserError(f"MIXTURE_TASKS is {tasks!r}; give a list of names, as in ['demo_nli', "
                    "'demo_sentiment'].")
  if isinstance(rates, Mapping) and set(rates) == set(tasks):
    rates = [rates[name] for name in tasks]
  if len(tasks) == 1:
    rates = 'equal'  # any rate is the same: a member of a mixture is asked for alone
  by_word = {'examples': ByExamples(maximum=maximum, temperature=temperature), 'equal': 1.0}
  if isinstance(rates, str) and rates in by_word:
    rates = [by_word[rates]] * len(tasks)
  elif isinstance(rates, str | Mapping) or not isinstance(rates, Sequence) or (
      len(rates) != len(tasks) or not all(isinstance(rate, int | float) for rate in rates)):
    raise UserError(f"MIXTURE_RATES is {rates!r}; give 'examples', 'equal', or a number for each "
                    f'of {", ".join(map(str, tasks))}: a list, or a mapping from their names.')
  found = [task_lib.get(name, module, data_dir) for name in tasks]
  mixed = [task.name for task in found if isinstance(task, Mixture)]
  if mixed:
    raise UserError(f'MIXTURE_TASKS names {", ".join(mixed)}, which is a mixture itself; name '
                    'its tasks.')
  return Mixture(name='+'.join(task.name for task in found),
                 parts=tuple(zip(found, rates, strict=True)))


def _shares(rates: Sequence[float], total: int) -> tuple[int, ...]:
  """Whole numbers in the proportion of the rates with about the sum `total`, none below 1."""
  exact = np.asarray(rates, float) * (total / math.fsum(rates))
  counts = np.floor(exact).astype(int)
  largest = np.argsort(counts - exact, kind='stable')
  counts[largest[:total - counts.sum()]] += 1
  return tuple(np.maximum(counts, 1).tolist())
