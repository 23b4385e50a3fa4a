"""Which examples form which batch: pure functions of lengths, seed and epoch.

Every example appears once an epoch. Examples of like length share a batch, which is padded to the
shape of its bucket; the number of shapes, each of which is compiled once, stays small.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from prompt_tuning.errors import UserError

PADDING_ROW = -1  # index of a row that fills up a batch
Shape = tuple[int, int]  # (input length, target length)
_EVAL_ORDER = 0  # seed of the order of evaluation batches, equal in all runs


class Draws(Protocol):
  """Which examples an epoch has, where that is not each of them once; see data.mixture."""

  @property
  def sizes(self) -> np.ndarray:
    """[E, 2] input and target lengths of the places of an epoch, the same in every epoch."""

  def rows(self, seed: int, epoch: int) -> np.ndarray:
    """[E] the example that is in each place, none longer than the place."""


@dataclasses.dataclass(frozen=True)
class Batch:
  """Rows of one batch.

  Attributes:
    rows: [B] int, indices of examples, PADDING_ROW where there is none.
    shape: (input length T, target length L) that it is padded to.
  """
  rows: np.ndarray
  shape: Shape


def choose_buckets(
    lengths: np.ndarray,
    limits: Mapping[str, int | None] | None = None,
    *,
    prompt_length: int = 0,
    max_buckets: int = 6,
    multiple: int = 8,
    targets_multiple: int = 2,
    min_gain: float = 0.03,
    draws: Draws | None = None,
) -> tuple[Shape, ...]:
  """Chooses the padded shapes that waste least on these lengths.

  Input lengths are cut where padding is least (dynamic programming over multiples); a further
  bucket has to save a share of all padded tokens, prompt included, for each costs a compilation.

  Args:
    lengths: [N, 2] input and target lengths.
    limits: most tokens of `inputs` and `targets`; no shape exceeds them.
    prompt_length: places that a prompt adds to every row; shapes do not contain them.
    max_buckets: most shapes.
    multiple: input lengths are multiples of it, but for a limit that is none.
    targets_multiple: the same for targets.
    min_gain: share of tokens that one more bucket must save.
    draws: how often each example comes, for its weight in the choice; None: equally often.

  Returns:
    Shapes, both sides growing.
  """
  limits = limits or {}
  edges = np.unique(_round_up(lengths[:, 0], multiple, limits.get('inputs')))
  seen = lengths if draws is None else draws.sizes
  counts = np.bincount(np.searchsorted(edges, seen[:, 0]), minlength=len(edges)).astype(np.int64)
  best = None
  for k in range(1, min(max_buckets, len(edges)) + 1):
    cost, chosen = _cut(tuple((edges + prompt_length).tolist()), tuple(counts.tolist()), k)
    if best is None or cost < best[0] * (1 - min_gain):
      best = (cost, chosen)
  inputs = np.asarray([edges[i] for i in best[1]])
  bucket = np.searchsorted(inputs, lengths[:, 0])
  longest = np.zeros(len(inputs), np.int64)
  np.maximum.at(longest, bucket, lengths[:, 1])
  # Growing targets let a left-over row move to the next bucket.
  targets = np.maximum.accumulate(_round_up(longest, targets_multiple, limits.get('targets')))
  return tuple(zip(inputs.tolist(), targets.tolist(), strict=True))


def epoch_plan(
    lengths: np.ndarray,
    buckets: Sequence[Shape],
    batch_size: int,
    *,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = True,
    remainder: str = 'pad',
    draws: Draws | None = None,
) -> list[Batch]:
  """All batches of one epoch.

  Rows that do not fill a batch of their bucket move to the next larger one.

  Args:
    lengths: [N, 2] input and target lengths.
    buckets: shapes from choose_buckets.
    batch_size: rows of a batch, over all hosts.
    seed: of the shuffle, together with the epoch.
    epoch: number of the epoch.
    shuffle: in another order every epoch, rows and batches; otherwise in the given order within
      each bucket.
    remainder: 'pad' fills the last batch up with empty rows, 'drop' leaves its examples out.
    draws: the examples of the epoch; None: each once.

  Returns:
    Batches; their number does not depend on seed and epoch.

  Raises:
    UserError: an example that fits no bucket, a batch size below 1.
  """
  _check(lengths, buckets, batch_size, remainder)
  rng = np.random.default_rng([seed, epoch])
  order = np.arange(len(lengths)) if draws is None else draws.rows(seed, epoch)
  if shuffle:
    order = rng.permutation(order)
  bucket_of = np.searchsorted([t for t, _ in buckets], lengths[order, 0])
  batches = []
  left = np.zeros(0, np.int64)
  for k, shape in enumerate(buckets):
    rows = np.concatenate([left, order[bucket_of == k]])
    full = len(rows) // batch_size * batch_size
    batches += [Batch(r, shape) for r in rows[:full].reshape(-1, batch_size)]
    left = rows[full:]
  if len(left) and remainder == 'pad':
    # The shape of the longest row left, not of the last bucket.
    k = np.searchsorted([t for t, _ in buckets], lengths[left, 0].max())
    filler = np.full(batch_size - len(left), PADDING_ROW)
    batches.append(Batch(np.concatenate([left, filler]), buckets[int(k)]))
  if shuffle:
    batches = [batches[i] for i in rng.permutation(len(batches))]
  return batches


def batches_per_epoch(num_examples: int, batch_size: int, remainder: str = 'pad') -> int:
  """Number of batches of every epoch: left-over rows move on, so that only the last is short."""
  whole, rest = divmod(num_examples, batch_size)
  return whole + (1 if rest and remainder == 'pad' else 0)


def host_share(batch: Batch, process_index: int, process_count: int) -> Batch:
  """The rows that one of several hosts reads: consecutive, equally many, all of one shape.

  Raises:
    UserError: the batch cannot be divided equally.
  """
  if len(batch.rows) % process_count:
    raise UserError(
        f'A batch of {len(batch.rows)} rows cannot be divided among {process_count} processes; '
        f'give a multiple of {process_count} as BATCH_SIZE and EVAL_BATCH_SIZE.')
  share = len(batch.rows) // process_count
  return dataclasses.replace(
      batch, rows=batch.rows[process_index * share:(process_index + 1) * share])


@dataclasses.dataclass(frozen=True, eq=False)
class TrainPlan:
  """The endless sequence of training batches; batch number n is a pure function of n.

  Attributes:
    lengths: [N, 2] input and target lengths.
    buckets: shapes.
    batch_size: rows over all hosts.
    seed: of the shuffle.
    remainder: see epoch_plan.
    draws: of a mixture, see epoch_plan.
    process_index: which host this is.
    process_count: number of hosts.
  """
  lengths: np.ndarray
  buckets: tuple[Shape, ...]
  batch_size: int
  seed: int = 0
  remainder: str = 'pad'
  draws: Draws | None = None
  process_index: int = 0
  process_count: int = 1

  def __post_init__(self):
    _check(self.lengths, self.buckets, self.batch_size, self.remainder)
    if not self.epoch_length:
      raise UserError(
          f'{self._examples} examples do not fill one batch of {self.batch_size}; lower '
          'BATCH_SIZE.')

  @property
  def epoch_length(self) -> int:
    """Batches of one epoch."""
    return batches_per_epoch(self._examples, self.batch_size, self.remainder)

  @property
  def _examples(self):
    return len(self.lengths if self.draws is None else self.draws.sizes)

  def __getitem__(self, n: int) -> Batch:
    epoch, place = divmod(n, self.epoch_length)
    return host_share(self._epoch(epoch)[place], self.process_index, self.process_count)

  @functools.cached_property
  def _epoch(self):
    # Two: a prefetching thread may be one epoch ahead.
    return functools.lru_cache(maxsize=2)(lambda epoch: epoch_plan(
        self.lengths, self.buckets, self.batch_size, seed=self.seed, epoch=epoch,
        remainder=self.remainder, draws=self.draws))


def eval_plan(
    lengths: np.ndarray, buckets: Sequence[Shape], batch_size: int) -> list[Batch]:
  """Batches that hold every example once, in a fixed order; one may be filled up with empty rows.

  Args:
    lengths: [N, 2] input and target lengths.
    buckets: shapes.
    batch_size: rows over all hosts.
  """
  return mixed(epoch_plan(lengths, buckets, batch_size, shuffle=False))


def mixed(batches: Sequence) -> list:
  """The batches of an evaluation in a fixed order that mixes their shapes.

  So the first few of them (EVAL_STEPS) hold short and long examples alike.
  """
  order = np.random.default_rng(_EVAL_ORDER).permutation(len(batches))
  return [batches[i] for i in order]


def whole(plan):
  """A training plan of one process that reads all rows."""
  return dataclasses.replace(plan, process_index=0, process_count=1)


def padding_share(lengths: np.ndarray, batches: Sequence[Batch]) -> float:
  """Share of input positions of these batches that hold no token."""
  places = sum(len(b.rows) * b.shape[0] for b in batches)
  tokens = sum(int(lengths[b.rows[b.rows >= 0], 0].sum()) for b in batches)
  return 1.0 - tokens / places


def _check(lengths: np.ndarray, buckets: Sequence[Shape], batch_size: int, remainder: str):
  if batch_size < 1:
    raise UserError(f'BATCH_SIZE={batch_size}; it has to be 1 or more.')
  if remainder not in ('pad', 'drop'):
    raise UserError(f"remainder={remainder!r}; it has to be 'pad' or 'drop'.")
  longest = lengths.max(axis=0)
  if longest[0] > buckets[-1][0] or longest[1] > buckets[-1][1]:
    raise UserError(
        f'Examples have up to {longest[0]} input and {longest[1]} target tokens; the largest '
        f'bucket is {buckets[-1]}.')


def _round_up(values: np.ndarray, multiple: int, limit: int | None) -> np.ndarray:
  rounded = -(-np.asarray(values, np.int64) // multiple) * multiple
  return rounded if limit is None else np.minimum(rounded, limit)


@functools.lru_cache(maxsize=32)
def _cut(edges: tuple[int, ...], counts: tuple[int, ...], k: int) -> tuple[int, tuple[int, ...]]:
  """(padded tokens, indices of edges) of the best k buckets; the last edge is always one."""
  below = np.concatenate([[0], np.cumsum(counts)])
  # cost[j] = least tokens for examples up to edge j with j as last bucket; j from 0.
  cost = below[1:] * np.asarray(edges)
  last = []
  for _ in range(k - 1):
    options = np.full((len(edges), len(edges)), np.iinfo(np.int64).max)
    for j in range(1, len(edges)):
      options[j, :j] = cost[:j] + (below[j + 1] - below[1:j + 1]) * edges[j]
    choice = options.argmin(axis=1)
    best = options.min(axis=1)
    last.append(np.where(best < cost, choice, -1))
    cost = np.minimum(cost, best)
  chosen, j = [], len(edges) - 1
  for choices in [*reversed(last), None]:
    if choices is not None and choices[j] < 0:
      continue  # fewer buckets were as good up to here
    chosen.append(j)
    if choices is not None:
      j = int(choices[j])
  return int(cost[-1]), tuple(reversed(chosen))
