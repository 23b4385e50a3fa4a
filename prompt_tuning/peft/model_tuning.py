"""Model tuning: every parameter is trained; the baseline, and the way a backbone is made."""

import dataclasses

from prompt_tuning.peft.method import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelTuning(Method):
  """Trains all parameters."""

  @property
  def trainable(self):
    return ('.*',)

  def changes(self, path):
    return False

  def merge(self, params):
    return params
