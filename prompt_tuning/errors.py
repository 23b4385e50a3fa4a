"""The error that a user can mend, and how its message shows what was found."""

from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
  """A mistake in what was given: a flag, a file, a path, a label, a shape.

  The message says what was given, what is allowed and what to do. The command line prints it
  without a traceback and exits with code 2.
  """


def excerpt(value: Any, size: int = 60) -> str:
  """A value on one line of a message, however long it is; characters that print are kept."""
  if not isinstance(value, str):
    value = repr(value)
    return value if len(value) <= size else f'{value[:size]}...'
  return repr(value if len(value) <= size else f'{value[:size]}...')


def listed(values: Iterable[Any], most: int = 20) -> str:
  """Values with commas between; of very many the first ones and their number."""
  values = list(values)
  shown = ', '.join(excerpt(value) for value in values[:most])
  return shown if len(values) <= most else f'{shown} and {len(values) - most} more'
