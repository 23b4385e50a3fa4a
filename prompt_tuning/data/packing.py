"""Several examples in one row, each with its own copy of the prompt.

The plan of a packed epoch is a pattern over sizes: examples are ordered by size, the pattern says
which ranks of that order share a row, and every epoch shuffles examples of equal size, rows and
batches. So shapes are known beforehand and fit exactly, and nothing is searched while training.
Every example is a segment with positions of its own in encoder, decoder and cross-attention: losses
and gradients are those of one example a row.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from prompt_tuning.data import plan as plan_lib
from prompt_tuning.data.plan import PADDING_ROW, Batch, Shape
from prompt_tuning.errors import UserError
from prompt_tuning.models import layers
from prompt_tuning.models.t5 import T5Config
from prompt_tuning.peft import soft_prompt

PackedShape = tuple[int, int, int]  # (rows, input slots of a row, target slots of a row)
RowCost = Callable[[int, int], float]  # (input slots, target slots) of a row -> FLOPs

_INPUTS_MULTIPLE, _TARGETS_MULTIPLE = 8, 2
_MOST_IN_A_ROW = 8
_SHARING_PAYS = 0.97  # of the FLOPs: masks and position biases of a packed row are not counted
_FEWEST_BATCHES = 2  # of a group: fewer would hold the same examples in every epoch
_WINDOWS = (1, 8, 32)  # that are tried, see fold
_CUTS = 12  # places where a cut is tried: so many evenly spaced, and as many towards the largest
_SAMPLE = 4096  # sizes that tell what a group costs


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
  """Examples of like sizes, whose rows have one shape.

  Attributes:
    ranks: [n, S] int, for each row the ranks of its examples in the order of sizes, the longest
      first, PADDING_ROW where there is none.
    slots: (T, L), input slots, prompts included, and target slots of a row.
    longest: at least the input slots of the longest example, prompt included.
  """
  ranks: np.ndarray
  slots: Shape
  longest: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Packing:
  """How the examples of an epoch share rows.

  Attributes:
    groups: every rank is in one of them.
    batch_size: examples of a batch B; those of a group make batches of B / S rows.
    prompt_length: slots that every example keeps free for a soft prompt, P.
    placement: where among its tokens they are; see peft.soft_prompt.
  """
  groups: tuple[Group, ...]
  batch_size: int
  prompt_length: int = 0
  placement: str = 'prefix'

  @property
  def shapes(self) -> tuple[PackedShape, ...]:
    """(rows, T, L), prompts included, of every group's batches."""
    return tuple((self.batch_size // g.ranks.shape[1], *g.slots) for g in self.groups)

  def epoch(self, lengths: np.ndarray, *, seed: int = 0, epoch: int = 0, shuffle: bool = True,
            remainder: str = 'pad', rows: np.ndarray | None = None,
            ) -> list['Batch | PackedBatch']:
    """All batches of one epoch; arguments as for plan.epoch_plan.

    With `rows` [E], the lengths are those of places, each of which holds that example.

    Which examples of equal size stand where, which rows share a batch and the order of the batches
    are random; so a batch repeats only where a group is just one, at most that of the longest
    examples. A group with one example a row gives batches that are not packed.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths)) if shuffle else np.arange(len(lengths))
    by_size = order[_order(lengths[order])]
    by_size = np.append(by_size if rows is None else rows[by_size], PADDING_ROW)
    batches = []
    for group in self.groups:
      shared = by_size[group.ranks]
      if shuffle:
        shared = shared[rng.permutation(len(shared))]
      whole, rest = divmod(np.count_nonzero(group.ranks >= 0), self.batch_size)
      size = self.batch_size // shared.shape[1]
      parts = [shared[i * size:(i + 1) * size] for i in range(whole)]
      if rest and remainder == 'pad':
        left = shared[whole * size:]
        parts.append(np.pad(left, ((0, size - len(left)), (0, 0)), constant_values=PADDING_ROW))
      batches += [self._batch(part, group) for part in parts]
    if shuffle:
      batches = [batches[i] for i in rng.permutation(len(batches))]
    return batches

  def _batch(self, rows, group):
    inputs, targets = group.slots
    if rows.shape[1] == 1:
      return Batch(rows[:, 0], (inputs - self.prompt_length, targets))
    return PackedBatch(rows, group.slots, self.prompt_length, self.placement, group.longest)


@dataclasses.dataclass(frozen=True)
class PackedBatch:
  """Examples of one batch, row by row.

  Attributes:
    rows: [R, S] int, indices of the examples of each row, PADDING_ROW where there is none.
    shape: (input slots T, target slots L) of a row.
    prompt_length: free slots of every example, P.
    placement: where they are.
    longest: see Group; needed where the examples are to be taken apart again.
  """
  rows: np.ndarray
  shape: Shape
  prompt_length: int = 0
  placement: str = 'prefix'
  longest: int = 0


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PackedPlan:
  """The endless sequence of packed training batches; batch number n is a pure function of n.

  Attributes:
    lengths: [N, 2] input and target lengths; those that the packing was chosen for.
    packing: how they share rows.
    seed: of the shuffle.
    remainder: see plan.epoch_plan.
    draws: of a mixture; the packing was chosen for its `sizes`.
    process_index: which host this is; it reads consecutive rows.
    process_count: number of hosts; it divides the rows of every shape.
  """
  lengths: np.ndarray
  packing: Packing
  seed: int = 0
  remainder: str = 'pad'
  draws: plan_lib.Draws | None = None
  process_index: int = 0
  process_count: int = 1

  def __post_init__(self):
    if any(shape[0] % self.process_count for shape in self.packing.shapes):
      raise UserError(
          f'Packed batches of {[shape[0] for shape in self.packing.shapes]} rows cannot be divided '
          f'among {self.process_count} processes; give a BATCH_SIZE that is a multiple of '
          f'{self.process_count}.')
    if not self.epoch_length:
      raise UserError(f'{len(self._sizes)} examples do not fill one batch of {self.batch_size}; '
                      'lower BATCH_SIZE.')

  @property
  def epoch_length(self) -> int:
    """Batches of one epoch."""
    return plan_lib.batches_per_epoch(len(self._sizes), self.batch_size, self.remainder)

  @property
  def batch_size(self) -> int:
    """Examples of a batch."""
    return self.packing.batch_size

  @property
  def buckets(self) -> tuple[PackedShape, ...]:
    """Every (R, T, L) that a batch can have, over all hosts."""
    return self.packing.shapes

  def __getitem__(self, n: int) -> Batch | PackedBatch:
    epoch, place = divmod(n, self.epoch_length)
    return plan_lib.host_share(self._epoch(epoch)[place], self.process_index, self.process_count)

  @functools.cached_property
  def _epoch(self):
    # Two: a prefetching thread may be one epoch ahead.
    return functools.lru_cache(maxsize=2)(lambda epoch: self.packing.epoch(
        self._sizes, seed=self.seed, epoch=epoch, remainder=self.remainder,
        rows=None if self.draws is None else self.draws.rows(self.seed, epoch)))

  @property
  def _sizes(self):
    return self.lengths if self.draws is None else self.draws.sizes


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
  """Divides the examples into groups of like sizes and lets those of a group share rows.

  A row holds the longest with the shortest, so that all are filled alike: twice, four or eight
  times as long rows need less padding, and attention over neighbours costs more. The cut of inputs
  or targets that saves most is made first, until there are max_shapes groups.

  Args:
    lengths: [N, 2] input and target lengths.
    batch_size: examples of a batch.
    cost: of a row, from row_cost.
    prompt_length: slots of a soft prompt in every example.
    placement: of the soft prompt.
    max_shapes: most groups, the shape of each of which is compiled once.
    row_multiple: rows of a batch are a multiple of it.
  """
  sizes = lengths[_order(lengths)] + np.asarray([prompt_length, 0])
  counts = [2**i for i in range(_MOST_IN_A_ROW.bit_length())
            if batch_size % (2**i * row_multiple) == 0] or [1]
  price = functools.partial(_price, sizes, counts, cost)
  cuts = [_best_cut(sizes, np.arange(len(sizes)), batch_size, price)]
  while len(cuts) < max_shapes and max(cut.saved for cut in cuts) > 0:
    best = max(range(len(cuts)), key=lambda i: cuts[i].saved)
    cuts[best:best + 1] = [_best_cut(sizes, np.sort(part), batch_size, price)
                           for part in cuts[best].parts]
  groups = []
  for cut in cuts:
    own = sizes[cut.ranks]
    rows, totals = fold(own, *price(cut.ranks)[1])
    groups.append(Group(np.append(cut.ranks, PADDING_ROW)[rows], _slots(totals), _slots(own)[0]))
  return Packing(groups=tuple(groups), batch_size=batch_size, prompt_length=prompt_length,
                 placement=placement)


def fold(sizes: np.ndarray, count: int, window: int = 1) -> tuple[np.ndarray, np.ndarray]:
  """Lets `count` examples share each row, so that all rows are filled alike.

  The longest goes with the shortest, then the longest pair with the shortest pair, and so on.

  Args:
    sizes: [n, 2] input and target slots of each example.
    count: a power of two.
    window: among so many neighbours in the order of sizes, the most targets go with the fewest.

  Returns:
    Indices [rows, count], the largest first, PADDING_ROW where there is none; and the slots of
    every row [rows, 2]. Both depend on the sizes alone, not on the order of equal ones.
  """
  missing = -len(sizes) % count
  rows = np.append(np.full(missing, PADDING_ROW), np.arange(len(sizes)))[:, None]
  totals = np.concatenate([np.zeros((missing, 2), sizes.dtype), sizes])
  while rows.shape[1] < count:
    order = _order(totals)
    short, long = order[:len(order) // 2], order[len(order) // 2:][::-1]
    block = np.arange(len(short)) // window
    short = short[np.lexsort((totals[short, 1], block))]
    long = long[np.lexsort((-totals[long, 1], block))]
    rows = np.concatenate([rows[long], rows[short]], axis=1)
    totals = totals[long] + totals[short]
  return np.sort(rows, axis=1)[:, ::-1], totals


@dataclasses.dataclass(frozen=True)
class _Cut:
  """What dividing a group of ranks in two `parts` saves, in FLOPs; 0 where nothing does."""
  ranks: np.ndarray
  saved: float = 0.0
  parts: tuple[np.ndarray, ...] = ()


def _best_cut(sizes, ranks, batch_size, price):
  """The cut of inputs or targets that saves most; what fills no batch stays in the lower part."""
  whole, best = price(ranks)[0], _Cut(ranks)
  # The longest of all may be a single batch: they are what long rows are needed for.
  fewest = 1 if ranks[-1] == len(sizes) - 1 else _FEWEST_BATCHES
  most = len(ranks) // batch_size - _FEWEST_BATCHES
  if most < fewest:
    return best
  above = np.unique(np.concatenate([np.linspace(fewest, most, _CUTS),
                                    np.geomspace(fewest, most, _CUTS)]).astype(int))
  for column in (0, 1):
    ordered = ranks[np.argsort(sizes[ranks, column], kind='stable')]
    for place in (len(ranks) - above * batch_size).tolist():
      parts = ordered[:place], ordered[place:]
      saved = whole - sum(price(part)[0] for part in parts)
      if saved > best.saved:
        best = _Cut(ranks, saved, parts)
  return best


def _price(sizes, counts, cost, ranks):
  """(FLOPs, arguments of `fold`) of the cheapest layout of a group, measured on a sample of it."""
  sample = sizes[np.sort(ranks[::len(ranks) // _SAMPLE + 1])]
  prices = []
  for count, window in itertools.product(counts, _WINDOWS):
    flops = len(ranks) / count * cost(*_slots(fold(sample, count, window)[1]))
    prices.append((flops if count == 1 else flops / _SHARING_PAYS, (count, window)))
  return min(prices)


def _slots(totals):
  """The (T, L) that holds every row."""
  return tuple(-(-int(most) // multiple) * multiple for most, multiple in zip(
      totals.max(axis=0), (_INPUTS_MULTIPLE, _TARGETS_MULTIPLE), strict=True))


def _order(sizes):
  """Indices that sort [n, 2] by inputs, then targets."""
  return np.lexsort((sizes[:, 1], sizes[:, 0]))


def encoder_cost(config: T5Config) -> Callable[[int], float]:
  """FLOPs of the encoder on one row as a function of its slots (prompt included).

  Matrix products alone: linear ones grow with the slots, scores with their square.
  """
  projection, mlp, pair = _products(config)

  def cost(inputs):
    return float(config.num_encoder_layers * (inputs * (4 * projection + mlp) + inputs**2 * pair))
  return cost


def decoder_cost(config: T5Config) -> RowCost:
  """FLOPs of the decoder on one row of (input, target) slots, as encoder_cost."""
  projection, mlp, pair = _products(config)
  head = 2 * config.emb_dim * config.vocab_size
  attention = layers.Attention(config.num_heads, config.head_dim, config.dtype)

  def cost(inputs, targets):
    layer = targets * (6 * projection + mlp) + targets**2 * pair
    if attention.skips_keys(targets, (inputs, config.emb_dim)):
      layer += targets * (2 * projection + inputs * 4 * config.num_heads * config.emb_dim)
    else:  # keys and values of cross-attention are made from every input slot
      layer += inputs * (2 * projection + targets * pair)
    return float(config.num_decoder_layers * layer + targets * head)
  return cost


def row_cost(config: T5Config) -> RowCost:
  """FLOPs of the forward pass of one row; a training step takes a constant multiple of it."""
  encoder, decoder = encoder_cost(config), decoder_cost(config)
  return lambda inputs, targets: encoder(inputs) + decoder(inputs, targets)


def _products(config):
  """FLOPs of a projection and of the feed-forward block a slot, of attention a pair of slots."""
  inner = config.num_heads * config.head_dim
  mlp = 2 * config.emb_dim * config.mlp_dim * (len(config.mlp_activations) + 1)
  return 2 * config.emb_dim * inner, mlp, 4 * inner


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
    sizes = lengths[batch.rows[batch.rows >= 0]] + np.asarray([prompt_length, 0])
    needed += sum(cost(*size) for size in sizes.tolist())
  return 1.0 - needed / spent


def assemble(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], batch: PackedBatch) -> dict[str, np.ndarray]:
  """Writes examples into the rows of a packed batch.

  The slots of the prompt hold token 0, as padding does: their segment ids say that they are not,
  and what `embed` makes of the token is replaced.

  Args:
    pairs: (input ids, target ids) of the examples in the order of batch.rows.
    batch: from Packing.epoch.

  Returns:
    encoder_input_tokens, encoder_segment_ids (1, 2, ... in each row, 0 at padding) and
    encoder_positions (from 0 in each segment) [R, T]; decoder_input_tokens (targets shifted right
    within each segment), decoder_target_tokens, decoder_segment_ids and decoder_positions [R, L],
    all int32; decoder_loss_weights [R, L] float32.
  """
  encoder = _Side(len(batch.rows), batch.shape[0])
  decoder = _Side(len(batch.rows), batch.shape[1], ('shifted', 'weights'))
  remaining = iter(pairs)
  for row, members in enumerate(batch.rows):
    for segment, _ in enumerate(members[members >= 0], start=1):
      inputs, targets = next(remaining)
      start = int(soft_prompt.slot_start(batch.placement, np.asarray(len(inputs))))
      encoder.write(row, segment, np.insert(
          inputs, start, np.zeros(batch.prompt_length, inputs.dtype)))
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


def slots_of_examples(segment_ids: np.ndarray, count: int, longest: int) -> np.ndarray:
  """Where in its row each example of a packed batch is, to be taken apart by decoding.encoding.

  Args:
    segment_ids: [R, T], as assembled.
    count: places for examples in a row, S.
    longest: slots of the longest example.

  Returns:
    [R * S, longest] int32; -1 behind an example, and where there is none.
  """
  belongs = segment_ids[:, None] == np.arange(1, count + 1)[:, None]
  first, length = belongs.argmax(axis=-1)[..., None], belongs.sum(axis=-1)[..., None]
  place = np.arange(longest)
  slots = np.where(place < length, first + place, -1)
  return slots.reshape(-1, longest).astype(np.int32)


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
