"""One evaluation of a model on a split: what `train` does now and then and `eval` does once."""

import dataclasses
import pathlib
from collections.abc import Callable

import jax

from prompt_tuning import params as params_lib
from prompt_tuning import partitioning
from prompt_tuning.cli import data as data_lib
from prompt_tuning.data import loader as loader_lib
from prompt_tuning.decoding.generate import DecodeConfig
from prompt_tuning.evaluation import evaluator, scoring
from prompt_tuning.losses import LossConfig
from prompt_tuning.training import metrics, step

LOSS_METRICS = ('loss_per_token', 'accuracy')


class Evaluation:
  """Generates over a split and measures; a task without metrics is measured by its loss.

  Args:
    model: cli.model.Model.
    data: the data configuration.
    decode: how to generate; without a length, that of the targets.
    batch_size: rows of a batch.
    max_batches: EVAL_STEPS.
    folder: MODEL_DIR, for the cache; None uses the user's own.
    output: where predictions are written; None writes none.
    split: None takes the task's own.
    rank: also measure rank classification, as rank/NAME, where the task has labels.
    loss: how the loss is measured.
    seed: of the answers, where DECODE_STRATEGY is 'sample'.
    before_batch: called before each batch; what it raises ends the evaluation.
  """

  def __init__(self, model, data: data_lib.DataConfig, decode: DecodeConfig, batch_size: int,
               max_batches: int | None = None, *, folder=None, output: pathlib.Path | None = None,
               split: str | None = None, rank: bool = False, loss: LossConfig | None = None,
               seed: int = 0, before_batch: Callable[[], None] = lambda: None):
    self._model, self._task, self._rank = model, data.task, rank
    self._decode, self._rng = with_length(decode, data), sampling_rng(decode, seed)
    self._output = output
    self.cache = cache = data_lib.cache(
        data, split or data.task.eval_split, model.vocabulary, folder)
    self.answers = ()  # texts of the latest evaluation
    self._batches = loader_lib.for_evaluation(
        cache, batch_size, max_batches=max_batches,
        buckets=data_lib.buckets(data, cache, model.prompt_length),
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
    return result.metrics | {f'rank/{key}': value for key, value in ranked.metrics.items()}

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


def sampling_rng(decode: DecodeConfig, seed: int):
  """The key that samples are drawn with; None where nothing is drawn."""
  return jax.random.key(seed) if decode.strategy == 'sample' else None


def with_length(decode: DecodeConfig, data: data_lib.DataConfig) -> DecodeConfig:
  """The decode settings with the targets' length where MAX_DECODE_LENGTH is None."""
  length = decode.max_decode_length or data.feature_lengths['targets']
  return dataclasses.replace(decode, max_decode_length=length)
