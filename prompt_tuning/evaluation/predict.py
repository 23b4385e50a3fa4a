"""Predictions for plain texts: what `infer` does, without a task or files."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from prompt_tuning.data import loader as loader_lib
from prompt_tuning.data import plan as plan_lib
from prompt_tuning.data import tokenizing
from prompt_tuning.data.task import Task
from prompt_tuning.decoding.generate import DecodeConfig, generate_jit
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation import evaluator, scoring
from prompt_tuning.vocabulary import EOS_ID, Vocabulary

log = logging.getLogger(__name__)


def predict(
    texts: Sequence[str],
    model,
    params,
    vocabulary: Vocabulary,
    config: DecodeConfig,
    *,
    labels: Sequence[str] | None = None,
    task: Task | None = None,
    inputs_length: int | None = None,
    batch_size: int = 32,
    share: tuple[int, int] = (0, 1),
    place_batch: Callable[[Mapping], Mapping] = dict,
    rng=None,
) -> list[dict[str, Any]]:
  """Answers texts, in their order.

  Args:
    texts: inputs as the model is to read them (a task's template is applied before).
    model: a backbone or a PeftModel.
    params: its parameters.
    vocabulary: of the backbone.
    config: how to generate.
    labels: answer with the most probable of these instead of generating.
    task: whose inputs the texts are, for the sentinels that stand in them and before labels; None
      for none.
    inputs_length: most tokens of an input, EOS included, without the prompt; longer ones are cut,
      which is logged. None keeps everything.
    batch_size: rows decoded together.
    share: (index, count) of the rows that this process puts on its devices, see
      partitioning.data_share; every process gets all answers.
    place_batch: puts a batch's arrays on devices, such as partitioning.shard_batch with its mesh.
    rng: jax.random key for the strategy 'sample'.

  Returns:
    One dict a text: `inputs`, `prediction` and `scores`, {answer: log-probability}: of every label,
    or of every generated sequence.

  Raises:
    UserError: there is no text, or a setting does not fit.
  """
  if not texts:
    raise UserError('There is nothing to predict: the input holds no text.')
  ids = _encode(texts, vocabulary, inputs_length, task)
  candidates = scoring.label_ids(labels, vocabulary, task) if labels else None

  def run(number, arrays):
    if candidates is not None:
      return scoring.score_labels_jit(model, params, place_batch(arrays), candidates)
    key = None if rng is None else jax.random.fold_in(rng, number)
    return generate_jit(model, params, place_batch(arrays), config, key)

  answers: list[dict[str, Any]] = [{} for _ in texts]
  batches = _batches(ids, inputs_length, batch_size, share)
  for record, result in evaluator.per_example(batches, run):
    answer = scoring.ranked(labels, result) if labels else _generated(result, vocabulary)
    answers[record['row']] = {'inputs': texts[record['row']], **answer}
  return answers


def _encode(texts, vocabulary, inputs_length, task) -> list[np.ndarray]:
  """Token ids with EOS of every text, cut to `inputs_length`."""
  ids, cut, no_target = [], 0, np.zeros(0, np.int32)
  for encoded in vocabulary.encode_batch(texts):
    if task is not None:
      encoded, _ = tokenizing.formed(task, np.asarray(encoded, np.int32), no_target, vocabulary,
                                     {'inputs': inputs_length})
    kept = encoded if inputs_length is None else encoded[:inputs_length - 1]
    cut += len(kept) < len(encoded)
    ids.append(np.asarray([*kept, EOS_ID], np.int32))
  if cut:
    log.warning('%d of %d inputs were cut to %d tokens. Raise TASK_FEATURE_LENGTHS to keep them.',
                cut, len(ids), inputs_length)
  return ids


def _batches(ids, inputs_length, batch_size, share) -> Iterator[loader_lib.EvalBatch]:
  """Batches of inputs of like length, without targets; a record says which text a row is."""
  lengths = np.asarray([(len(row), 1) for row in ids], np.int32)
  buckets = plan_lib.choose_buckets(lengths, {'inputs': inputs_length})
  no_target = np.zeros(0, np.int32)
  for batch in plan_lib.eval_plan(lengths, buckets, batch_size):
    mine = plan_lib.host_share(batch, *share).rows
    real = np.flatnonzero(mine >= 0)
    pairs = [(ids[row], no_target) for row in mine[real]]
    yield loader_lib.EvalBatch(
        loader_lib.assemble(pairs, real, len(mine), batch.shape),
        tuple({'row': int(row)} if row >= 0 else None for row in batch.rows))


def _generated(decoded, vocabulary) -> dict[str, Any]:
  """`prediction` and `scores` of one row's sequences [K, L], best first."""
  scores: dict[str, float] = {}
  for sequence, score in zip(decoded.sequences, decoded.scores, strict=True):
    # Two sequences can read the same: the better one comes first and stays.
    scores.setdefault(vocabulary.decode(sequence), float(score))
  return {'prediction': next(iter(scores)), 'scores': scores}
