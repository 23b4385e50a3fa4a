"""Tasks of SeqIO used here, and tasks of here registered with SeqIO.

The only module that imports seqio (and TensorFlow with it), and only inside functions.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from prompt_tuning import vocabulary as vocabulary_lib
from prompt_tuning.data import sources, tokenizing
from prompt_tuning.data.mixture import Mixture
from prompt_tuning.data.task import Task
from prompt_tuning.errors import UserError

log = logging.getLogger(__name__)

_FEATURES = ('inputs', 'targets')


@dataclasses.dataclass(frozen=True)
class SeqioSource(sources.Source):
  """Tokenised examples of a SeqIO task.

  Attributes:
    name: of the task.
    lengths: TASK_FEATURE_LENGTHS as pairs, for preprocessors that cannot do without; None leaves
      cutting, and counting what is cut, to the cache.
  """
  name: str
  lengths: tuple[tuple[str, int], ...] | None = None

  @property
  def splits(self) -> tuple[str, ...]:
    return tuple(_task(self.name).splits)

  def at_lengths(self, lengths: Mapping[str, int | None]) -> 'SeqioSource':
    """The same source for preprocessors that ask for sequence lengths."""
    return dataclasses.replace(
        self, lengths=tuple(sorted((k, v) for k, v in lengths.items() if v is not None)))

  def read(self, split: str) -> sources.Rows:
    for row, example in enumerate(_examples(self.name, split, self.lengths)):
      yield str(row), example

  def fingerprint(self, split: str) -> str:
    # What a SeqIO task gives is known only by running it.
    digest = hashlib.sha256()
    for example in _examples(self.name, split, self.lengths):
      for feature in _FEATURES:
        digest.update(np.asarray(example[feature], np.int32).tobytes() + b'|')
      rest = {name: value for name, value in example.items() if name not in _FEATURES}
      digest.update(json.dumps(rest, sort_keys=True, default=repr).encode() + b'\n')
    return digest.hexdigest()


def find(name: str) -> Task | Mixture | None:
  """A registered SeqIO task or mixture as one of ours; None where there is no such name or SeqIO.

  A mixture keeps its tasks and their rates; how they are drawn is data.mixture's.
  """
  try:
    import seqio
  except ImportError:
    return None
  if name in seqio.TaskRegistry.names():
    return _task_of(seqio.TaskRegistry.get(name))
  if name in seqio.MixtureRegistry.names():
    theirs = seqio.MixtureRegistry.get(name)
    members = sorted(theirs.tasks, key=lambda task: task.name)  # they come in any order
    return Mixture(name=name, parts=tuple(
        (_task_of(task), float(theirs.get_rate(task))) for task in members))
  return None


def register(task: Task, vocabulary: vocabulary_lib.Vocabulary, name: str | None = None):
  """Adds a task to SeqIO's registry and returns the `seqio.Task`; known names are returned as is.

  Args:
    task: a task; one with an objective is tokenised here, at SeqIO's sequence lengths.
    vocabulary: for both features.
    name: in SeqIO's registry; None is the task's own.

  Raises:
    UserError: seqio cannot be imported.
  """
  try:
    import seqio
  except ImportError as error:
    raise UserError(f'Registering with SeqIO needs seqio, which cannot be imported: {error}. '
                    'Install it with pip install seqio.') from None
  name = name or task.name
  if name in seqio.TaskRegistry.names():
    return seqio.TaskRegistry.get(name)
  feature = seqio.Feature(vocabulary.to_seqio(), add_eos=True)
  return seqio.TaskRegistry.add(
      name,
      source=seqio.FunctionDataSource(
          functools.partial(_tf_dataset, task=task), splits=task.splits),
      preprocessors=[
          *([seqio.preprocessors.tokenize, seqio.CacheDatasetPlaceholder()] if _is_text(task) else
            [seqio.CacheDatasetPlaceholder(),  # what follows asks for sequence lengths
             functools.partial(_tokens, task=task, vocabulary=vocabulary)]),
          seqio.preprocessors.append_eos_after_trim,
      ],
      postprocess_fn=_PostprocessForSeqio(task),
      metric_fns=list(map(_metric_for_seqio, task.metric_fns)),
      output_features={f: feature for f in _FEATURES})


def _is_text(task: Task) -> bool:
  """Whether the texts of a task are all of it."""
  return task.objective is None and task.on_tokens is None and task.task_index is None


def _tokens(dataset, sequence_length: Mapping[str, int], *, task: Task,
            vocabulary: vocabulary_lib.Vocabulary):
  """The task's own token ids in place of a split's texts."""
  import tensorflow as tf
  lengths = {feature: (sequence_length or {}).get(feature) for feature in _FEATURES}
  split = next(iter(dataset.take(1).as_numpy_iterator()))['split'].decode()

  def rows():
    for example_id, example, *pair in tokenizing.tokenize(task, split, vocabulary, lengths):
      yield {**dict(zip(_FEATURES, pair, strict=True)), 'example_id': example_id, 'split': split,
             **{f'{f}_pretokenized': example.get(f, '') for f in _FEATURES}}

  text, ids = tf.TensorSpec((), tf.string), tf.TensorSpec((None,), tf.int32)
  names = ('example_id', 'split', *(f'{f}_pretokenized' for f in _FEATURES))
  return tf.data.Dataset.from_generator(rows, output_signature={
      **dict.fromkeys(names, text), **dict.fromkeys(_FEATURES, ids)})


def _tf_dataset(split: str, shuffle_files: bool = False, seed: int | None = None, *, task: Task):
  """Texts of a task as a tf.data.Dataset; `example_id` finds the raw fields again."""
  del shuffle_files, seed
  import tensorflow as tf

  def rows():
    for example_id, example in task.examples(split):
      yield {**{f: example.get(f, '') for f in _FEATURES}, 'example_id': example_id, 'split': split}

  spec = tf.TensorSpec((), tf.string)
  return tf.data.Dataset.from_generator(
      rows, output_signature={k: spec for k in (*_FEATURES, 'example_id', 'split')})


@dataclasses.dataclass(frozen=True)
class _PostprocessForSeqio:
  """A task's postprocess_fn, called as SeqIO does and given the raw example."""
  task: Task
  raw: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict, compare=False)

  def __call__(self, text: str, example: Mapping[str, Any] | None = None, is_target: bool = False):
    raw = None
    if example is not None:
      split, example_id = sources.plain(example['split']), sources.plain(example['example_id'])
      if split not in self.raw:
        self.raw[split] = dict(self.task.examples(split))
      raw = self.raw[split][example_id]
    return self.task.postprocess_fn(text, example=raw, is_target=is_target)


def _metric_for_seqio(metric_fn):
  """SeqIO reads the argument names to know that a metric wants predictions."""
  @functools.wraps(metric_fn, assigned=('__doc__',), updated=())
  def metric(targets, predictions):
    return metric_fn(targets, predictions)
  del metric.__wrapped__
  return metric


def _task_of(theirs) -> Task:
  """A Task that reads from SeqIO and measures as the SeqIO task does."""
  missing = [f for f in _FEATURES if f not in theirs.output_features]
  if missing:
    raise UserError(
        f'SeqIO task {theirs.name!r} has the features {", ".join(theirs.output_features)}; '
        '"inputs" and "targets" are needed.')
  if theirs.score_metric_fns:
    log.warning('SeqIO task %s: metrics of scores are left out.', theirs.name)
  return Task(
      name=theirs.name, source=SeqioSource(theirs.name),
      metric_fns=tuple(_numbers_only(m) for m in theirs.predict_metric_fns),
      postprocess_fn=_PostprocessOfSeqio(theirs.name),
      vocabulary=_vocabulary_of(theirs.output_features['targets'].vocabulary))


@dataclasses.dataclass(frozen=True)
class _PostprocessOfSeqio:
  """The postprocess_fn of a SeqIO task; tasks without one keep the text."""
  name: str

  def __call__(self, text: str, example: Any = None, is_target: bool = False):
    return _task(self.name).postprocess_fn(text, example=example, is_target=is_target)


def _numbers_only(metric_fn):
  """SeqIO metrics may also return texts and histograms for TensorBoard."""
  def metric(targets, predictions):
    values = metric_fn(targets, predictions)
    return {k: float(getattr(v, 'value', v)) for k, v in values.items()
            if isinstance(getattr(v, 'value', v), int | float | np.number)}
  return metric


def _task(name: str):
  import seqio
  return seqio.TaskRegistry.get(name)


@functools.lru_cache(maxsize=4)
def _examples(
    name: str, split: str, lengths: tuple[tuple[str, int], ...] | None) -> tuple[dict, ...]:
  """All examples of a split; kept, for the fingerprint and the cache both read them."""
  rows = _task(name).get_dataset(
      sequence_length=None if lengths is None else dict(lengths), split=split, shuffle=False,
      num_epochs=1).as_numpy_iterator()
  return tuple({k: sources.plain(v) for k, v in row.items()} for row in rows)


def _vocabulary_of(theirs) -> vocabulary_lib.Vocabulary | None:
  """The same vocabulary without SeqIO, to compare it with the backbone's."""
  import seqio
  if isinstance(theirs, seqio.ByteVocabulary):
    return vocabulary_lib.ByteVocabulary(theirs.extra_ids)
  path = getattr(theirs, 'sentencepiece_model_file', '')
  if os.path.isfile(path):
    return vocabulary_lib.SentencePieceVocabulary(path, theirs.extra_ids)
  log.warning('The vocabulary %s of the SeqIO task is no local file: it cannot be compared with '
              'that of the backbone. Make sure that they are the same.', theirs)
  return None
