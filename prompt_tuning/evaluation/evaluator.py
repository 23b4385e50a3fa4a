"""Generates over a task's examples, measures what comes out and keeps the predictions."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from prompt_tuning import processes
from prompt_tuning.atomic_file import write_atomically
from prompt_tuning.data.loader import EvalBatch
from prompt_tuning.data.task import Task
from prompt_tuning.decoding.generate import DecodeConfig, generate_jit
from prompt_tuning.errors import UserError
from prompt_tuning.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalResult:
  """What an evaluation found.

  Attributes:
    metrics: the task's metrics by name.
    predictions: one dict an example: `id`, `inputs`, `targets`, `prediction` and what the kind of
      evaluation adds (`score`, `scores`).
  """
  metrics: dict[str, float]
  predictions: list[dict[str, Any]]


def evaluate(
    task: Task,
    model,
    params,
    batches: Iterable[EvalBatch],
    vocabulary: Vocabulary,
    config: DecodeConfig,
    *,
    output_file: str | os.PathLike | None = None,
    place_batch: Callable[[Mapping], Mapping] = dict,
    rng=None,
) -> EvalResult:
  """Generates an answer for every example and applies the task's metrics.

  Targets are the task's texts, not decoded ids: what tokenisation cut or could not write still
  counts.

  Args:
    task: names postprocess_fn and metric_fns.
    model: a backbone or a PeftModel.
    params: its parameters.
    batches: such as a data.loader.EvalLoader; rows whose record is None are left out.
    vocabulary: decodes what is generated.
    config: how to generate; of several sequences the best counts.
    output_file: predictions are written there as JSON lines, in one piece.
    place_batch: puts a batch's arrays on devices, such as partitioning.shard_batch with its mesh.
    rng: jax.random key for the strategy 'sample'; folded with the number of the batch.

  Returns:
    EvalResult; each prediction has the `score` of its sequence.

  Raises:
    UserError: there is no example, or the output cannot be written.
  """
  def run(number, arrays):
    key = None if rng is None else jax.random.fold_in(rng, number)
    return generate_jit(model, params, place_batch(arrays), config, key)

  predictions, examples = [], []
  for record, decoded in per_example(batches, run):
    predictions.append({**_texts(record), 'prediction': vocabulary.decode(decoded.sequences[0]),
                        'score': float(decoded.scores[0])})
    examples.append(record)
  return finish(task, examples, predictions, output_file)


def per_example(
    batches: Iterable[EvalBatch], run: Callable[[int, Mapping], Any],
) -> Iterator[tuple[dict[str, Any], Any]]:
  """Runs a function on batches; yields (record, the row of its result) for every real example.

  The devices work on a batch while the rows of the one before are read.

  Args:
    batches: iterable of EvalBatch.
    run: (number of the batch, its arrays) -> tree of arrays [B, ...] with the rows of all
      processes.
  """
  waiting = None
  for number, batch in enumerate(batches):
    started = (batch.records, processes.replicated(run(number, batch.arrays)))
    if waiting is not None:
      yield from _rows(*waiting)
    waiting = started
  if waiting is not None:
    yield from _rows(*waiting)


def finish(task: Task, records: Sequence[Mapping], predictions: list[dict[str, Any]],
           output_file: str | os.PathLike | None = None) -> EvalResult:
  """Measures the predictions of examples and writes them.

  Args:
    task: names postprocess_fn and metric_fns.
    records: of the examples, as Cache.records gives them.
    predictions: of the same examples, each with its text at `prediction`.
    output_file: where to write them; None writes nothing.

  Raises:
    UserError: there is no example, or the output cannot be written.
  """
  if not records:
    raise UserError(f'Task {task.name!r} gave no example to evaluate.')
  examples = [as_example(record) for record in records]
  targets = [task.postprocess_fn(example['targets'], example=example, is_target=True)
             for example in examples]
  values = [task.postprocess_fn(prediction['prediction'], example=example, is_target=False)
            for prediction, example in zip(predictions, examples, strict=True)]
  # Of several processes the first one's numbers count, should a metric depend on chance.
  result = EvalResult(metrics=processes.from_first(task.metrics(targets, values)),
                      predictions=predictions)
  if output_file is not None and processes.is_first():
    write_predictions(output_file, predictions)
  return result


def as_example(record: Mapping[str, Any]) -> dict[str, Any]:
  """The raw example with `inputs` and `targets` added: what postprocessors are given."""
  texts = _texts(record)
  return {**record['example'], 'inputs': texts['inputs'], 'targets': texts['targets']}


def write_predictions(path: str | os.PathLike, predictions: Iterable[Mapping[str, Any]]):
  """Writes JSON lines, all or none.

  Raises:
    UserError: the file cannot be written.
  """
  lines = (json.dumps(prediction, ensure_ascii=False) + '\n' for prediction in predictions)
  write_atomically(path, lambda file: file.writelines(line.encode('utf-8') for line in lines))


def _texts(record: Mapping[str, Any]) -> dict[str, Any]:
  return {'id': record['id'], 'inputs': record['inputs_pretokenized'],
          'targets': record['targets_pretokenized']}


def _rows(records: Sequence[Mapping | None], result) -> Iterator[tuple[Mapping, Any]]:
  """Pairs of a batch's real records with their rows of the result, fetched from the devices."""
  host = jax.tree.map(np.asarray, result)
  for row, record in enumerate(records):
    if record is not None:
      yield record, jax.tree.map(lambda leaf, row=row: leaf[row], host)
