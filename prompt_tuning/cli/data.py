"""From the configuration of the data to caches of tokenised examples."""

import dataclasses
import logging
import math
import os
import pathlib
from collections.abc import Mapping

from prompt_tuning import partitioning, processes
from prompt_tuning.cli import config as config_lib
from prompt_tuning.data import cache as cache_lib
from prompt_tuning.data import loader, overlap, packing
from prompt_tuning.data import plan as plan_lib
from prompt_tuning.data.few_shot import FewShot
from prompt_tuning.data.mixture import Mixture
from prompt_tuning.data.task import Task
from prompt_tuning.data.tasks import local_text
from prompt_tuning.data.views import Joined, Selected, by_task
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation import evaluator
from prompt_tuning.losses import LossConfig
from prompt_tuning.peft.soft_prompt import SoftPrompt

log = logging.getLogger(__name__)

_MEASURED = 32  # examples that tell the metrics' names; some metrics need more than one
_MEASURED_BATCHES = 64  # batches that tell what padding costs
AnyCache = cache_lib.Cache | Selected | Joined
_PACKING_PAYS = 0.95  # of the buckets' FLOPs: what is near either way stays unpacked


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """A task, its lengths and where its tokenised examples are kept.

  Attributes:
    task: the task or mixture.
    feature_lengths: most tokens of `inputs` and `targets`, without the prompt.
    use_cached_tasks: False tokenises again where a cache is there.
    cache_dir: folder of all caches; None: the run's own.
    seed: of the order of the training examples.
    max_buckets: most padded lengths, each of which is compiled once.
    packing: whether training batches are packed: True, False, or 'auto', where that saves a
      twentieth of the FLOPs that buckets take.
    eval_packing: whether the encoder gets evaluation batches packed, likewise.
    remainder: of an epoch's rows that fill no batch: 'pad' or 'drop'.
    few_shot_examples: training examples of each class, or of a task without labels; None: all.
    few_shot_seed: of their choice.
    few_shot_dev: whether a run evaluates on as many other examples of the training split.
  """

  task: Task | Mixture | None = None
  feature_lengths: Mapping[str, int | None] = dataclasses.field(default_factory=dict)
  use_cached_tasks: bool = True
  cache_dir: str | None = None
  seed: int = 0
  max_buckets: int = 6
  packing: bool | str = 'auto'
  eval_packing: bool | str = 'auto'
  remainder: str = 'pad'
  few_shot_examples: int | None = None
  few_shot_seed: int = 0
  few_shot_dev: bool = False

  def __post_init__(self):
    if self.task is None:
      raise UserError('No task is configured: add --gin_file=tasks/local_text.gin for files of '
                      'your own, or another of tasks/.')
    if not isinstance(self.feature_lengths, Mapping) or not all(
        _is_length(self.feature_lengths.get(name)) for name in cache_lib.FEATURES):
      raise UserError(f'TASK_FEATURE_LENGTHS is {self.feature_lengths!r}: give whole numbers from '
                      "1 on for both, as in {'inputs': 256, 'targets': 16}.")
    config_lib.check_range('MAX_BUCKETS', self.max_buckets, 1)
    for name in ('packing', 'eval_packing'):
      if getattr(self, name) not in (True, False, 'auto'):
        raise UserError(
            f"{name.upper()} is {getattr(self, name)!r}; allowed: True, False, 'auto'.")
    config_lib.check_range('RANDOM_SEED', self.seed, 0, 2**32 - 1)
    config_lib.check_range('FEW_SHOT_EXAMPLES', self.few_shot_examples, 1)
    config_lib.check_range('FEW_SHOT_SEED', self.few_shot_seed, 0)
    if self.few_shot_dev and self.few_shot_examples is None:
      raise UserError('FEW_SHOT_DEV is True without FEW_SHOT_EXAMPLES: give their number too.')

  def of(self, task: Task) -> 'DataConfig':
    """The same for one task of a mixture."""
    return dataclasses.replace(self, task=task)

  @property
  def few_shot(self) -> FewShot | None:
    """How training examples are chosen; None takes all."""
    return None if self.few_shot_examples is None else FewShot(
        examples=self.few_shot_examples, seed=self.few_shot_seed, dev=self.few_shot_dev)


def _is_length(value) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value > 0


def check_splits(config: DataConfig):
  """Refuses a task, or a task of a mixture, without the splits that training needs."""
  for task in config.task.trained:
    check_split(task, task.train_split)
  for task in config.task.evaluated:
    check_split(task, _dev_split(config, task))


def _dev_split(config: DataConfig, task: Task) -> str:
  """The split that a run evaluates a task on: with FEW_SHOT_DEV examples that it could train on."""
  few = config.few_shot_dev and task.train_split in task.splits
  return task.train_split if few else task.eval_split


def splits_in_use(config: DataConfig) -> dict[str, tuple[Task, str | None, str | None]]:
  """Name -> (task, split it is trained on, split it is evaluated on), None where it is not."""
  trained = {task.name: task for task in config.task.trained}
  evaluated = {task.name: task for task in config.task.evaluated}
  return {name: (task, task.train_split if name in trained else None,
                 _dev_split(config, task) if name in evaluated else None)
          for name, task in (trained | evaluated).items()}


def check_split(task: Task, split: str):
  """Refuses a split that the task does not have, before anything is loaded."""
  if task.name == local_text.NAME and split not in task.splits:
    name = {'train': 'TRAIN_FILE', 'validation': 'EVAL_FILE or TRAIN_FILE'}.get(split)
    raise UserError(f'There is no {split!r} split: give {name} of the task.' if name else
                    f'There is no {split!r} split; there are: {", ".join(task.splits)}.')
  task.check_split(split)


def check_examples(task: Task, train_split: str | None, eval_split: str | None):
  """Reads a user's files to the end before a model is loaded: broken rows, overlap of the splits.

  Args:
    task: the task; examples that are not files of the user's are left alone.
    train_split: None where nothing is trained.
    eval_split: None where nothing is evaluated.
  """
  if getattr(task.source, 'of_files', False):
    overlap.check_examples(task, train_split, eval_split)


def cache(config: DataConfig, split: str, vocabulary, folder: str | None) -> cache_lib.Cache:
  """Opens or builds the cache of a split.

  Args:
    config: the configuration.
    split: which split.
    vocabulary: the backbone's.
    folder: the run's folder, for a configuration without cache_dir; None: the user's own cache.
  """
  with processes.first_before_others(f'cache of {split}'):
    return cache_lib.build(
        config.task, split, vocabulary, config.feature_lengths, _folder(config, folder),
        rebuild=not config.use_cached_tasks and processes.is_first())


def share(mesh) -> dict[str, int]:
  """Which part of every batch this process reads, as arguments of the loaders."""
  return dict(zip(('process_index', 'process_count'), partitioning.data_share(mesh), strict=True))


def training_cache(config: DataConfig, vocabulary, folder: str | None) -> AnyCache:
  """Opens or builds what is trained on: a split, some of its examples, or those of a mixture.

  Args:
    config: the configuration.
    vocabulary: the backbone's.
    folder: as of `cache`.

  Raises:
    UserError: as cache.build, or a class has fewer than FEW_SHOT_EXAMPLES.
  """
  parts = {}
  for task in config.task.trained:
    whole = cache(config.of(task), task.train_split, vocabulary, folder)
    parts[task.name] = config.few_shot.select(whole, task.labels)[0] if config.few_shot else whole
  return Joined(parts) if isinstance(config.task, Mixture) else parts[config.task.name]


def evaluation_caches(config: DataConfig, split: str | None, vocabulary,
                      folder: str | None) -> dict[str, AnyCache]:
  """Opens or builds what is evaluated on, by task.

  Args:
    config: the configuration.
    split: None takes each task's own, or, with FEW_SHOT_DEV, a few of its training examples.
    vocabulary: the backbone's.
    folder: as of `cache`.

  Raises:
    UserError: as training_cache.
  """
  caches = {}
  for task in config.task.evaluated:
    used = split or _dev_split(config, task)
    whole = cache(config.of(task), used, vocabulary, folder)
    few = config.few_shot_dev and split is None and used == task.train_split
    caches[task.name] = config.few_shot.select(whole, task.labels)[1] if few else whole
  return caches


def chosen_examples(config: DataConfig, train: AnyCache, dev: AnyCache) -> dict | None:
  """What FEW_SHOT_EXAMPLES chose, as JSON: {'train': {task: ids}, 'dev': {task: ids}}.

  Args:
    config: the configuration.
    train: from training_cache.
    dev: the caches of the evaluation.
  """
  if config.few_shot is None:
    return None
  return {'examples': config.few_shot_examples, 'seed': config.few_shot_seed} | {
      name: {task: part.ids for task, part in by_task(cache, config.task.name).items()
             if isinstance(part, Selected)}
      for name, cache in (('train', train), ('dev', dev))}


def buckets(config: DataConfig, cache: AnyCache, prompt_length: int, draws=None):
  """The padded shapes of a cache's batches; `prompt_length` rows are added to each."""
  return loader.buckets_of(
      cache, prompt_length=prompt_length, max_buckets=config.max_buckets, draws=draws)


def training_batches(
    config: DataConfig, cache: AnyCache, model, batch_size: int, loss: LossConfig,
    num_microbatches: int) -> loader.TrainLoader:
  """The training batches: in length buckets, or packed; says which, and what padding costs.

  Args:
    config: the configuration.
    cache: from training_cache.
    model: cli.model.Model.
    batch_size: examples of a batch.
    loss: of the run.
    num_microbatches: parts that the rows of a batch are divided into.

  Raises:
    UserError: packing is asked for with a loss that counts padding.
  """
  draws = config.task.draws(cache) if isinstance(config.task, Mixture) else None
  if draws is not None:
    log.info('An epoch of %s: %s.', config.task.name, ', '.join(
        f'{count} of the {size} examples of {name}'
        for name, count, size in zip(cache.parts, draws.counts, cache.sizes, strict=True)))
  options = dict(seed=config.seed, remainder=config.remainder, draws=draws, **share(model.mesh))
  length = model.prompt_length
  bucketed = loader.training_plan(
      cache, batch_size, buckets=buckets(config, cache, length, draws), **options)
  counts_padding = loss.loss_normalizing_factor == 'NUM_TOTAL_TARGET_TOKENS'
  if config.packing is True and counts_padding:
    raise UserError(
        "PACKING is True and LOSS_NORMALIZING_FACTOR 'NUM_TOTAL_TARGET_TOKENS', which divides by a "
        "number of slots that packing changes: give 'NUM_REAL_TARGET_TOKENS', or PACKING=False.")
  if not config.packing or counts_padding:
    return loader.TrainLoader(cache, bucketed)
  cost = packing.row_cost(model.peft.backbone.config)
  layout = _packing(config, cache.lengths if draws is None else draws.sizes, model, batch_size,
                    cost, math.lcm(num_microbatches, model.mesh.shape['data']))
  packed = loader.training_plan(cache, batch_size, packing=layout, **options)
  wasted = [packing.wasted_flops(cache.lengths, _first_batches(plan), cost, length)
            for plan in (bucketed, packed)]
  use_packed = _pays(config.packing, *(1 / (1 - share) for share in wasted))
  log.info('FLOPs spent on padding: %.0f %% in length buckets, %.0f %% packed (counting what '
           'neighbours in a row cost each other). PACKING=%s: %s.',
           *(100 * share for share in wasted), config.packing, _words(layout, use_packed))
  return loader.TrainLoader(cache, packed if use_packed else bucketed)


def evaluation_packing(config: DataConfig, cache: AnyCache, model,
                       batch_size: int) -> packing.Packing | None:
  """How the encoder gets the batches of an evaluation packed; None where length buckets are used.

  Examples are encoded packed and decoded apart; says what that saves.

  Args:
    config: the configuration.
    cache: of the split.
    model: cli.model.Model.
    batch_size: examples of a batch.
  """
  if not config.eval_packing:
    return None
  shape, length = model.peft.backbone.config, model.prompt_length
  encoder, decoder = packing.encoder_cost(shape), packing.decoder_cost(shape)
  layout = _packing(config, cache.lengths, model, batch_size,
                    lambda inputs, targets: encoder(inputs), model.mesh.shape['data'])
  targets = int(cache.lengths[:, 1].max())
  bucketed = sum(
      len(batch.rows) * (encoder(batch.shape[0] + length)
                         + decoder(batch.shape[0] + length, targets))
      for batch in plan_lib.eval_plan(
          cache.lengths, buckets(config, cache, length), batch_size))
  packed = sum(
      group.ranks.size * (encoder(group.slots[0]) / group.ranks.shape[1]
                          + decoder(group.longest, targets)) for group in layout.groups)
  use_packed = _pays(config.eval_packing, bucketed, packed)
  log.info('FLOPs of an evaluation: packed for the encoder %.0f %% of those in length buckets. '
           'EVAL_PACKING=%s: %s.', 100 * packed / bucketed, config.eval_packing,
           _words(layout, use_packed))
  return layout if use_packed else None


def _packing(config, lengths, model, batch_size, cost, row_multiple) -> packing.Packing:
  """The layout of examples that costs least."""
  placement = next((method.placement for method in model.peft.methods
                    if isinstance(method, SoftPrompt)), 'prefix')
  return packing.choose_packing(
      lengths, batch_size, cost, prompt_length=model.prompt_length, placement=placement,
      max_shapes=config.max_buckets, row_multiple=row_multiple)


def _pays(setting, bucketed: float, packed: float) -> bool:
  """Whether to pack under a setting of True, False or 'auto', given the FLOPs of both."""
  return setting is True or packed < _PACKING_PAYS * bucketed


def _words(layout: packing.Packing, use_packed: bool) -> str:
  """What becomes of the examples, in words."""
  if not use_packed:
    return 'examples are padded to buckets'
  counts = sorted({group.ranks.shape[1] for group in layout.groups})
  return f'packed, {" or ".join(map(str, counts))} examples a row'


def _first_batches(plan):
  """Batches of the first epoch, enough to measure."""
  batches = plan_lib.whole(plan)  # processes that measured their own rows could disagree
  return [batches[n] for n in range(min(plan.epoch_length, _MEASURED_BATCHES))]


def _folder(config: DataConfig, folder: str | None) -> pathlib.Path:
  if config.cache_dir is not None:
    return pathlib.Path(config.cache_dir)
  return user_cache() / 'tasks' if folder is None else pathlib.Path(folder) / 'cache'


def user_cache() -> pathlib.Path:
  """The folder of what can be made again: compiled programs, tokenised tasks."""
  root = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(root) / 'prompt_tuning'


def metric_names(task: Task, cache: cache_lib.Cache) -> tuple[str, ...] | None:
  """Names of the task's metrics, in order, found by measuring a few targets against themselves.

  Args:
    task: the task.
    cache: of the split that is evaluated.

  Returns:
    The names; None where the metrics cannot be had this way.
  """
  records = cache.records(range(min(len(cache), _MEASURED)))
  examples = [evaluator.as_example(record) for record in records]
  try:
    targets = [task.postprocess_fn(example['targets'], example=example, is_target=True)
               for example in examples]
    values = [task.postprocess_fn(example['targets'], example=example, is_target=False)
              for example in examples]
    return tuple(task.metrics(targets, values)) or None
  except UserError:
    raise
  except Exception:  # a user's functions: that they fail on a few targets is no mistake yet
    log.info('Metrics of %s on its first targets:', task.name, exc_info=True)
    return None


def check_labels(task: Task | Mixture, rank_labels: bool):
  """Refuses RANK_LABELS for a task without labels."""
  if rank_labels and not task.labels:
    raise UserError(f'RANK_LABELS is True and task {task.name!r} has no labels to rank: give '
                    'CLASS_LABELS, or leave RANK_LABELS out.')
