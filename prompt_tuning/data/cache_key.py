"""What the name of a cache is made of: everything that decides its content."""

import dataclasses
import functools
import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from prompt_tuning.data.task import Task
from prompt_tuning.data.tokenizing import FEATURES
from prompt_tuning.vocabulary import Vocabulary

_VERSION = 2  # of the file layout and of tokenisation; part of every key


def folder_name(name: str, split: str, parts: Mapping[str, Any]) -> str:
  """Name of the folder of a cache: the task's name, the split and a hash of `key_parts`."""
  key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
  readable = ''.join(c if c.isalnum() or c in '_.-' else '_' for c in name)
  return f'{readable}-{split}-{key}'


def key_parts(
    task: Task, split: str, vocabulary: Vocabulary, lengths: Mapping[str, int | None],
) -> dict[str, Any]:
  """Everything that decides the content of a cache."""
  index = {} if task.task_index is None else {'task_index': task.task_index}
  if task.on_tokens is not None:
    index['on_tokens'] = identity(task.on_tokens)
  return {
      **index,
      'version': _VERSION,
      'split': split,
      'source': task.source.fingerprint(split),
      'preprocess': identity(task.preprocess),
      'objective': identity(task.objective),
      'vocabulary': vocabulary.content_hash,
      'lengths': {f: lengths.get(f) for f in FEATURES},
  }


def identity(value: Any) -> str:
  """A text that changes when what a preprocessor does changes.

  A dataclass is its type, source code and fields; a function its name, source code, defaults and
  the values it closes over. What these call is not seen: after a change there, build anew.
  """
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    fields = {f.name: identity(getattr(value, f.name)) for f in dataclasses.fields(value)}
    kind = type(value)
    return f'{kind.__module__}.{kind.__qualname__} {_code_hash(kind)} {fields}'
  if isinstance(value, functools.partial):
    return f'partial({identity(value.func)}, {identity(value.args)}, {identity(value.keywords)})'
  if inspect.isfunction(value):
    given = identity([value.__defaults__, [c.cell_contents for c in value.__closure__ or ()]])
    return f'{value.__module__}.{value.__qualname__} {_code_hash(value)} {given}'
  if isinstance(value, Mapping):
    return repr({repr(k): identity(v) for k, v in value.items()})
  if isinstance(value, list | tuple):
    return repr([identity(v) for v in value])
  if isinstance(value, np.ndarray):  # repr leaves out the middle
    return f'{value.dtype}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()}'
  return repr(value)


def _code_hash(value: Any) -> str:
  """Hash of the source code of a class or function, of its byte code where there is none."""
  try:
    code = inspect.getsource(value)
  except (OSError, TypeError):  # typed into a prompt
    function = value if inspect.isfunction(value) else value.__call__
    code = function.__code__.co_code.hex() + repr(function.__code__.co_consts)
  return hashlib.sha256(code.encode()).hexdigest()[:16]
