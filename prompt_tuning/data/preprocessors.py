"""From a raw example to text, and from the tokens of plain text to a training pair.

All are frozen dataclasses: their fields are what the cache is keyed by.
"""

import dataclasses
import difflib
import functools
import math
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.errors import UserError, excerpt, listed
from prompt_tuning.vocabulary import Vocabulary

Example = Mapping[str, Any]
Pair = tuple[np.ndarray, np.ndarray]

_BOOLEANS = ('true', 'false')
_WHOLE = re.compile(r'(-?(?:0|[1-9][0-9]{0,17}))(?:\.0*)?')
UNLABELLED = '<unk>'  # T5's target text for examples of an unlabelled test split


@dataclasses.dataclass(frozen=True)
class NamedFields:
  """`prefix field1: text1 field2: text2` with a label as target: T5's form of GLUE and SuperGLUE.

  Attributes:
    prefix: first word, the name of the task.
    fields: text features in the order in which they are written.
    labels: label texts in class order.
  """
  prefix: str
  fields: tuple[str, ...]
  labels: tuple[str, ...]

  def __call__(self, example: Example) -> list[Example]:
    parts = [f'{field}: {field_text(example, field, "This task")}' for field in self.fields]
    return [{'inputs': ' '.join([self.prefix, *parts]),
             'targets': label_text(example, self.labels)}]


def label_text(example: Example, labels: Sequence[str]) -> str:
  """The text of the class that `label` numbers; UNLABELLED below 0.

  Raises:
    UserError: there is no such class.
  """
  label = example.get('label')
  if not isinstance(label, int | np.integer) or label >= len(labels):
    raise UserError(f"field 'label' is {excerpt(label)}; the number of a class is needed, 0 to "
                    f'{len(labels) - 1} for {listed(labels)}, or below 0 for none.')
  return UNLABELLED if label < 0 else labels[label]


@dataclasses.dataclass(frozen=True)
class Template:
  """Inputs from a template such as 'review: {text}', the target from a field.

  Attributes:
    template: text with `{field}`; a literal brace is doubled.
    target_field: field of the target.
    class_labels: value -> label text, as pairs; None for free text. A field's value is compared
      as text first; then as a whole number (1, 1.0 and '1.0' are '1'), and true and false in any
      case. Where values and labels are the same and none is a number, the number of a class (from
      0) also means that class. A boolean is never the number of a class: that `true` is the second
      label would be a guess.
    required_target: without it, an example without the target field gets an empty target
      (inference).
  """
  template: str
  target_field: str
  class_labels: tuple[tuple[str, str], ...] | None = None
  required_target: bool = True

  def __post_init__(self):
    if not self.fields:
      raise UserError(
          f'INPUT_TEMPLATE={self.template!r} names no field. Write field names in braces, for '
          "example 'review: {text}'.")

  @functools.cached_property
  def fields(self) -> tuple[str, ...]:
    """Field names in the template, in order."""
    return tuple(field for _, field in self._parts if field is not None)

  @functools.cached_property
  def labels(self) -> tuple[str, ...] | None:
    """Distinct label texts in class order."""
    if self.class_labels is None:
      return None
    return tuple(dict.fromkeys(label for _, label in self.class_labels))

  def __call__(self, example: Example) -> list[Example]:
    inputs = ''.join(
        literal + ('' if field is None else field_text(example, field, 'INPUT_TEMPLATE'))
        for literal, field in self._parts)
    if self.target_field not in example and not self.required_target:
      return [{'inputs': inputs, 'targets': ''}]
    target = field_text(example, self.target_field, 'TARGET_FIELD')
    if self.class_labels is not None:
      target = self._known.get(target) or self._label(example[self.target_field], target)
    return [{'inputs': inputs, 'targets': target}]

  @functools.cached_property
  def _known(self) -> dict[str, str]:
    return dict(self.class_labels)

  @functools.cached_property
  def _numbers_allowed(self) -> bool:
    return all(value == label and whole_number(value) is None for value, label in self.class_labels)

  @functools.cached_property
  def _parts(self) -> list[tuple[str, str | None]]:
    try:
      parts = list(string.Formatter().parse(self.template))
    except ValueError as error:
      raise UserError(
          f'INPUT_TEMPLATE={self.template!r}: {error}. Fields stand in braces, a literal brace is '
          'doubled.') from None
    for _, field, spec, conversion in parts:
      if field == '' or spec or conversion:
        raise UserError(
            f'INPUT_TEMPLATE={self.template!r}: only plain field names can stand in braces.')
    return [(literal, field) for literal, field, _, _ in parts]

  def _label(self, value: Any, text: str) -> str:
    """Label of a value that is not written as in CLASS_LABELS."""
    number = whole_number(value)
    if number in self._known:
      return self._known[number]
    if number is not None and self._numbers_allowed and 0 <= int(number) < len(self._known):
      return self.class_labels[int(number)][1]
    if text.lower() in _BOOLEANS:
      for name, label in self.class_labels:
        if name.lower() == text.lower():
          return label
    near = difflib.get_close_matches(text[:100], self._known, n=1)
    hint = f' Did you mean {excerpt(near[0])}?' if near else ''
    if isinstance(value, bool):
      hint = ' For true and false give CLASS_LABELS as a mapping: {False: ..., True: ...}.'
    raise UserError(
        f'field {self.target_field!r} is {excerpt(text)}, which is none of CLASS_LABELS: '
        f'{listed(self._known)}.{hint}')


def field_text(example: Example, field: str, what: str) -> str:
  """Text of a feature of an example.

  Args:
    example: the example.
    field: name of the feature.
    what: names it, for messages.

  Raises:
    UserError: there is no such feature, or it is no text or number.
  """
  if field not in example:
    raise UserError(
        f'{what} names the field {field!r}, which this example does not have; its fields are '
        f'{listed(example)}.')
  return text_of(example[field], field)


def whole_number(value: Any) -> str | None:
  """Decimal digits of a whole number: of 3, 3.0, '3' and '3.0' alike. None for all else."""
  if isinstance(value, bool):
    return None
  if isinstance(value, int):
    return str(value)
  if isinstance(value, float):
    return str(int(value)) if value.is_integer() else None
  found = _WHOLE.fullmatch(value)
  return found and found[1]


def text_of(value: Any, field: str) -> str:
  """Text of a field's value; a boolean reads as JSON writes it.

  Raises:
    UserError: the value is null, has parts or is beyond the range of numbers.
  """
  if isinstance(value, str):
    return value
  if isinstance(value, bool):
    return 'true' if value else 'false'
  if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
    return str(value)
  raise UserError(f'field {field!r} is {excerpt(value)}; text or a number is needed.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption:
  """T5's pre-training objective: random spans become sentinels, the target restores them.

  Text longer than fits is cut into consecutive windows, each an example of its own.
  https://arxiv.org/abs/1910.10683, section 3.1.4.

  Attributes:
    noise_density: share of tokens that is masked.
    mean_noise_span_length: mean length of a masked span, in tokens.
    samples: how often each window is used, with other spans.
    seed: of the spans, together with the example id.
  """
  noise_density: float = 0.15
  mean_noise_span_length: float = 3.0
  samples: int = 1
  seed: int = 0

  def __call__(self, ids: np.ndarray, vocabulary: Vocabulary, lengths: Mapping[str, int],
               rng: np.random.Generator) -> list[Pair]:
    """Token ids of one text, without end of sequence -> [(inputs, targets)], without it too."""
    window = self.window(lengths['inputs'] - 1, lengths['targets'] - 1)
    pairs = []
    for start in range(0, len(ids), window):
      chunk = ids[start:start + window]
      if len(chunk) < 2:
        continue
      for _ in range(self.samples):
        mask = noise_mask(len(chunk), self.noise_density, self.mean_noise_span_length, rng)
        pairs.append(corrupt(chunk, mask, vocabulary))
    return pairs

  @functools.lru_cache(maxsize=8)  # noqa: B019 (a frozen value; a handful of them live)
  def window(self, inputs_length: int, targets_length: int) -> int:
    """Most tokens of plain text whose corrupted form fits both lengths.

    Raises:
      UserError: not even two tokens fit.
    """
    size = 1
    while size < 2 * (inputs_length + targets_length):
      noise, spans = _noise_counts(size + 1, self.noise_density, self.mean_noise_span_length)
      if size + 1 - noise + spans > inputs_length or noise + spans > targets_length:
        break
      size += 1
    if size < 2:
      raise UserError(
          f'TASK_FEATURE_LENGTHS of {inputs_length + 1} and {targets_length + 1} leave no room for '
          'span corruption; give at least 8 and 8.')
    return size


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixLM:
  """Language modelling of the rest of a text after a random prefix (T5's LM adaptation).

  Attributes:
    samples: how often each window is used, with other cuts.
    seed: of the cuts, together with the example id.
    within_inputs: a window is as long as the inputs and is cut anywhere, as in T5's prefix_lm; else
      it is as long as both together, and a full one has a single cut.
  """
  samples: int = 1
  seed: int = 0
  within_inputs: bool = False

  def __call__(self, ids: np.ndarray, vocabulary: Vocabulary, lengths: Mapping[str, int],
               rng: np.random.Generator) -> list[Pair]:
    """Token ids of one text, without end of sequence -> [(inputs, targets)], without it too."""
    del vocabulary
    room = (lengths['inputs'] - 1, lengths['targets'] - 1)
    window = room[0] if self.within_inputs else sum(room)
    pairs = []
    for start in range(0, len(ids), window):
      chunk = ids[start:start + window]
      if len(chunk) < 2:
        continue
      # Both parts have to fit and to hold a token.
      low, high = max(1, len(chunk) - room[1]), min(room[0], len(chunk) - 1)
      for _ in range(self.samples):
        cut = int(rng.integers(low, high + 1))
        pairs.append((chunk[:cut], chunk[cut:]))
    return pairs


def noise_mask(length: int, noise_density: float, mean_noise_span_length: float,
               rng: np.random.Generator) -> np.ndarray:
  """Which tokens are masked: spans of random lengths that begin after kept text.

  Args:
    length: number of tokens, at least 2.
    noise_density: share of masked tokens.
    mean_noise_span_length: mean length of a span.
    rng: source of the lengths.

  Returns:
    [length] bool. The numbers of masked tokens and of spans depend on the length alone.
  """
  noise, spans = _noise_counts(length, noise_density, mean_noise_span_length)
  runs = np.stack([_random_parts(length - noise, spans, rng), _random_parts(noise, spans, rng)], 1)
  return np.repeat(np.tile([False, True], spans), runs.reshape(-1))


def corrupt(ids: np.ndarray, mask: np.ndarray, vocabulary: Vocabulary) -> Pair:
  """(tokens with each masked span replaced by a sentinel, sentinels each followed by its span).

  Args:
    ids: [T] token ids.
    mask: [T] bool, False first.
    vocabulary: gives the sentinels, from the top downwards.

  Raises:
    UserError: the vocabulary has fewer sentinels than there are spans.
  """
  starts = np.flatnonzero(mask & ~np.concatenate([[False], mask[:-1]]))
  vocabulary.sentinel(len(starts) - 1)  # raises where there are too few
  sentinels = (vocabulary.sentinel(0) - np.arange(len(starts))).astype(np.int32)
  ids = ids.astype(np.int32)
  inputs = ids.copy()
  inputs[starts] = sentinels
  keep = ~mask
  keep[starts] = True
  span_of = np.cumsum(np.isin(np.arange(len(ids)), starts))[mask]  # from 1
  first = np.flatnonzero(np.diff(span_of, prepend=0))
  return inputs[keep], np.insert(ids[mask], first, sentinels)


def _noise_counts(length: int, density: float, mean_span: float) -> tuple[int, int]:
  """(masked tokens, spans) of a text of this length."""
  noise = min(max(int(np.round(length * density)), 1), max(length - 1, 1))
  spans = max(int(np.round(noise / mean_span)), 1)
  return noise, min(spans, max(length - noise, 1))


def _random_parts(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
  """[parts] positive lengths with the given sum, each division equally likely."""
  cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
  return np.diff(cuts, prepend=0, append=total)
