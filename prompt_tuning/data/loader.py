"""Batches as arrays: the plan says which rows, the cache has them, Grain reads ahead.

The state of a training loader is one number, the index of the next batch.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from prompt_tuning.data import packing as packing_lib
from prompt_tuning.data import plan as plan_lib
from prompt_tuning.data.cache import Cache
from prompt_tuning.data.packing import PackedBatch, PackedPlan, PackedShape, Packing
from prompt_tuning.data.plan import Batch, Draws, Shape, TrainPlan
from prompt_tuning.errors import UserError

Arrays = dict[str, np.ndarray]

_READ_AHEAD = 4  # batches prepared while a step runs
_ENDLESS = 2**31 - 1  # Grain wants a length; no run has this many steps


@dataclasses.dataclass(frozen=True)
class EvalBatch:
  """One batch of an evaluation.

  Attributes:
    arrays: what the model takes, see `assemble`; of several processes, this one's rows.
    records: for each example of all processes, row after row, what Cache.records gives, None for a
      place that is filled up.
  """
  arrays: Arrays
  records: tuple[dict[str, Any] | None, ...]

  @property
  def ids(self) -> tuple[str | None, ...]:
    """Example id of each record, None for a place that is filled up."""
    return tuple(None if r is None else r['id'] for r in self.records)


class TrainLoader:
  """Endless iterator of training batches.

  Args:
    cache: the tokenised split.
    plan: which rows batch n holds.
    read_ahead: batches prepared by a thread; 0 reads when asked.
    prompt_ids: [N] which of several prompts each example uses, see SoftPrompt.num_prompts.
  """

  def __init__(self, cache: Cache, plan: TrainPlan | PackedPlan, read_ahead: int = _READ_AHEAD,
               prompt_ids: np.ndarray | None = None):
    import grain
    self.cache = cache
    self.plan = plan
    options = grain.ReadOptions(
        num_threads=min(1, read_ahead), prefetch_buffer_size=read_ahead)
    self._iterator = iter(
        grain.MapDataset.source(_Batches(cache, plan, prompt_ids)).to_iter_dataset(options))

  def __iter__(self) -> Iterator[Arrays]:
    return self

  def __next__(self) -> Arrays:
    """The next batch, see `assemble` and, of packed rows, `packing.assemble`."""
    return next(self._iterator)

  @property
  def index(self) -> int:
    """Number of batches taken so far: all there is to save."""
    return int(self._iterator.get_state()['next_index'])

  @index.setter
  def index(self, value: int):
    if not 0 <= value < _ENDLESS:
      raise UserError(f'The data index is {value}; it has to be 0 or more.')
    self._iterator.set_state({'next_index': int(value)})

  @property
  def epoch(self) -> float:
    """Passes over the data so far."""
    return self.index / self.plan.epoch_length

  @property
  def shapes(self) -> tuple[Shape | PackedShape, ...]:
    """Every (T, L), of packed batches every (rows, T, L), that a batch can have."""
    return self.plan.buckets

  def close(self):
    """Stops the reading thread."""
    self._iterator.close()


class EvalLoader:
  """Iterable of EvalBatch; every pass gives every example once, in the same order.

  Args:
    cache: the tokenised split.
    batches: from plan.eval_plan; a packed one comes with encoder_slots, see decoding.encoding.
    process_index: which host this is.
    process_count: number of hosts.
    prompt_ids: [N] which of several prompts each example uses, see SoftPrompt.num_prompts.
  """

  def __init__(self, cache: Cache, batches: Sequence[Batch | PackedBatch], process_index: int = 0,
               process_count: int = 1, prompt_ids: np.ndarray | None = None):
    self.cache = cache
    self.batches = tuple(batches)
    self._share = process_index, process_count
    self._prompt_ids = prompt_ids

  def __len__(self) -> int:
    return len(self.batches)

  def __iter__(self) -> Iterator[EvalBatch]:
    for batch in self.batches:
      real = batch.rows[batch.rows >= 0]
      records = iter(self.cache.records(real) if len(real) else ())
      arrays = read(self.cache, plan_lib.host_share(batch, *self._share), self._prompt_ids)
      if isinstance(batch, PackedBatch):
        arrays['encoder_slots'] = packing_lib.slots_of_examples(
            arrays['encoder_segment_ids'], batch.rows.shape[1], batch.longest)
      yield EvalBatch(
          arrays, tuple(next(records) if row >= 0 else None for row in batch.rows.ravel()))


def training_plan(
    cache: Cache,
    batch_size: int,
    *,
    seed: int = 0,
    buckets: Sequence[Shape] | None = None,
    packing: Packing | None = None,
    remainder: str = 'pad',
    draws: Draws | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainPlan | PackedPlan:
  """Which examples form which training batch; buckets are chosen from the lengths unless given.

  Args:
    cache: the tokenised split.
    batch_size: rows over all hosts.
    seed: of the shuffle.
    buckets: shapes, see plan.choose_buckets.
    packing: lets examples share rows, in place of buckets; chosen for these lengths and this
      batch_size.
    remainder: what becomes of the rows that do not fill a batch, see plan.epoch_plan.
    draws: which examples an epoch of a mixture has.
    process_index: which host this is.
    process_count: number of hosts.
  """
  options = dict(lengths=cache.lengths, seed=seed, remainder=remainder, draws=draws,
                 process_index=process_index, process_count=process_count)
  if packing is not None:
    return PackedPlan(packing=packing, **options)
  return TrainPlan(buckets=tuple(buckets or buckets_of(cache, draws=draws)), batch_size=batch_size,
                   **options)


def for_evaluation(
    cache: Cache,
    batch_size: int,
    *,
    buckets: Sequence[Shape] | None = None,
    packing: Packing | None = None,
    max_batches: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> EvalLoader:
  """Evaluation batches of a cache.

  Args:
    cache: the tokenised split.
    batch_size: rows over all hosts.
    buckets: shapes; None chooses them from the lengths.
    packing: lets examples share rows of the encoder, in place of buckets.
    max_batches: EVAL_STEPS, so many batches, the same ones every time; None is the whole split.
    process_index: which host this is.
    process_count: number of hosts.

  Raises:
    UserError: max_batches is below 1.
  """
  if max_batches is not None and max_batches < 1:
    raise UserError(f'EVAL_STEPS is {max_batches}; give 1 or more, or None for the whole split.')
  if packing is None:
    batches = plan_lib.eval_plan(cache.lengths, tuple(buckets or buckets_of(cache)), batch_size)
  else:
    batches = plan_lib.mixed(packing.epoch(cache.lengths, shuffle=False))
  return EvalLoader(cache, batches[:max_batches], process_index, process_count)


def buckets_of(cache: Cache, prompt_length: int = 0, max_buckets: int = 6,
               draws: Draws | None = None) -> tuple[Shape, ...]:
  """Buckets chosen from the lengths of a cache, within its TASK_FEATURE_LENGTHS."""
  return plan_lib.choose_buckets(
      cache.lengths, cache.info['key']['lengths'], prompt_length=prompt_length,
      max_buckets=max_buckets, draws=draws)


def read(cache: Cache, batch: Batch | PackedBatch, prompt_ids: np.ndarray | None = None) -> Arrays:
  """Reads and pads, or packs, the examples of one batch.

  Args:
    cache: the tokenised split.
    batch: which examples.
    prompt_ids: [N] of all examples; the batch then has those of its own, as they lie in its rows.
  """
  real = batch.rows >= 0
  pairs = cache.tokens(batch.rows[real]) if real.any() else []
  if isinstance(batch, PackedBatch):
    arrays = packing_lib.assemble(pairs, batch)
  else:
    arrays = assemble(pairs, np.flatnonzero(real), len(batch.rows), batch.shape)
  if prompt_ids is not None:
    arrays['prompt_ids'] = np.where(real, prompt_ids[batch.rows], 0).astype(np.int32)
  return arrays


def assemble(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], places: Sequence[int], batch_size: int,
    shape: Shape) -> Arrays:
  """Pads examples to one shape and shifts the targets for the decoder.

  Args:
    pairs: (input ids, target ids) of each example, with end of sequence.
    places: the row of each.
    batch_size: number of rows B; those without an example are zero and weigh nothing.
    shape: (T, L).

  Returns:
    encoder_input_tokens [B, T], decoder_input_tokens [B, L] (targets shifted right behind a 0),
    decoder_target_tokens [B, L], all int32, and decoder_loss_weights [B, L] float32.
  """
  encoder = np.zeros((batch_size, shape[0]), np.int32)
  targets = np.zeros((batch_size, shape[1]), np.int32)
  weights = np.zeros((batch_size, shape[1]), np.float32)
  for place, (inputs, target) in zip(places, pairs, strict=True):
    encoder[place, :len(inputs)] = inputs
    targets[place, :len(target)] = target
    weights[place, :len(target)] = 1.0
  shifted = np.zeros_like(targets)
  shifted[:, 1:] = targets[:, :-1]
  return {
      'encoder_input_tokens': encoder,
      'decoder_input_tokens': shifted,
      'decoder_target_tokens': targets,
      'decoder_loss_weights': weights,
  }


class _Batches:
  """Random access to batch n, as Grain's sources are asked for it."""

  def __init__(self, cache: Cache, plan: TrainPlan | PackedPlan, prompt_ids: np.ndarray | None):
    self._cache = cache
    self._plan = plan
    self._prompt_ids = prompt_ids

  def __len__(self) -> int:
    return _ENDLESS

  def __getitem__(self, n: int) -> Arrays:
    return read(self._cache, self._plan[n], self._prompt_ids)
