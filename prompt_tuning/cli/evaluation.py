"""One evaluation of a model on a split: what `train` does now and then and `eval` does once."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import jax

from prompt_tuning import params as params_lib
from prompt_tuning import partitioning
from prompt_tuning.cli import data as data_lib
from prompt_tuning.data import loader as loader_lib
from prompt_tuning.data.mixture import Mixture
from prompt_tuning.data.views import Joined
from prompt_tuning.decoding.generate import DecodeConfig
from prompt_tuning.evaluation import evaluator, scoring
from prompt_tuning.losses import LossConfig
from prompt_tuning.training import metrics, step

LOSS_METRICS = ('loss_per_token', 'accuracy')
AVERAGE = 'average'
RANK = 'rank/'


def of(model, data: data_lib.DataConfig, *settings, folder=None, split: str | None = None,
       output: pathlib.Path | None = None, rank: bool = False, **options):
  """An evaluation of a task, or of every task of a mixture.

  Args:
    model: cli.model.Model.
    data: the data configuration.
    *settings: decode, batch_size and max_batches of Evaluation.
    folder: MODEL_DIR, for the cache; None uses the user's own.
    split: None takes a task's own.
    output: folder of the predictions; those of a mixture lie in a folder for each task.
    rank: see Evaluation; of a mixture those tasks that have labels.
    **options: of Evaluation.
  """
  caches = data_lib.evaluation_caches(data, split, model.vocabulary, folder)
  if not isinstance(data.task, Mixture):
    return Evaluation(model, data, caches[data.task.name], *settings, output=output, rank=rank,
                      **options)
  # The shapes are those of all tasks together: each is compiled once. Packed ones could not be.
  data = dataclasses.replace(data, eval_packing=data.eval_packing is True)
  shapes = data_lib.buckets(data, Joined(caches), model.prompt_length)
  return MixtureEvaluation(data.task, {
      task.name: Evaluation(
          model, data.of(task), caches[task.name], *settings, buckets=shapes,
          output=output and output / task.name, rank=rank and bool(task.labels), **options)
      for task in data.task.evaluated})


class Evaluation:
  """Generates over a split and measures; a task without metrics is measured by its loss.

  Args:
    model: cli.model.Model.
    data: the data configuration.
    cache: the examples.
    decode: how to generate; without a length, that of the targets.
    batch_size: rows of a batch.
    max_batches: EVAL_STEPS.
    buckets: padded shapes; None chooses them from the lengths.
    output: where predictions are written; None writes none.
    rank: also measure rank classification, as rank/NAME, where the task has labels.
    loss: how the loss is measured.
    seed: of the answers, where DECODE_STRATEGY is 'sample'.
    before_batch: called before each batch; what it raises ends the evaluation.
  """

  def __init__(self, model, data: data_lib.DataConfig, cache: data_lib.AnyCache,
               decode: DecodeConfig, batch_size: int, max_batches: int | None = None, *,
               buckets=None, output: pathlib.Path | None = None, rank: bool = False,
               loss: LossConfig | None = None, seed: int = 0,
               before_batch: Callable[[], None] = lambda: None):
    self._model, self._task, self._rank = model, data.task, rank
    self._decode, self._rng = with_length(decode, data), sampling_rng(decode, seed)
    self._output = output
    self.cache = cache
    self.answers = ()  # texts of the latest evaluation
    self._batches = loader_lib.for_evaluation(
        cache, batch_size, max_batches=max_batches,
        buckets=buckets or data_lib.buckets(data, cache, model.prompt_length),
        packing=data_lib.evaluation_packing(data, cache, model, batch_size),
        **data_lib.share(model.mesh))
    self._before_batch = before_batch
    self._loss_step = step.make_eval_step(model.peft, loss=loss)
    # None: not known before the first evaluation.
    self.metric_names = data_lib.metric_names(data.task, cache) if (
        data.task.metric_fns) else LOSS_METRICS

  def __call__(self, params, name: str) -> dict[str, float]:
    """Measures these parameters; predictions go to NAME.jsonl.

    Args:
      params: nested dict of all parameters.
      name: of this evaluation's files.

    Returns:
      {metric: value}.
    """
    if not self._task.metric_fns:
      return self._loss(params)
    shared = {'place_batch': self._place, 'output_file': self._file(name)}
    result = evaluator.evaluate(self._task, self._model.peft, params, self._batches,
                                self._model.vocabulary, self._decode, rng=self._rng, **shared)
    self.answers = tuple(prediction['prediction'] for prediction in result.predictions)
    if not self._rank:
      return result.metrics
    shared['output_file'] = self._file(f'{name}_rank')
    ranked = scoring.rank_classification(self._task, self._model.peft, params, self._batches,
                                         self._model.vocabulary, **shared)
    return result.metrics | {f'{RANK}{key}': value for key, value in ranked.metrics.items()}

  def _place(self, arrays):
    self._before_batch()
    return partitioning.shard_batch(arrays, self._model.mesh)

  def _file(self, name):
    return None if self._output is None else self._output / f'{name}.jsonl'

  def _loss(self, params):
    trainable, frozen = params_lib.split(params, self._model.peft.trainable)
    pairs = [self._loss_step(trainable, frozen, self._place(batch.arrays))
             for batch in self._batches]
    values = metrics.summarize(pairs)
    return {name: values[name] for name in LOSS_METRICS}


class MixtureEvaluation:
  """Measures every task of a mixture, as TASK/NAME, and the average of their metrics.

  Args:
    mixture: says how the average is taken.
    evaluations: task -> its Evaluation.
  """

  def __init__(self, mixture: Mixture, evaluations: Mapping[str, Evaluation]):
    self._mixture, self._evaluations = mixture, evaluations
    self._averaged = all(task.metric_fns for task in mixture.evaluated)
    self.answers = ()  # of which task is not said: nothing can be said of them
    self.cache = Joined({name: each.cache for name, each in evaluations.items()})
    known = {name: each.metric_names for name, each in evaluations.items()}
    self.metric_names = None if None in known.values() else (
        *((AVERAGE,) if self._averaged else ()),
        *(f'{name}/{metric}' for name, metrics in known.items() for metric in metrics))

  def __call__(self, params, name: str) -> dict[str, float]:
    """As Evaluation."""
    results = {task: each(params, name) for task, each in self._evaluations.items()}
    values = {f'{task}/{metric}': value for task, found in results.items()
              for metric, value in found.items()}
    if not self._averaged:
      return values
    own = {task: {metric: value for metric, value in found.items()
                  if not metric.startswith(RANK)} for task, found in results.items()}
    return {AVERAGE: self._mixture.average(own)} | values


def sampling_rng(decode: DecodeConfig, seed: int):
  """The key that samples are drawn with; None where nothing is drawn."""
  return jax.random.key(seed) if decode.strategy == 'sample' else None


def with_length(decode: DecodeConfig, data: data_lib.DataConfig) -> DecodeConfig:
  """The decode settings with the targets' length where MAX_DECODE_LENGTH is None."""
  length = decode.max_decode_length or data.feature_lengths['targets']
  return dataclasses.replace(decode, max_decode_length=length)
