"""adapter_config.json of Hugging Face PEFT: what is read of it, and what is refused.

Format: github.com/huggingface/peft, the configuration classes of releases 0.20 and 0.21. Fields
that a file lacks have PEFT's defaults, as PEFT itself fills them in.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable

from prompt_tuning.checkpoints import json_file
from prompt_tuning.errors import UserError

NAME = 'adapter_config.json'
PROMPT, PREFIX, LORA = 'PROMPT_TUNING', 'PREFIX_TUNING', 'LORA'
TASK = 'SEQ_2_SEQ_LM'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """An adapter's configuration.

  Attributes:
    path: the file, for messages.
    values: its content.
  """

  path: pathlib.Path
  values: dict

  @property
  def kind(self) -> str:
    """PROMPT, PREFIX or LORA."""
    return self.values['peft_type']

  def error(self, name: str, allowed: str) -> UserError:
    """The error that names a field, its value and what is allowed."""
    return UserError(f'{self.path}: {name} is {repr(self.values.get(name))[:200]}; {allowed}')

  def integer(self, name: str, default: int | None = None) -> int:
    """A whole number of 1 or more; without a default the file must have it."""
    value = self.values.get(name, default)
    if type(value) is not int or value < 1:
      raise self.error(name, 'it must be a whole number of 1 or more.')
    return value

  def number(self, name: str, default: float) -> float:
    """A finite number."""
    value = self.values.get(name, default)
    if type(value) not in (int, float) or not math.isfinite(value):
      raise self.error(name, 'it must be a number.')
    return value

  def switch(self, name: str) -> bool:
    """true or false; absent is false."""
    value = self.values.get(name)
    if value is not None and type(value) is not bool:
      raise self.error(name, 'it must be true or false.')
    return bool(value)

  def numbers_by_pattern(self, name: str) -> dict[str, float]:
    """A map from regular expressions to numbers; absent is empty."""
    value = self.values.get(name) or {}
    if not isinstance(value, dict) or not all(
        type(n) in (int, float) and math.isfinite(n) for n in value.values()):
      raise self.error(name, 'it must be a map from expressions to numbers.')
    return value

  def refuse(self, name: str, why: str):
    """Refuses a field that holds anything but nothing."""
    if self.values.get(name):
      raise self.error(name, why)


def read(path: pathlib.Path) -> Settings:
  """Reads the file and refuses kinds of adapters that have no counterpart.

  Raises:
    UserError: not such a file, another method, or another task than sequence to sequence.
  """
  values = json_file.read(path)
  settings = Settings(path=path, values=values)
  kind = values.get('peft_type')
  if kind not in (PROMPT, PREFIX, LORA):
    raise settings.error('peft_type', f'read are {PROMPT}, {PREFIX} and {LORA}. What another '
                         'method adds has no counterpart here' + (
                             ': merge it with merge_and_unload() of PEFT and give the merged model '
                             'as a Hugging Face folder.' if kind in ('ADALORA', 'IA3', 'LOHA')
                             else '.'))
  # A LoRA without a task runs the bare model's forward pass, which is the same one.
  if values.get('task_type') != TASK and not (kind == LORA and values.get('task_type') is None):
    raise settings.error('task_type', f'an adapter of a T5 encoder-decoder has {TASK}; for another '
                         'task PEFT puts it into another forward pass.')
  settings.refuse('modules_to_save', 'modules that are trained whole lie beside the adapter and '
                  'would replace those of the base. Only adapters are read.')
  return settings


def matcher(expression) -> Callable[[str], object] | None:
  """Matches whole names against an expression of a file.

  Python's regular expressions can take exponential time and a file may come from anywhere, so one
  that could take long is not run.

  Returns:
    name -> whether it matches; None for an expression that is not run or is none.
  """
  if not isinstance(expression, str) or not _is_quick(expression):
    return None
  try:
    return re.compile(expression).fullmatch
  except (re.error, RecursionError, OverflowError):
    return None


def _is_quick(expression: str) -> bool:
  """Whether matching a name of 50 characters takes a million steps at the most."""
  plain = re.sub(r'\\.', 'x', expression, flags=re.DOTALL)
  if len(plain) > 1000 or re.search(r'\)[*+{]|\(\?[^:]', plain):  # repeated groups, flags
    return False
  repeats = len(re.findall(r'[*+{]', plain))
  optional = len(re.findall(r'[^*+}(]\?', plain))
  groups = 1 + plain.count('(')
  branches = (1 + plain.count('|') / groups)**groups
  return repeats < 10 and optional + groups < 20 and (
      math.comb(50 + repeats, repeats) * 2**optional * branches <= 1_000_000)
