"""From decoded text to the value that metrics compare.

Every postprocessor is called as `(text, example=None, is_target=False)`; targets pass through it
in the same way as predictions.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

INVALID = -1  # class id of a text that is no label
_DETERMINERS = frozenset(
    'a an few her his each every many much my our some that the their these this those which whose '
    'your'.split())


@dataclasses.dataclass(frozen=True)
class Text:
  """The text itself.

  Attributes:
    lower: compare without regard to case.
    strip: drop white space at both ends.
  """
  lower: bool = False
  strip: bool = False

  def __call__(self, text: str, example: Any = None, is_target: bool = False) -> str:
    del example, is_target
    text = text.strip() if self.strip else text
    return text.lower() if self.lower else text


@dataclasses.dataclass(frozen=True)
class LabelId:
  """The class id of a label, -1 for any other text (T5's string_label_to_class_id).

  The comparison is exact: case and spaces count.

  Attributes:
    labels: label texts in class order.
  """
  labels: tuple[str, ...]

  def __call__(self, text: str, example: Any = None, is_target: bool = False) -> int:
    del example, is_target
    return self.labels.index(text) if text in self.labels else INVALID


@dataclasses.dataclass(frozen=True)
class Translated:
  """A label of another task read as one of this task's.

  Attributes:
    old: part of a text that is replaced, wherever it occurs.
    new: what it becomes.
    read: what reads the new text.
  """
  old: str
  new: str
  read: Callable[..., Any]

  def __call__(self, text: str, example: Any = None, is_target: bool = False) -> Any:
    return self.read(self.translate(text), example=example, is_target=is_target)

  def translate(self, text: str) -> str:
    """The text as one of this task's."""
    return text.replace(self.old, self.new)


@dataclasses.dataclass(frozen=True)
class WithoutSentinels:
  """A text without the sentinels that it begins with.

  Attributes:
    read: what reads the rest.
    count: number of sentinels; where not all are there, nothing is taken away.
  """
  read: Callable[..., Any]
  count: int = 1

  def __call__(self, text: str, example: Any = None, is_target: bool = False) -> Any:
    sentinels = ' '.join(f'<extra_id_{i}>' for i in range(self.count))
    if text.startswith(sentinels):
      text = text.removeprefix(sentinels).strip()
    return self.read(text, example=example, is_target=is_target)


@dataclasses.dataclass(frozen=True)
class Number:
  """The number that a text holds, -1 for any other text."""

  def __call__(self, text: str, example: Any = None, is_target: bool = False) -> float:
    del example, is_target
    try:
      return float(text)
    except ValueError:
      return float(INVALID)


@dataclasses.dataclass(frozen=True)
class Answers:
  """A prediction as it is; of a target, all right answers."""

  def __call__(self, text: str, example: Any = None, is_target: bool = False) -> str | list[str]:
    return list(example['answers']) if is_target else text


@dataclasses.dataclass(frozen=True)
class SpanAnswers:
  """A prediction as it is; of a target, all right answers and the passage that places count in."""

  def __call__(self, text: str, example: Any = None, is_target: bool = False) -> Any:
    return {name: example[name] for name in ('answers', 'context')} if is_target else text


@dataclasses.dataclass(frozen=True)
class Grouped:
  """`{'value': ...}`, for a target with the `group` of examples that a metric counts as one.

  Attributes:
    read: what reads the value.
    keys: features that name the group; one gives its value, several a tuple.
  """
  read: Callable[..., Any]
  keys: tuple[str, ...]

  def __call__(self, text: str, example: Any = None, is_target: bool = False) -> dict[str, Any]:
    result = {'value': self.read(text, example=example, is_target=is_target)}
    if is_target:
      group = tuple(example[key] for key in self.keys)
      result['group'] = group if len(group) > 1 else group[0]
    return result


@dataclasses.dataclass(frozen=True)
class Referent:
  """Whether a predicted noun is the one asked about: 1 or 0, -1 for none; of a target, its label.

  One may have words that the other lacks (`Tom` and `Tom Smith`), but not a possessive alone; case
  and determiners do not count (T5's wsc_simple).
  """

  def __call__(self, text: str, example: Any = None, is_target: bool = False) -> int:
    if is_target:
      return example['label']
    predicted, wanted = _without_determiners(text), _without_determiners(example['targets'])
    if not predicted:
      return INVALID
    if ("'" in predicted) != ("'" in wanted):
      return 0
    found, there = set(predicted.split(' ')), set(wanted.split(' '))
    return int(found <= there or there <= found)


def _without_determiners(text: str) -> str:
  words = text.strip().lower().split(' ')
  return ' '.join(word for word in words if word not in _DETERMINERS)
