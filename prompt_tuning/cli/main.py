"""The command `prompt-tuning VERB`: flags, dispatch, exit codes.

Exit codes: 0 done, 1 the run failed, 2 a mistake in what was given. A verb's module is imported
after its flags are parsed, so that `--help` and a wrong flag answer at once.
"""

import argparse
import dataclasses
import difflib
import errno
import importlib
import os
import sys
from collections.abc import Sequence

from prompt_tuning.errors import UserError
from prompt_tuning.version import __version__

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)

_TRAIN_EXAMPLE = """\
example:
  prompt-tuning train \\
    --gin_file=models/t5_1_1_small.gin --gin_file=peft/prompt.gin \\
    --gin_file=tasks/local_text.gin --gin_file=runs/train.gin \\
    --gin.INITIAL_CHECKPOINT_PATH=/checkpoints/t5-v1_1-small \\
    --gin.TRAIN_FILE=reviews.jsonl --gin.INPUT_TEMPLATE='review: {text}' \\
    --gin.TARGET_FIELD=label --gin.CLASS_LABELS="['negative', 'positive']" \\
    --gin.MODEL_DIR=runs/reviews

The same command again continues the run."""

_EVAL_EXAMPLE = """\
example, with the configuration, the base and the best checkpoint of a run:
  prompt-tuning eval --gin.MODEL_DIR=runs/reviews

example, the same on another task: gin files go on top of the run's configuration
  prompt-tuning eval --gin.MODEL_DIR=runs/reviews --gin_file=tasks/sst2.gin \\
    --gin.DATA_DIR=/data/glue --gin.EVAL_OUTPUT_DIR=out

example, a prompt file on a base model:
  prompt-tuning eval \\
    --gin_file=models/t5_1_1_lm100k_base.gin --gin_file=peft/prompt.gin \\
    --gin_file=tasks/sst2.gin --gin_file=runs/eval.gin \\
    --gin.CHECKPOINT_PATH=/checkpoints/t5_1_1_lm100k_base --gin.PROMPT_FILE=sst2.npy \\
    --gin.DATA_DIR=/data/glue --gin.EVAL_OUTPUT_DIR=out"""

_INFER_EXAMPLE = """\
example:
  prompt-tuning infer --gin.MODEL_DIR=runs/reviews --input=new.txt --output=answers.jsonl
  echo 'what a film' | prompt-tuning infer --gin.MODEL_DIR=runs/reviews

A line is a JSON object with the fields of INPUT_TEMPLATE (or of the task), or with the whole input
as "inputs"; or plain text, which fills the one field of INPUT_TEMPLATE. For tasks other than
local_text, plain text is the whole input as the model is to read it."""

_EXPORT_EXAMPLE = """\
example:
  prompt-tuning export --gin.MODEL_DIR=runs/reviews --to=npy --output=reviews.npy"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verb:
  """One verb: what --help says and where its code is.

  Attributes:
    purpose: one line for the list of verbs.
    example: one working command.
    run_file: the gin file that is read where the configuration comes from MODEL_DIR.
    flags: (name, keyword arguments of argparse) beside the flags that every verb has.
  """

  purpose: str
  example: str
  run_file: str
  flags: tuple = ()


VERBS = {
    'train': Verb(
        purpose='train a prompt (or another method, or the whole model) on a task',
        example=_TRAIN_EXAMPLE, run_file='runs/train.gin'),
    'eval': Verb(
        purpose='measure a run or a prompt file on a task, write its predictions',
        example=_EVAL_EXAMPLE, run_file='runs/eval.gin'),
    'infer': Verb(
        purpose='answer the lines of a file or of stdin as JSONL',
        example=_INFER_EXAMPLE, run_file='runs/infer.gin',
        flags=(
            ('--input', dict(metavar='FILE', default='-', help=(
                'text lines or JSONL, see below; - is stdin'))),
            ('--output', dict(metavar='FILE', default='-', help=(
                'JSONL, written once all is answered; - is stdout, written as it goes'))))),
    'export': Verb(
        purpose='write the prompt, or the merged model, of a run as a file for others',
        example=_EXPORT_EXAMPLE, run_file='runs/export.gin',
        flags=(
            ('--to', dict(metavar='FORMAT', default='safetensors', help=(
                'npy or safetensors: the prompt; hf: the whole model as a Hugging Face folder'))),
            ('--output', dict(metavar='PATH', required=True, help='the file or folder to write')))),
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command line; returns the exit code."""
  argv = list(sys.argv[1:] if argv is None else argv)
  try:
    name, flags = parse_flags(argv)
    verb = importlib.import_module(f'prompt_tuning.cli.{name}')
    verb.main(flags)
  except UserError as error:
    print(f'prompt-tuning: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('prompt-tuning: interrupted; a run goes on from its last checkpoint when the same '
          'command is given again', file=sys.stderr)
    return 1
  except BrokenPipeError:  # the reader of our output, such as `head`, has gone
    # What is still buffered would fail once more at exit, loudly.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
    return 1
  except OSError as error:
    if error.errno not in _NO_ROOM:
      raise
    print(f'prompt-tuning: cannot write: {error}; make room or choose another folder',
          file=sys.stderr)
    return 1
  return 0


def parse_flags(argv: Sequence[str]) -> tuple[str, argparse.Namespace]:
  """Splits a command line into the verb and its flags.

  Returns:
    The verb's name and a namespace with gin_file, gin_search_paths, overrides (a list of
    (name, value)), dry_run, run_file and the verb's own flags.

  Raises:
    UserError: an unknown verb or flag, or a flag without its value.
    SystemExit: after --help and --version.
  """
  parser = _parser()
  gin_flags = [flag for flag in argv if flag.startswith('--gin.')]
  others = [flag for flag in argv if not flag.startswith('--gin.')]
  overrides = [_split_override(flag) for flag in gin_flags]
  if others and others[0].partition('=')[0] in _flags_of_verbs():
    raise UserError(f'{others[0]} stands before the verb. The verb comes first, as in '
                    f'`prompt-tuning train {others[0]}`; verbs: {", ".join(VERBS)}.')
  flags, unknown = parser.parse_known_args(others)
  if unknown:
    raise UserError(_unknown_flag(unknown[0], flags.verb))
  flags.overrides = overrides
  flags.run_file = VERBS[flags.verb].run_file
  return flags.verb, flags


def _split_override(flag: str) -> tuple[str, str]:
  name, equals, value = flag.removeprefix('--gin.').partition('=')
  if not equals or not name:
    raise UserError(f'{flag}: a value is missing. Write --gin.NAME=VALUE, in one word.')
  return name, value


class _Parser(argparse.ArgumentParser):
  """Raises where argparse would print the whole usage and leave."""

  def error(self, message):
    raise UserError(f'{message}. See `{self.prog} --help`.')


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(
      prog='prompt-tuning', allow_abbrev=False,
      description='Adapt a frozen T5 model to a task by training a prompt.')
  parser.add_argument('--version', action='version', version=__version__)
  verbs = parser.add_subparsers(dest='verb', required=True, metavar='VERB')
  for name, verb in VERBS.items():
    sub = verbs.add_parser(
        name, help=verb.purpose, description=verb.purpose[0].upper() + verb.purpose[1:] + '.',
        epilog=verb.example, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, options in (*_COMMON_FLAGS, *verb.flags):
      sub.add_argument(flag, **options)
  return parser


_COMMON_FLAGS = (
    ('--gin_file', dict(
        action='append', default=[], metavar='FILE',
        help='a gin file; repeat the flag, later files win')),
    ('--gin.NAME', dict(
        dest='gin_name', metavar='VALUE',
        help='a value for a name of the gin files, as in --gin.BATCH_SIZE=16')),
    ('--gin_search_paths', dict(
        type=lambda paths: paths.split(','), default=[], metavar='FOLDERS',
        help='folders, with commas between, where gin files are looked up')),
    ('--dry_run', dict(
        action='store_true', help='build everything, print sizes and shapes, touch no file')),
)


def _flags_of_verbs() -> set[str]:
  own = (flag for verb in VERBS.values() for flag in verb.flags)
  return {name for name, _ in (*_COMMON_FLAGS, *own)}


def _unknown_flag(given: str, verb: str) -> str:
  known = [flag for flag, _ in (*_COMMON_FLAGS, *VERBS[verb].flags)] + ['--help']
  name = given.partition('=')[0]
  if not name.startswith('-'):
    return f'unexpected {given!r} after {verb}. Known flags: {", ".join(known)}.'
  near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
  if name.lstrip('-').isupper():
    near = [f'--gin.{name.lstrip("-")}']
  nearest = f' Nearest: {", ".join(near)}.' if near else ''
  return f'unknown flag {name}.{nearest} Known flags of {verb}: {", ".join(known)}.'


if __name__ == '__main__':
  sys.exit(main())
