"""Checks of a model: what it trains, whether its vocabulary is its own, what it says untuned."""

import collections
import re
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np

from prompt_tuning import params as params_lib
from prompt_tuning.diagnosis.findings import Finding, note, percent, problem, warning
from prompt_tuning.peft.model_tuning import ModelTuning
from prompt_tuning.vocabulary import Vocabulary

LARGE_SHARE = 0.2  # trained, of all parameters; small methods stay far below
LEAST_VOCABULARY = 0.5  # of the embedding's rows


def check_trainable(methods: Sequence, trainable, frozen) -> list[Finding]:
  """Counts what is trained, and by which method.

  Args:
    methods: of the PeftModel.
    trainable: tree of arrays or shapes.
    frozen: the rest.
  """
  paths = list(params_lib.flatten(trainable))
  count, rest = params_lib.count(trainable), params_lib.count(frozen)
  if not count:
    names = ', '.join(type(method).__name__ for method in methods) or 'none'
    return [problem('nothing is trained', f'0 of {rest:,} parameters are trained; methods: '
                    f'{names}.')]
  text = f'{count:,} of {count + rest:,} ({percent(count, count + rest)}).'
  matched = '; '.join(f'{type(method).__name__}: {_matched(method, paths)}' for method in methods)
  whole = any(isinstance(method, ModelTuning) for method in methods)
  kind = warning if count > LARGE_SHARE * (count + rest) and not whole else note
  return [kind('trained parameters', f'{text} {matched}.')]


def _matched(method, paths):
  """Modules that a method trains something in; a number of layers stands as one."""
  leaves = [path for path in paths if params_lib.matches(method.trainable, path)]
  modules = collections.Counter(
      re.sub(r'layers_\d+', 'layers_*', path.rpartition('/')[0]) for path in leaves)
  if len(modules) > 6:
    return f'{len(leaves)} arrays in {len(modules)} kinds of modules'
  return ', '.join(f'{name} ({count})' for name, count in modules.items())


def check_vocabulary(vocabulary: Vocabulary, rows: int, highest_id: int,
                     stored: Vocabulary | None = None) -> list[Finding]:
  """Whether the vocabulary is the one that the base was trained on.

  Args:
    vocabulary: that is used.
    rows: of the embedding table.
    highest_id: in the tokenised examples.
    stored: the vocabulary beside the checkpoint, if there is one.
  """
  if highest_id >= rows:
    return [problem('vocabulary', f'The examples have ids up to {highest_id} and the base has '
                    f'{rows} embeddings.')]
  if stored is not None and stored.hash != vocabulary.hash:
    return [problem('vocabulary', f'{vocabulary!r} is used and {stored!r} lies beside the '
                    'checkpoint; their pieces differ.')]
  if vocabulary.vocab_size < LEAST_VOCABULARY * rows:
    return [problem('vocabulary', f'{vocabulary!r} has {vocabulary.vocab_size} ids and the base '
                    f'{rows} embeddings, {percent(vocabulary.vocab_size, rows)} of which can '
                    'occur.')]
  known = 'is the one beside the checkpoint' if stored is not None else (
      'was given; the checkpoint has none to compare it with')
  return [note('vocabulary', f'{vocabulary!r}, {vocabulary.vocab_size} ids for {rows} embeddings, '
               f'{known}.')]


def untuned_answers(answers: Iterable[str], labels: Sequence[str] | None) -> list[Finding]:
  """What the base says by itself: the five most common answers, and how many are labels."""
  counts = collections.Counter(answers)
  total = sum(counts.values())
  if not total:
    return []
  common = ', '.join(f'{text!r} ({count})' for text, count in counts.most_common(5))
  text = f'{total} examples, greedy: {common}.'
  if labels:
    said = [label for label in labels if counts[label]]
    right = sum(counts[label] for label in labels)
    text += (f' {percent(right, total)} are labels' +
             (f' ({", ".join(map(repr, said))}).' if said else '.'))
  return [note('untuned answers', text)]


def answers_of(batch, sequences, vocabulary: Vocabulary) -> list[str]:
  """Texts of generated sequences [B, K, L], best first, for the real rows of an EvalBatch."""
  best = np.asarray(jax.device_get(sequences))[:, 0]
  return [vocabulary.decode(row) for row, record in zip(best, batch.records, strict=True)
          if record is not None]


def highest_id(tokens: Iterable[Mapping | tuple]) -> int:
  """The largest id of (inputs, targets) pairs."""
  return max(int(ids.max()) for pair in tokens for ids in pair if len(ids))
