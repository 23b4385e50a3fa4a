"""The error that a user can mend."""


class UserError(ValueError):
  """A mistake in what was given: a flag, a file, a path, a label, a shape.

  The message says what was given, what is allowed and what to do. The command line prints it
  without a traceback and exits with code 2.
  """
