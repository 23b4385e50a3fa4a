"""T5's text forms of published datasets: from a raw example to `inputs` and `targets`.

The strings are those of T5's tasks (https://arxiv.org/abs/1910.10683, appendix D), byte for byte;
raw examples have the features that TensorFlow Datasets gives them. All are frozen dataclasses:
their fields are what the cache is keyed by.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from prompt_tuning.data.preprocessors import UNLABELLED, field_text, label_text
from prompt_tuning.errors import UserError, excerpt

Example = Mapping[str, Any]

_BOOLEANS = ('False', 'True')
# \s of T5's regular expressions: other white space, such as a no-break space, is a character.
_SPACES = re.compile(r'[\t\n\f\r ]+')
_PUNCTUATION = re.compile(r'([!-/:-@\[-`{-~])')  # of ASCII alone
_HIGHLIGHT = '\n@highlight\n'


@dataclasses.dataclass(frozen=True)
class Taskless:
  """Another form without the task's name, which is its first word.

  Attributes:
    form: the form with the name.
  """
  form: Callable[[Example], list[Example]]

  def __call__(self, example: Example) -> list[Example]:
    return [{**made, 'inputs': without_first_word(made['inputs'])} for made in self.form(example)]


def without_first_word(text: str) -> str:
  """The text after its first space; tabs and line ends do not end a word. All of it if no space."""
  _, space, rest = text.partition(' ')
  return rest if space else text


@dataclasses.dataclass(frozen=True)
class Renamed:
  """A form of features that go by other names in some example.

  Attributes:
    form: the form.
    names: (name that an example may have, name that the form asks for).
  """
  form: Callable[[Example], list[Example]]
  names: tuple[tuple[str, str], ...]

  def __call__(self, example: Example) -> list[Example]:
    found = {new: example[old] for old, new in self.names if old in example}
    return self.form({**example, **found})


@dataclasses.dataclass(frozen=True)
class SingleSpaces:
  """Another form with runs of white space as one space.

  Attributes:
    form: the form.
  """
  form: Callable[[Example], list[Example]]

  def __call__(self, example: Example) -> list[Example]:
    return [{**made, 'inputs': _SPACES.sub(' ', made['inputs'])} for made in self.form(example)]


@dataclasses.dataclass(frozen=True)
class MultiRC:
  """A question, one of its answers and the paragraph, without their markup; is the answer right?"""

  def __call__(self, example: Example) -> list[Example]:
    parts = [f'{field}: {field_text(example, field, "This task")}'
             for field in ('question', 'answer', 'paragraph')]
    inputs = re.sub('</?b>', '', ' '.join(['multirc', *parts]).replace('<br>', ' '))
    return [{'inputs': inputs, 'targets': label_text(example, _BOOLEANS),
             **_flat_idx(example, ('paragraph', 'question', 'answer'))}]


@dataclasses.dataclass(frozen=True)
class Record:
  """A query with a gap, the entities and the passage; one example for each right entity.

  `answers` keeps all of them, for evaluation.
  """

  def __call__(self, example: Example) -> list[Example]:
    passage = field_text(example, 'passage', 'This task')
    passage = re.sub(f'([.?!"\']){_HIGHLIGHT}', r'\1 ', passage).replace(_HIGHLIGHT, '. ')
    query = field_text(example, 'query', 'This task')
    inputs = (f'record query: {query} entities: {", ".join(texts(example, "entities"))} '
              f'passage: {passage}')
    answers = texts(example, 'answers')
    return [{'inputs': inputs, 'targets': answer, 'answers': answers,
             **_flat_idx(example, ('passage', 'query'))}
            for answer in answers or [UNLABELLED]]


@dataclasses.dataclass(frozen=True)
class WscReferent:
  """Winograd schemas as generation: which noun does the marked pronoun stand for?

  Attributes:
    only_correct: leave out examples whose noun is not the right one: they give no target to train
      on. Evaluation keeps them (see postprocessors.Referent).
  """
  only_correct: bool

  def __call__(self, example: Example) -> list[Example]:
    label = example.get('label', 0)
    if self.only_correct and label != 1:
      return []
    pronoun = field_text(example, 'span2_text', 'This task')
    # Every X of the text that stands alone becomes the pronoun too, as in T5.
    text = _with_gap(example, pronoun).replace(' X ', f' *{pronoun}* ')
    return [{'inputs': f'wsc: {text}', 'label': label,
             'targets': field_text(example, 'span1_text', 'This task')}]


@dataclasses.dataclass(frozen=True)
class WscMarked:
  """Winograd schemas as classification: `*` around the noun, `#` around the pronoun."""

  def __call__(self, example: Example) -> list[Example]:
    first, second = (_span_index(example, name) for name in ('span1', 'span2'))
    text = field_text(example, 'text', 'This task')
    text = _marked(text, field_text(example, 'span1_text', 'This task'), first, '*')
    second += 2 * (first < second)  # the marks are words now
    text = _marked(text, field_text(example, 'span2_text', 'This task'), second, '#')
    return [{'inputs': f'wsc text: {text}', 'targets': label_text(example, _BOOLEANS)}]


@dataclasses.dataclass(frozen=True)
class DprReferent:
  """Definite pronoun resolution (https://aclanthology.org/D12-1071) in the form of WscReferent."""

  def __call__(self, example: Example) -> list[Example]:
    pronoun = re.escape(field_text(example, 'pronoun', 'This task'))
    sentence = field_text(example, 'sentence', 'This task')
    marked = re.sub(f' ({pronoun})([ .,])', r' *\1*\2', sentence, count=1)
    candidates = texts(example, 'candidates')
    label = example.get('label')
    if not isinstance(label, int | np.integer) or not 0 <= label < len(candidates):
      raise UserError(f"field 'label' is {excerpt(label)}; the number of a candidate is needed.")
    return [{'inputs': f'wsc: {marked}', 'targets': candidates[label]}]


@dataclasses.dataclass(frozen=True)
class Similarity:
  """STS-B: a similarity from 0 to 5, rounded to the nearest fifth, as text."""

  def __call__(self, example: Example) -> list[Example]:
    first, second = (field_text(example, f, 'This task') for f in ('sentence1', 'sentence2'))
    label = example.get('label')
    if isinstance(label, bool) or not isinstance(label, int | float | np.number):
      raise UserError(f"field 'label' is {excerpt(label)}; a number from 0 to 5 is needed.")
    five = np.float32(5)  # in float32, half to even, 2.1 is nearer to 2.0 than to 2.2
    rounded = np.round(np.float32(label) * five) / five
    return [{'inputs': f'stsb sentence1: {first} sentence2: {second}', 'targets': f'{rounded:.1f}'}]


@dataclasses.dataclass(frozen=True)
class QuestionAndContext:
  """Extractive question answering with spaces around punctuation, as T5 writes SQuAD.

  The target is the example's `answer` if it is not empty, else the first of its `detected_answers`
  (those that MRQA found in the context), else of its `answers`; all answers are kept for
  evaluation.

  Attributes:
    context: False asks without the passage.
    detected: False takes the first of the `answers` as the target in any case.
  """
  context: bool = True
  detected: bool = True

  def __call__(self, example: Example) -> list[Example]:
    question, context = (
        pad_punctuation(field_text(example, f, 'This task')) for f in ('question', 'context'))
    answers = [pad_punctuation(answer) for answer in texts(example, 'answers')]
    found = texts(example, 'detected_answers') if self.detected else []
    if self.detected and example.get('answer'):
      found = [field_text(example, 'answer', 'This task')]
    targets = [*map(pad_punctuation, found), *answers, UNLABELLED]
    inputs = (f'question: {question} context: {context}' if self.context
              else f'squad trivia question: {question}')
    return [{'inputs': _SPACES.sub(' ', inputs), 'targets': targets[0],
             'question': question, 'context': context, 'answers': answers}]


@dataclasses.dataclass(frozen=True)
class Prefixed:
  """A word or two in front of one text feature, another one as target.

  Attributes:
    prefix: first words of the inputs.
    inputs: feature of the inputs.
    targets: feature of the target.
  """
  prefix: str
  inputs: str
  targets: str

  def __call__(self, example: Example) -> list[Example]:
    return [{'inputs': f'{self.prefix} {field_text(example, self.inputs, "This task")}',
             'targets': field_text(example, self.targets, 'This task')}]


@dataclasses.dataclass(frozen=True)
class Translate:
  """`translate English to German: ...`, from the one of two features to the other.

  Attributes:
    source: code and English name of the language of the inputs; the code is the feature.
    target: the same of the targets.
  """
  source: tuple[str, str]
  target: tuple[str, str]

  def __call__(self, example: Example) -> list[Example]:
    text = field_text(example, self.source[0], 'This task')
    return [{'inputs': f'translate {self.source[1]} to {self.target[1]}: {text}',
             'targets': field_text(example, self.target[0], 'This task')}]


@dataclasses.dataclass(frozen=True)
class Triples:
  """Triples `subject | property | object` with && between; one example for each reference.

  `answers` keeps all references, for evaluation.

  Attributes:
    name: first word of the inputs.
  """
  name: str

  def __call__(self, example: Example) -> list[Example]:
    inputs = f'{self.name}: {" && ".join(texts(example, "triples"))}'
    references = texts(example, 'lexs')
    return [{'inputs': inputs, 'targets': reference, 'answers': references}
            for reference in references or [UNLABELLED]]


def pad_punctuation(text: str) -> str:
  """ASCII punctuation with spaces around it, runs of white space as one space."""
  return _SPACES.sub(' ', _PUNCTUATION.sub(r' \1 ', text))


def texts(example: Example, field: str) -> list[str]:
  """A feature that is a list of texts, also as `{'text': [...]}`.

  Raises:
    UserError: it is none.
  """
  value = example.get(field, [])
  value = value.get('text') if isinstance(value, Mapping) else value
  if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
    raise UserError(f'field {field!r} is {excerpt(value)}; a list of texts is needed.')
  return list(value)


def _flat_idx(example: Example, parts: tuple[str, ...]) -> dict[str, Any]:
  """{'idx/question': 3, ...}; an `idx` without parts stands for each of them."""
  idx = example.get('idx')
  return {f'idx/{part}': idx[part] if isinstance(idx, Mapping) else idx for part in parts}


def _span_index(example: Example, span: str) -> int:
  index = example.get(f'{span}_index')
  if isinstance(index, bool) or not isinstance(index, int | np.integer) or index < 0:
    raise UserError(f"field '{span}_index' is {excerpt(index)}; the number of a word is needed.")
  return int(index)


def _with_gap(example: Example, pronoun: str) -> str:
  """The text of a schema with X in place of its pronoun."""
  words = field_text(example, 'text', 'This task').split(' ')
  index = _span_index(example, 'span2')
  for at in (index, index + 1):  # one published index is too low by one
    if words[at:at + 1] == [pronoun]:
      return ' '.join([*words[:at], 'X', *words[at + 1:]])
  word = words[index] if index < len(words) else ''
  if pronoun and word.startswith(pronoun):  # one published text has punctuation at its pronoun
    return ' '.join([*words[:index], 'X', word.removeprefix(pronoun), *words[index + 1:]]).rstrip()
  raise UserError(f'word {index} of {excerpt(" ".join(words))} is {excerpt(word)}, and not the '
                  f"pronoun {excerpt(pronoun)} that 'span2_text' names.")


def _marked(text: str, span: str, index: int, mark: str) -> str:
  """The text with marks around a span that begins with word number `index`; unchanged if not."""
  pattern = rf'^((?:\S+\s){{{index}}})({re.escape(span)})'
  return re.sub(pattern, rf'\1{mark} \2 {mark}', text, flags=re.ASCII)
