"""From decoded text to the value that metrics compare.

Every postprocessor is called as `(text, example=None, is_target=False)`; targets pass through it
in the same way as predictions.
"""

import dataclasses
from typing import Any

INVALID = -1  # class id of a text that is no label


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
