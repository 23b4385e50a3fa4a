"""From the texts of a task to token ids, before anything is cut."""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.data.task import Task
from prompt_tuning.errors import UserError
from prompt_tuning.vocabulary import EOS_ID, Vocabulary

log = logging.getLogger(__name__)

FEATURES = ('inputs', 'targets')
_CHUNK = 2048  # examples tokenised in one call, at most
_CHUNK_CHARACTERS = 2**22  # and characters of them, at about which a call ends


def tokenize(
    task: Task, split: str, vocabulary: Vocabulary, lengths: Mapping[str, int | None],
    rows: Iterable[tuple[str, Mapping[str, Any]]] | None = None,
) -> Iterator[tuple[str, dict[str, Any], np.ndarray, np.ndarray]]:
  """Yields (example id, example, input ids, target ids), before truncation.

  Ids of text have no end of sequence yet, see `ended`; ids that preprocess gave are passed on as
  they are. What an example becomes does not depend on the others.

  Args:
    task: the task.
    split: name of the split.
    vocabulary: of the backbone.
    lengths: TASK_FEATURE_LENGTHS, which objectives cut a text by.
    rows: those of the source that are wanted, see Task.examples.

  Raises:
    UserError: a task with an objective has no lengths, or a broken source.
  """
  if task.objective is not None and not all(lengths.get(feature) for feature in FEATURES):
    raise UserError(f'Task {task.name!r} makes its examples as long as TASK_FEATURE_LENGTHS says: '
                    "give it, as in {'inputs': 512, 'targets': 512}.")
  for chunk in _chunks(task.examples(split, rows)):
    columns = {}
    for feature in FEATURES if task.objective is None else (*FEATURES, 'text'):
      texts = [ex[feature] for _, ex in chunk if isinstance(ex.get(feature), str)]
      columns[feature] = iter(vocabulary.encode_batch(texts) if texts else ())
    for example_id, example in chunk:
      if task.objective is None:
        pair = formed(task, *(_ids(example, f, columns[f]) for f in FEATURES), vocabulary, lengths,
                      example_id)
        if pair is not None:
          yield example_id, example, *pair
      elif 'text' in example:
        ids = np.asarray(next(columns['text']), np.int32)
        rng = np.random.default_rng(_seed(task.objective.seed, example_id))
        pairs = task.objective(ids, vocabulary, lengths, rng)
        for k, (inputs, targets) in enumerate(pairs):
          yield f'{example_id}.{k}', example, inputs, targets
      else:
        yield example_id, example, *(_ids(example, f, columns[f]) for f in FEATURES)


def formed(
    task: Task, inputs: np.ndarray, targets: np.ndarray, vocabulary: Vocabulary,
    lengths: Mapping[str, int | None], example_id: str = '',
) -> tuple[np.ndarray, np.ndarray] | None:
  """Token ids of an example with the task's `task_index` and `on_tokens`; None if it is left out.

  Args:
    task: the task.
    inputs: ids of the inputs' text.
    targets: ids of the targets' text.
    vocabulary: of the backbone.
    lengths: TASK_FEATURE_LENGTHS.
    example_id: seeds what is random.
  """
  if task.task_index is not None:
    inputs = np.insert(inputs, 0, vocabulary.sentinel(task.task_index))
  if task.on_tokens is None:
    return inputs, targets
  rng = np.random.default_rng(_seed(0, example_id))
  return task.on_tokens(inputs, targets, vocabulary, lengths, rng)


def target_ids(task: Task, text: str, vocabulary: Vocabulary) -> list[int]:
  """Token ids of a text as a target of the task, without end of sequence."""
  ids = np.asarray(vocabulary.encode(text), np.int32)
  return formed(task, np.zeros(0, np.int32), ids, vocabulary, {})[1].tolist()


def ended(example: Mapping[str, Any], pair: Sequence[np.ndarray]) -> list[np.ndarray]:
  """(input ids, target ids) of `tokenize` with their end of sequence.

  Ids from outside carry one where they want it.
  """
  return [ids if _is_ids(example.get(feature)) else np.append(ids, np.int32(EOS_ID))
          for ids, feature in zip(pair, FEATURES, strict=True)]


def _is_ids(value: Any) -> bool:
  return value is not None and not isinstance(value, str)


def check_labels(task: Task, vocabulary: Vocabulary, length: int | None = None):
  """Checks that the vocabulary can write and tell apart a task's labels.

  Args:
    task: the task.
    vocabulary: of the backbone.
    length: most tokens of a target, end of sequence included.

  Raises:
    UserError: a label gives no tokens or too many, or two give the same.
  """
  seen: dict[tuple[int, ...], str] = {}
  for label in task.labels or ():
    ids = tuple(vocabulary.encode(label))
    if not ids:
      raise UserError(
          f'Label {label!r} of task {task.name!r} gives no tokens with this vocabulary; choose '
          'another text in CLASS_LABELS.')
    size = len(target_ids(task, label, vocabulary)) + 1
    if length is not None and size > length:
      raise UserError(
          f'Label {label!r} of task {task.name!r} is {size} tokens with its end of sequence; '
          f'TASK_FEATURE_LENGTHS cuts targets to {length}: give {size} or more.')
    if ids in seen:
      raise UserError(
          f'Labels {seen[ids]!r} and {label!r} of task {task.name!r} are the same tokens with this '
          'vocabulary; choose texts that differ.')
    seen[ids] = label
    if vocabulary.decode(ids) != label:
      log.warning(
          'Label %r of task %s reads back as %r with this vocabulary: a prediction of it will not '
          'count as right. Choose a label text that the vocabulary can write.',
          label, task.name, vocabulary.decode(ids))


def _ids(example: Mapping[str, Any], feature: str, encoded: Iterator) -> np.ndarray:
  if feature not in example:
    raise UserError(
        f'An example has no {feature!r}; preprocess has to give "inputs" and "targets" (or "text" '
        f'for a task with an objective). It has {", ".join(map(repr, example))}.')
  value = example[feature]
  return np.asarray(next(encoded) if isinstance(value, str) else value, np.int32)


def _seed(seed: int, example_id: str) -> list[int]:
  digest = hashlib.sha256(example_id.encode()).digest()
  return [seed, int.from_bytes(digest[:8], 'little')]


def _chunks(examples: Iterator) -> Iterator[list]:
  """Lists of examples, few of them where texts are long."""
  chunk, characters = [], 0
  for example_id, example in examples:
    chunk.append((example_id, example))
    characters += sum(len(value) for value in example.values() if isinstance(value, str))
    if len(chunk) == _CHUNK or characters > _CHUNK_CHARACTERS:
      yield chunk
      chunk, characters = [], 0
  if chunk:
    yield chunk
