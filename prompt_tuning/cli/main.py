"""The command `prompt-tuning VERB`: flags, dispatch, exit codes.

Exit codes: 0 done, 1 the run failed, 2 a mistake in what was given, 75 asked to stop and saved. A
verb's module is imported after its flags are parsed, so that `--help` and a wrong flag answer at
once.
"""

import argparse
import dataclasses
import difflib
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from prompt_tuning.errors import UserError
from prompt_tuning.version import __version__

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM)

_RUN_FLAGS = """\
    --gin_file=models/t5_1_1_small.gin --gin_file=peft/prompt.gin \\
    --gin_file=tasks/local_text.gin --gin_file=runs/train.gin \\
    --gin.INITIAL_CHECKPOINT_PATH=/checkpoints/t5-v1_1-small \\
    --gin.TRAIN_FILE=reviews.jsonl --gin.INPUT_TEMPLATE='review: {text}' \\
    --gin.TARGET_FIELD=label --gin.CLASS_LABELS="['negative', 'positive']" \\
    --gin.MODEL_DIR=runs/reviews
"""

_TRAIN_EXAMPLE = f"""\
example:
  prompt-tuning train \\
{_RUN_FLAGS}
The same command again continues the run."""

_DOCTOR_EXAMPLE = f"""\
example, the command line of `train`:
  prompt-tuning doctor \\
{_RUN_FLAGS}
Exit codes: 0 no problem (warnings aside), 1 a problem, 2 a mistake in the command line."""

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
example, the trained prompt of a run, for numpy, and for Hugging Face PEFT:
  prompt-tuning export --gin.MODEL_DIR=runs/reviews --to=npy --output=reviews.npy
  prompt-tuning export --gin.MODEL_DIR=runs/reviews --to=peft --output=adapter

example, a file that is not of a run:
  prompt-tuning export --input=reviews.npy --to=peft --output=adapter \\
    --base=/checkpoints/t5-v1_1-small"""

_CACHE_EXAMPLE = """\
example, in four processes; `train` with the same CACHE_DIR finds what this writes:
  prompt-tuning cache --gin_file=tasks/sst2.gin --gin.DATA_DIR=/data/glue \\
    --gin.VOCABULARY=/checkpoints/t5-v1_1-small/spiece.model \\
    --gin.CACHE_DIR=/caches --num_workers=4

example, for a run that is about to start: its command line with `cache` in place of `train`.
The caches are those of its MODEL_DIR.

example, on Apache Beam (pip install 'prompt-tuning[beam]'), in 16 pieces of work:
  prompt-tuning cache --gin_file=tasks/sst2.gin ... --num_workers=16 \\
    --pipeline_options='--runner=DirectRunner --direct_num_workers=4'

example, after copying caches to another machine:
  prompt-tuning cache --verify --gin.CACHE_DIR=/caches"""

_DATA_EXAMPLE = """\
example, a built-in task:
  prompt-tuning data check --task=super_glue_rte_v102 --gin.DATA_DIR=/data/superglue \\
    --vocabulary=/checkpoints/t5-v1_1-small/spiece.model --plot=rte.png

example, files of your own: the command line of `train`, or the part of it that is about data
  prompt-tuning data check --gin_file=tasks/local_text.gin --gin.TRAIN_FILE=reviews.jsonl \\
    --gin.INPUT_TEMPLATE='review: {text}' --gin.CLASS_LABELS="['negative', 'positive']"

Exit codes: 0 no problem (warnings aside), 1 a problem, 2 a mistake in the command line."""

_IMPORT_EXAMPLE = """\
example, an adapter of Hugging Face PEFT as a prompt file (for --gin.PROMPT_FILE):
  prompt-tuning import --input=adapter --base=/checkpoints/t5-v1_1-small --output=p.safetensors

example, a model between T5X and Hugging Face:
  prompt-tuning import --from=t5x --input=/checkpoints/t5_1_1_lm100k_base --to=hf \\
    --vocabulary=sentencepiece.model --output=t5-lm100k-base

example, the prompt inside a checkpoint of google-research/prompt-tuning:
  prompt-tuning import --input=/runs/sst2/checkpoint_1130000 --output=sst2.safetensors"""


_GIN_FLAGS = (
    ('--gin_file', dict(
        action='append', default=[], metavar='FILE',
        help='a gin file; repeat the flag, later files win')),
    ('--gin.NAME', dict(
        dest='gin_name', metavar='VALUE',
        help='a value for a name of the gin files, as in --gin.BATCH_SIZE=16')),
    ('--gin_search_paths', dict(
        type=lambda paths: paths.split(','), default=[], metavar='FOLDERS',
        help='folders, with commas between, where gin files are looked up')),
)
_DRY_RUN = ('--dry_run', dict(
    action='store_true', help='build everything, print sizes and shapes, touch no file'))
_PROCESS_FLAGS = (
    ('--coordinator_address', dict(
        metavar='HOST:PORT', help='where process 0 of several runs; found on TPU pods, under SLURM '
        'and the like')),
    ('--num_processes', dict(type=int, metavar='N', help='how many processes there are')),
    ('--process_id', dict(type=int, metavar='I', help='which of them this is, from 0 on')),
)
_FORMATS = ('npy, safetensors or peft: the trained prompt or adapter; t5x or hf: the whole model, '
            'what can be merged merged into it')
_OUTPUT = dict(metavar='PATH', required=True, help='the file or folder to write')
_SPLITS = dict(type=lambda names: names.split(','), metavar='NAMES', help=(
    'splits, with commas between; else `cache` takes those that train and evaluate, `data` all'))
_CONVERSION_FLAGS = (
    ('--from', dict(dest='source_format', metavar='FORMAT', help=(
        'npy, safetensors, peft, t5x or hf; told by the content if left out'))),
    ('--base', dict(metavar='PATH', help=(
        'the model that a prompt or adapter belongs to; they are compared'))),
    ('--vocabulary', dict(metavar='FILE', help=(
        "SentencePiece file of the model, or 'bytes', where none lies beside it"))),
    ('--step', dict(type=int, metavar='N', help='which checkpoint_N of a T5X folder; else the '
                    'latest')),
    ('--allow_mismatch', dict(action='store_true', help=(
        'take a prompt that names another base than --base'))),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verb:
  """One verb: what --help says and where its code is.

  Attributes:
    purpose: one line for the list of verbs.
    example: one working command.
    run_file: the gin file that is read where the configuration comes from MODEL_DIR; None: the
      verb takes no gin files.
    own_flags: (name, keyword arguments of argparse) beside the flags that verbs share.
    many_processes: whether several processes can do it together.
    module: in prompt_tuning/cli, if it is not called as the verb is.
  """

  purpose: str
  example: str
  run_file: str | None = None
  own_flags: tuple = ()
  many_processes: bool = False
  module: str | None = None

  @property
  def flags(self) -> tuple:
    """All flags that the verb takes."""
    return (*(_GIN_FLAGS if self.run_file else ()), _DRY_RUN, *self.own_flags,
            *(_PROCESS_FLAGS if self.many_processes else ()))


VERBS = {
    'train': Verb(
        purpose='train a prompt (or another method, or the whole model) on a task',
        example=_TRAIN_EXAMPLE, run_file='runs/train.gin', many_processes=True),
    'doctor': Verb(
        purpose='check a configuration of `train` before it costs anything',
        example=_DOCTOR_EXAMPLE, run_file='runs/train.gin', many_processes=True),
    'eval': Verb(
        purpose='measure a run or a prompt file on a task, write its predictions',
        example=_EVAL_EXAMPLE, run_file='runs/eval.gin', many_processes=True),
    'infer': Verb(
        purpose='answer the lines of a file or of stdin as JSONL',
        example=_INFER_EXAMPLE, run_file='runs/infer.gin', many_processes=True,
        own_flags=(
            ('--input', dict(metavar='FILE', default='-', help=(
                'text lines or JSONL, see below; - is stdin'))),
            ('--output', dict(metavar='FILE', default='-', help=(
                'JSONL, written once all is answered; - is stdout, written as it goes'))))),
    'cache': Verb(
        purpose='tokenise splits of a task ahead of time, in one process or many',
        example=_CACHE_EXAMPLE, run_file='runs/data.gin',
        own_flags=(
            ('--split', _SPLITS),
            ('--num_workers', dict(type=int, default=1, metavar='N', help=(
                'how many processes share the work; on Beam, how many pieces it has'))),
            ('--pipeline_options', dict(metavar='OPTIONS', help=(
                "run on Apache Beam with these options of its pipelines, '' for its own"))),
            ('--verify', dict(action='store_true', help=(
                'write nothing; compare all caches of CACHE_DIR with their checksums'))))),
    'data': Verb(
        purpose='say what there is in the splits of a task: counts, lengths, labels',
        example=_DATA_EXAMPLE, run_file='runs/data.gin', module='data_check',
        own_flags=(
            ('check', dict(choices=('check',), metavar='check', help='the word itself')),
            ('--task', dict(metavar='NAME', help=(
                'a task by its name (docs/tasks.md), in place of --gin_file=tasks/...'))),
            ('--split', _SPLITS),
            ('--vocabulary', dict(metavar='FILE', help=(
                "a SentencePiece file or 'bytes' to count tokens with; else that of the model; "
                'without either, words are counted'))),
            ('--plot', dict(metavar='FILE', help='also draw lengths and targets, as PNG')))),
    'export': Verb(
        purpose='write the result of a run, or any file, in a format that others read',
        example=_EXPORT_EXAMPLE, run_file='runs/export.gin',
        own_flags=(
            ('--to', dict(metavar='FORMAT', default='safetensors', help=_FORMATS)),
            ('--output', _OUTPUT),
            ('--input', dict(metavar='PATH', help='convert this, in place of a run of MODEL_DIR')),
            *_CONVERSION_FLAGS)),
    'import': Verb(
        purpose='make a prompt file or a model of what others wrote',
        example=_IMPORT_EXAMPLE, module='convert',
        own_flags=(
            ('--input', dict(metavar='PATH', required=True, help='the file or folder to read')),
            ('--output', _OUTPUT),
            ('--to', dict(metavar='FORMAT', default='safetensors', help=_FORMATS)),
            *_CONVERSION_FLAGS)),
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command line; returns the exit code."""
  try:
    code = _run(argv)
  except Exception:
    if not _is_one_of_many():
      raise
    traceback.print_exc()
    code = 1
  if code in (1, 2) and _is_one_of_many():
    # An orderly end would wait minutes for the others, and they for this one.
    sys.stdout.flush()
    os._exit(code)
  return code


def _is_one_of_many() -> bool:
  """Whether processes have been joined; looks without importing what takes time."""
  processes = sys.modules.get('prompt_tuning.processes')
  return processes is not None and processes.are_joined()


def _run(argv: Sequence[str] | None) -> int:
  """`main` of a process that others do not wait for."""
  argv = list(sys.argv[1:] if argv is None else argv)
  try:
    name, flags = parse_flags(argv)
    module = importlib.import_module(f'prompt_tuning.cli.{VERBS[name].module or name}')
    code = module.main(flags)
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
    if error.errno in _NO_PATH and error.filename is not None:
      print(f'prompt-tuning: {error.filename} cannot be opened: {error.strerror}; check the path '
            'and its permissions', file=sys.stderr)
      return 2
    if error.errno not in _NO_ROOM:
      raise
    print(f'prompt-tuning: cannot write: {error}; make room or choose another folder',
          file=sys.stderr)
    return 1
  return code or 0


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
  flags.overrides, flags.run_file = overrides, VERBS[flags.verb].run_file
  if overrides and not flags.run_file:
    raise UserError(f'{gin_flags[0]}: {flags.verb} reads no gin settings. Its flags: '
                    f'{", ".join(flag for flag, _ in VERBS[flags.verb].flags)}.')
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
    for flag, options in verb.flags:
      sub.add_argument(flag, **options)
  return parser


def _flags_of_verbs() -> set[str]:
  return {name for verb in VERBS.values() for name, _ in verb.flags}


def _unknown_flag(given: str, verb: str) -> str:
  known = [flag for flag, _ in VERBS[verb].flags] + ['--help']
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
