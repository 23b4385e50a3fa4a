"""Several examples in one row, each with its own copy of the prompt.

Packing keeps the batches: those of `plan.epoch_plan` with a single bucket, example for example, are
laid out in fewer and longer rows. Every example is a segment with positions of its own in encoder,
decoder and cross-attention, so losses and gradients are those of one example a row.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from prompt_tuning.data import plan as plan_lib
from prompt_tuning.data.plan import PADDING_ROW, Shape, TrainPlan
from prompt_tuning.errors import UserError
from prompt_tuning.models.t5 import T5Config
from prompt_tuning.peft import soft_prompt

PackedShape = tuple[int, int, int]  # (rows, input slots of a row, target slots of a row)
RowCost = Callable[[int, int], float]  # (input slots, target slots) of a row -> FLOPs

_INPUTS_MULTIPLE, _TARGETS_MULTIPLE = 8, 2
_WIDTHS = 16  # row lengths that are tried, from the longest example to so many times the mean one:
_EXAMPLES_A_ROW = 8
_SAMPLED_EXAMPLES, _SAMPLED_BATCHES = 1024, (4, 32)  # packed to choose shapes; fewest, most
_SPARE_ROWS = 1.15  # of the shape for batches that are longer than all sampled ones


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packing:
  """The shapes that rows are laid out in.

  Attributes:
    shapes: (rows R, input slots T, target slots L), prompts included, the cheapest first; the last
      holds any batch.
    prompt_length: slots that every example keeps free for a soft prompt, P.
    placement: where among its tokens they are; see peft.soft_prompt.
  """
  shapes: tuple[PackedShape, ...]
  prompt_length: int = 0
  placement: str = 'prefix'

  def pack(self, lengths: np.ndarray, examples: np.ndarray) -> 'PackedBatch':
    """Lays out the examples of one batch in the first shape that holds them.

    Args:
      lengths: [N, 2] input and target lengths of all examples.
      examples: [n] indices; PADDING_ROW is passed over.
    """
    examples = examples[examples >= 0]
    sizes = _sizes(lengths[examples], self.prompt_length)
    for shape in self.shapes:
      packed = fill_rows(sizes, *shape[1:])
      if len(packed) <= shape[0]:
        break
    rows = np.full((shape[0], max(map(len, packed))), PADDING_ROW)
    for row, members in zip(rows, packed, strict=False):
      row[:len(members)] = examples[members]
    return PackedBatch(rows, shape[1:], self)


@dataclasses.dataclass(frozen=True)
class PackedBatch:
  """Examples of one batch, row by row.

  Attributes:
    rows: [R, S] int, indices of the examples of each row, PADDING_ROW behind them.
    shape: (input slots T, target slots L) of a row.
    packing: which chose the shape.
  """
  rows: np.ndarray
  shape: Shape
  packing: Packing


@dataclasses.dataclass(frozen=True, eq=False)
class PackedPlan:
  """The batches of a plan, packed; batch number n is a pure function of n.

  Attributes:
    plan: which examples a batch holds, over all hosts.
    packing: how they are laid out.
    process_index: which host this is; it reads consecutive rows.
    process_count: number of hosts; it divides the rows of every shape.
  """
  plan: TrainPlan
  packing: Packing
  process_index: int = 0
  process_count: int = 1

  def __post_init__(self):
    if any(shape[0] % self.process_count for shape in self.packing.shapes):
      raise UserError(
          f'Packed batches of {[shape[0] for shape in self.packing.shapes]} rows cannot be divided '
          f'among {self.process_count} processes; choose the packing with a row_multiple of it.')

  @property
  def epoch_length(self) -> int:
    """Batches of one epoch."""
    return self.plan.epoch_length

  @property
  def batch_size(self) -> int:
    """Examples of a batch."""
    return self.plan.batch_size

  @property
  def remainder(self) -> str:
    """What becomes of the examples that do not fill a batch."""
    return self.plan.remainder

  @property
  def buckets(self) -> tuple[PackedShape, ...]:
    """Every (R, T, L) that a batch can have, over all hosts."""
    return self.packing.shapes

  def __getitem__(self, n: int) -> PackedBatch:
    batch = self.packing.pack(self.plan.lengths, self.plan[n].rows)
    share = len(batch.rows) // self.process_count
    return dataclasses.replace(
        batch, rows=batch.rows[self.process_index * share:(self.process_index + 1) * share])


def packed_plan(packing: Packing, *, lengths: np.ndarray, process_index: int = 0,
                process_count: int = 1, **options) -> PackedPlan:
  """The packed form of a TrainPlan with a single bucket; `options` are those of TrainPlan."""
  plan = TrainPlan(lengths=lengths, buckets=one_bucket(lengths), **options)
  return PackedPlan(plan, packing, process_index, process_count)


def fill_rows(sizes: np.ndarray, inputs: int, targets: int) -> list[list[int]]:
  """Best-fit decreasing: the longest example first, each into the fullest row that has room.

  Args:
    sizes: [n, 2] input slots (prompt included) and target slots of each example, none larger than
      a row.
    inputs: input slots of a row.
    targets: target slots of a row.

  Returns:
    Indices of each row's examples; ties go by index, so that the result is one of the sizes alone.
  """
  order = np.argsort(-np.max(sizes / (inputs, targets), axis=1), kind='stable')
  room = np.tile([inputs, targets], (len(sizes), 1))
  rows = []
  for example in order:
    fits = np.flatnonzero((room[:len(rows)] >= sizes[example]).all(axis=1))
    if len(fits):
      row = int(fits[room[fits, 0].argmin()])
    else:
      row = len(rows)
      rows.append([])
    rows[row].append(int(example))
    room[row] -= sizes[example]
  return rows


def row_cost(config: T5Config) -> RowCost:
  """FLOPs of the forward pass of one row as a function of its slots (prompt included).

  Matrix products alone: linear ones grow with the slots, scores with their square. A training step
  takes a constant multiple of it.
  """
  inner = config.num_heads * config.head_dim
  projection = 2 * config.emb_dim * inner
  mlp = 2 * config.emb_dim * config.mlp_dim * (len(config.mlp_activations) + 1)
  encoder, decoder = config.num_encoder_layers, config.num_decoder_layers
  head = 2 * config.emb_dim * config.vocab_size

  def cost(inputs, targets):
    # Keys and values of cross-attention are made from every input slot.
    linear = inputs * (encoder * (4 * projection + mlp) + decoder * 2 * projection)
    linear += targets * (decoder * (6 * projection + mlp) + head)
    pairs = encoder * inputs**2 + decoder * (targets**2 + inputs * targets)
    return float(linear + 4 * inner * pairs)
  return cost


def choose_packing(
    lengths: np.ndarray,
    batch_size: int,
    cost: RowCost,
    *,
    prompt_length: int = 0,
    placement: str = 'prefix',
    max_shapes: int = 6,
    row_multiple: int = 1,
) -> Packing:
  """Chooses the shapes that cost least on a sample of batches.

  The first holds every sampled batch; each further one is that which then saves most. Two are spare
  ones, seldom seen: for batches longer than all sampled ones, and one row an example.

  Args:
    lengths: [N, 2] input and target lengths.
    batch_size: examples of a batch.
    cost: of a row, from row_cost.
    prompt_length: slots of a soft prompt in every example.
    placement: of the soft prompt.
    max_shapes: most shapes without the spare ones; each is compiled once, when it is first seen.
    row_multiple: rows of a batch are a multiple of it.
  """
  sample = [_sizes(lengths[batch], prompt_length) for batch in _sample(lengths, batch_size)]
  sizes = _sizes(lengths, prompt_length)
  shapes, costs = [], []
  for slots in _layouts(sizes, sample, batch_size):
    needed = _up(np.asarray([len(fill_rows(batch, *slots)) for batch in sample]), row_multiple)
    for rows in np.unique(needed):
      shapes.append((int(rows), *slots))
      costs.append(np.where(needed <= rows, rows * cost(*slots), np.inf))
  chosen = [shapes[i] for i in _cheapest(np.asarray(costs), max_shapes)]
  rows, *slots = chosen[0]
  spare = (_up(int(np.ceil(_SPARE_ROWS * rows)), row_multiple), *slots)
  single = (_up(batch_size, row_multiple), _up(int(sizes[:, 0].max()), _INPUTS_MULTIPLE),
            _up(int(sizes[:, 1].max()), _TARGETS_MULTIPLE))
  price = lambda shape: shape[0] * cost(*shape[1:])  # noqa: E731
  cheaper = {shape for shape in (*chosen, spare) if price(shape) < price(single)}
  return Packing(shapes=(*sorted(cheaper, key=price), single), prompt_length=prompt_length,
                 placement=placement)


def _cheapest(costs, most):
  """Greedy choice of up to `most` rows of costs [shapes, batches] whose minimum is least."""
  chosen, best = [], np.full(costs.shape[1], np.inf)
  while len(chosen) < most:
    totals = np.minimum(costs, best).sum(axis=1)
    if totals.min() >= best.sum():
      break
    chosen.append(int(totals.argmin()))
    best = np.minimum(best, costs[chosen[-1]])
  return chosen


def wasted_flops(lengths: np.ndarray, batches: Sequence, cost: RowCost,
                 prompt_length: int = 0) -> float:
  """Share of the FLOPs of these batches that no padding and no neighbour in a row would save.

  Args:
    lengths: [N, 2] input and target lengths.
    batches: plan.Batch or PackedBatch.
    cost: of a row.
    prompt_length: slots of a soft prompt, which count as needed.
  """
  spent = needed = 0.0
  for batch in batches:
    inputs, targets = batch.shape
    inserted = 0 if isinstance(batch, PackedBatch) else prompt_length
    spent += len(batch.rows) * cost(inputs + inserted, targets)
    sizes = _sizes(lengths[batch.rows[batch.rows >= 0]], prompt_length)
    needed += sum(cost(*size) for size in sizes.tolist())
  return 1.0 - needed / spent


def assemble(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], batch: PackedBatch) -> dict[str, np.ndarray]:
  """Writes examples into the rows of a packed batch.

  The slots of the prompt hold token 0, as padding does: their segment ids say that they are not,
  and what `embed` makes of the token is replaced.

  Args:
    pairs: (input ids, target ids) of the examples in the order of batch.rows.
    batch: from Packing.pack.

  Returns:
    encoder_input_tokens, encoder_segment_ids (1, 2, ... in each row, 0 at padding) and
    encoder_positions (from 0 in each segment) [R, T]; decoder_input_tokens (targets shifted right
    within each segment), decoder_target_tokens, decoder_segment_ids and decoder_positions [R, L],
    all int32; decoder_loss_weights [R, L] float32.
  """
  packing, count = batch.packing, len(batch.rows)
  encoder = _Side(count, batch.shape[0])
  decoder = _Side(count, batch.shape[1], ('shifted', 'weights'))
  remaining = iter(pairs)
  for row, members in enumerate(batch.rows):
    for segment, _ in enumerate(members[members >= 0], start=1):
      inputs, targets = next(remaining)
      start = int(soft_prompt.slot_start(packing.placement, np.asarray(len(inputs))))
      encoder.write(row, segment, np.insert(
          inputs, start, np.zeros(packing.prompt_length, inputs.dtype)))
      decoder.write(row, segment, targets, shifted=np.r_[0, targets[:-1]][:len(targets)],
                    weights=1)
  return {
      'encoder_input_tokens': encoder['tokens'],
      'encoder_segment_ids': encoder['segment_ids'],
      'encoder_positions': encoder['positions'],
      'decoder_input_tokens': decoder['shifted'],
      'decoder_target_tokens': decoder['tokens'],
      'decoder_segment_ids': decoder['segment_ids'],
      'decoder_positions': decoder['positions'],
      'decoder_loss_weights': decoder['weights'].astype(np.float32),
  }


class _Side(dict):
  """Arrays [R, T] of one side, written segment behind segment."""

  def __init__(self, rows, slots, more=()):
    super().__init__({name: np.zeros((rows, slots), np.int32)
                      for name in ('tokens', 'segment_ids', 'positions', *more)})
    self._used = [0] * rows

  def write(self, row, segment, tokens, **more):
    place = slice(self._used[row], self._used[row] + len(tokens))
    self._used[row] = place.stop
    values = {'tokens': tokens, 'segment_ids': segment, 'positions': np.arange(len(tokens))}
    for name, value in (values | more).items():
      self[name][row, place] = value


def one_bucket(lengths: np.ndarray) -> tuple[Shape]:
  """The single shape that holds every example."""
  return (tuple(lengths.max(axis=0).tolist()),)


def _sizes(lengths, prompt_length):
  return lengths + np.asarray([prompt_length, 0])


def _up(value, multiple):
  return -(-value // multiple) * multiple


def _sample(lengths, batch_size):
  """Examples of the batches that a layout is chosen on."""
  fewest, most = _SAMPLED_BATCHES
  wanted = int(np.clip(_SAMPLED_EXAMPLES // batch_size, fewest, most))
  batches, epoch = [], 0
  while len(batches) < wanted:
    batches += plan_lib.epoch_plan(lengths, one_bucket(lengths), batch_size, epoch=epoch)
    epoch += 1
  return [batch.rows[batch.rows >= 0] for batch in batches[:wanted]]


def _layouts(sizes, sample, batch_size):
  """(T, L) that are worth a try: each holds the longest example."""
  (inputs, targets), mean = sizes.max(axis=0), sizes[:, 0].mean()
  widest = max(1.25 * inputs, min(_EXAMPLES_A_ROW, batch_size) * mean)
  widths = _up(np.geomspace(inputs, widest, _WIDTHS).astype(int), _INPUTS_MULTIPLE)
  for width in np.unique(widths).tolist():
    totals = np.concatenate([
        [batch[row, 1].sum() for row in fill_rows(batch, width, np.iinfo(np.int64).max)]
        for batch in sample])
    fitting = np.maximum(targets, np.quantile(totals, (0.5, 0.75, 1.0))).astype(int)
    for rounded in np.unique(_up(fitting, _TARGETS_MULTIPLE)).tolist():
      yield width, rounded
