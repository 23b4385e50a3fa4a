"""Rank classification: the label whose text the model finds most probable.

Unlike generation it always answers with a label, and it shows how sure the model is of each.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import losses
from prompt_tuning.data import tokenizing
from prompt_tuning.data.loader import EvalBatch
from prompt_tuning.data.task import Task
from prompt_tuning.decoding import encoding
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation import evaluator
from prompt_tuning.vocabulary import Vocabulary

# Target positions of all labels that are decoded at once: bounds the memory that logits take.
_MAX_POSITIONS = 1024


def label_ids(labels: Sequence[str], vocabulary: Vocabulary, task: Task | None = None
              ) -> np.ndarray:
  """Token ids of labels, each ended by EOS: [C, L] int32, 0 behind the end.

  Args:
    labels: their texts.
    vocabulary: of the backbone.
    task: whose targets they are; its sentinels stand before them.

  Raises:
    UserError: there are no labels, or one gives no tokens.
  """
  if not labels:
    raise UserError('Ranking needs labels and the task has none; give CLASS_LABELS.')
  encoded = [vocabulary.encode(label) for label in labels]
  empty = [label for label, ids in zip(labels, encoded, strict=True) if not ids]
  if empty:
    raise UserError(f'Label {empty[0]!r} gives no tokens with this vocabulary; choose another.')
  if task is not None:
    encoded = [tokenizing.target_ids(task, label, vocabulary) for label in labels]
  ids = np.zeros((len(labels), 1 + max(map(len, encoded))), np.int32)
  for row, label in zip(ids, encoded, strict=True):
    row[:len(label) + 1] = [*label, vocabulary.eos_id]
  return ids


def score_labels(model, params, batch, ids, *, normalize_by_length=False):
  """Log-probabilities of every label given every input; the inputs are encoded once.

  Args:
    model: a backbone or a PeftModel.
    params: its parameters.
    batch: dict with encoder_input_tokens [B, T], or packed rows of B examples, as in `generate`.
    ids: [C, L] int32 from `label_ids`.
    normalize_by_length: divide by the number of a label's tokens, EOS included (labels of unlike
      length).

  Returns:
    [B, C] float32.
  """
  encoded, inputs, features = encoding.encode(model, params, batch)
  ids = jnp.asarray(ids)
  batch_size, length = encoded.shape[0], ids.shape[1]

  def score(label):
    targets = jnp.broadcast_to(label, (batch_size, length))
    shifted = jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    logits = model.apply(
        {'params': params}, encoded, inputs, shifted, targets, **features, method='decode')
    scores = losses.sequence_scores(logits, targets, (targets != 0).astype(jnp.float32))
    if normalize_by_length:
      scores = scores / jnp.sum(label != 0).astype(jnp.float32)
    return scores

  # In chunks of labels side by side: the encoded inputs are not repeated for them.
  chunk = max(1, _MAX_POSITIONS // (batch_size * length))
  return jax.lax.map(score, ids, batch_size=chunk).T


_jitted = jax.jit(score_labels, static_argnames=('model', 'normalize_by_length'))


def score_labels_jit(model, params, batch, ids, *, normalize_by_length=False):
  """`score_labels`, compiled once for each model and shape; other entries of a batch stay out."""
  inputs = {name: batch[name] for name in encoding.INPUTS if name in batch}
  return _jitted(model, params, inputs, ids, normalize_by_length=normalize_by_length)


def rank_classification(
    task: Task,
    model,
    params,
    batches: Iterable[EvalBatch],
    vocabulary: Vocabulary,
    *,
    labels: Sequence[str] | None = None,
    normalize_by_length: bool = False,
    output_file: str | os.PathLike | None = None,
    place_batch: Callable[[Mapping], Mapping] = dict,
) -> evaluator.EvalResult:
  """Answers every example with its most probable label (Brown et al. 2020, section 2.4).

  Args:
    task: names labels, postprocess_fn and metric_fns.
    model: a backbone or a PeftModel.
    params: its parameters.
    batches: such as a data.loader.EvalLoader.
    vocabulary: encodes the labels.
    labels: candidates; None takes the task's.
    normalize_by_length: see `score_labels`.
    output_file: predictions are written there as JSON lines.
    place_batch: puts a batch's arrays on devices.

  Returns:
    EvalResult; metrics are `accuracy` (percent of examples whose target text ranks first) and the
    task's own; each prediction has `scores`, {label: log-probability}.

  Raises:
    UserError: no labels, no example, or an output that cannot be written.
  """
  labels = tuple(labels or task.labels or ())
  ids = label_ids(labels, vocabulary, task)

  def run(number, arrays):
    del number
    return score_labels_jit(
        model, params, place_batch(arrays), ids, normalize_by_length=normalize_by_length)

  predictions, records = [], []
  for record, scores in evaluator.per_example(batches, run):
    predictions.append({
        'id': record['id'], 'inputs': record['inputs_pretokenized'],
        'targets': record['targets_pretokenized'], **ranked(labels, scores)})
    records.append(record)
  result = evaluator.finish(task, records, predictions, output_file)
  right = sum(p['prediction'] == p['targets'] for p in predictions)
  accuracy = {'accuracy': 100.0 * right / len(predictions)}
  return dataclasses.replace(result, metrics=accuracy | result.metrics)


def ranked(labels: Sequence[str], scores) -> dict:
  """`prediction`, the label of the largest of `scores` [C], and `scores` by label."""
  return {'prediction': labels[int(np.argmax(scores))],
          'scores': {label: float(score) for label, score in zip(labels, scores, strict=True)}}
