"""Prints docs/tasks.md, made from the registry: python scripts/tasks_table.py > docs/tasks.md"""

import re
import sys
from collections.abc import Sequence

from prompt_tuning.data import task as task_lib
from prompt_tuning.data.tasks import (
  classification,
  corpus,
  demo,
  glue,
  mixtures,
  nlg,
  qa,
  spot,
  superglue,
  translation,
)
from prompt_tuning.errors import UserError

_HEAD = """# Tasks

Names for MIXTURE_OR_TASK_NAME (`tasks/named.gin`); `scripts/tasks_table.py` makes this file.
DATA_DIR is the folder of the dataset, or one above it, in the layout of its authors; without it,
TensorFlow Datasets (extra `tfds`) is read. A file of your own needs no task: see
`tasks/local_text.gin` and [data_files.md](data_files.md).

Further forms of a name, as in google-research/prompt-tuning:

| form | what it changes |
|---|---|
| `taskless_...` in front | the first word of the inputs, the name of the task, is left out |
| `task_index_...` in front | a sentinel for each task of a benchmark replaces it |
| `..._1_sentinel` (before `_train`, `_eval`) | a sentinel ends the inputs and begins the targets |
| `mt5_...`, `byt5_...` in front | nothing: the vocabulary is the backbone's |
| `..._examples` at the end | nothing: predictions are always written |
| `glue_..._v002` | the version at TensorFlow Datasets alone |

Ranking the labels of a task instead of generating is a flag, `--gin.RANK_LABELS=True`. Plain text
of your own, for the objectives of the section on it, is read by `tasks/local_corpus.gin`.

In the inputs `{name}` stands for a feature of the dataset; the strings are T5's where T5 has the
task. BLEU, chrF, ROUGE and TER need the extra `metrics`; several references of an input count
together.
"""
_MIXTURES = """
## Mixtures

{about} `tasks/mixture.gin` mixes tasks without a
name of their own; [add_a_task.md](add_a_task.md) tells how to give them one.

Training reads the training split of every task with a rate above 0 that has one, each evaluation
every task that is scored: `TASK/METRIC` for each, and their `average`. Bold tasks are scored, those
with a + between them as one; where none is bold, all that have metrics and their evaluation split
are. n is the number of a task's training examples. GLUE's and SuperGLUE's mixtures have
`taskless_` and `task_index_` forms, those of SuperGLUE without DPR, which
`..._super_glue_with_dpr_v102_proportional` has.

"""
_COLUMNS = ('name', 'inputs', 'targets', 'metrics', 'splits', 'source', 'paper')
# Heading, module whose first line says where the data is described, names.
_SECTIONS = (
    ('GLUE', glue, r'glue_.*_v200|glue_.*_simple_eval'),
    ('SuperGLUE', superglue, r'super_glue_.*|dpr_.*'),
    ('Classification', classification, r'(scitail|paws|rotten|tweet|ethics)_.*'),
    ('Question answering', qa, r'(squad|mrqa|trivia)_.*'),
    ('Generation', nlg, r'(xsum|cnn|samsum|multi_news|e2e|web_nlg|dart)_.*'),
    ('Translation', translation, r'wmt.*'),
    ('Prompt transfer', spot, r'spot_.*'),
    ('Plain text', corpus, r'(c4|wikipedia)_.*'),
    ('Demo', demo, r'demo_.*'))


class _Names(dict):
  """An example whose features are their own names in braces."""

  def __contains__(self, key):
    return True

  def __missing__(self, key):
    return f'{{{key}}}'

  def get(self, key, default=None):
    return self[key]


def text() -> str:
  """The whole file."""
  parts = [_HEAD]
  for heading, module, names in _SECTIONS:
    tasks = [task_lib.get(name) for name in task_lib.names() if re.fullmatch(names, name)]
    about = module.__doc__.split('\n\n')[0].replace('\n', ' ')
    parts += [f'\n## {heading}\n\n{about}\n\n', _row(_COLUMNS), _row(['---'] * len(_COLUMNS)),
              *(_row(_cells(task)) for task in tasks)]
  about = mixtures.__doc__.split('\n\n')[0].replace('\n', ' ')
  parts += [_MIXTURES.format(about=about), _row(('name', 'tasks and rates')), _row(('---', '---')),
            *(_row((f'`{name}`', _parts(task_lib.get(name)))) for name in task_lib.mixture_names()
              if not name.startswith(('taskless_', 'task_index_')))]
  return ''.join(parts)


def _parts(mixture) -> str:
  """The tasks of a mixture with their rates, scored ones in bold."""
  scored = [name for group in mixture.scored or () for name in group]
  together = [' + '.join(group) for group in mixture.scored or () if len(group) > 1]
  words = [f'{f"**{task.name}**" if task.name in scored else task.name} '
           f'{"n" if callable(rate) else f"{rate:,g}"}' for task, rate in mixture.parts]
  return '; '.join([', '.join(words), *together])


def _row(cells: Sequence[str]) -> str:
  return f'| {" | ".join(cells)} |\n'


def _cells(task: task_lib.Task) -> list[str]:
  return [
      f'`{task.name}`', _inputs(task), ', '.join(task.labels or ()) or 'text',
      ', '.join(dict.fromkeys(map(_metric_name, task.metric_fns))) or '-', *_source(task.source),
      task.paper or '-']


def _inputs(task: task_lib.Task) -> str:
  if task.objective is not None:
    return _about(task.objective)
  lists = {f: [f'{{{f}}}', '…'] for f in ('entities', 'answers', 'triples', 'lexs', 'candidates')}
  numbers = {'label': 1, 'span1_index': 0, 'idx': 0}
  example = _Names(span2_index=2, detected_answers=[], **numbers, **lists)
  if 'wsc' in task.name:
    example['text'] = '{span1_text} … {span2_text} …'
  try:
    inputs = task.preprocess(example)[0]['inputs'].replace('{ ', '{').replace(' }', '}')
    return f'`{inputs.strip()}`'
  except (AttributeError, IndexError, UserError):  # a form that reads into its features
    return _about(task.preprocess)


def _about(form) -> str:
  return type(form).__doc__.split('\n')[0]


def _metric_name(metric) -> str:
  """Name of a metric; of one over groups, of its part."""
  if hasattr(metric, 'metric'):
    return _metric_name(metric.metric)
  return getattr(metric, '__name__', type(metric).__name__)


def _source(source) -> tuple[str, str]:
  """(splits, where they come from)."""
  layout = getattr(source, 'layout', None)
  files = getattr(source, 'files', {}) if layout is None else layout.files
  splits = getattr(source, 'only', ()) or files
  names = [getattr(source, 'name', ''), f'{layout.folders[0]}/' if layout else '']
  return ', '.join(splits) or 'as at TFDS', ', '.join(filter(None, names)) or 'files'


if __name__ == '__main__':
  sys.stdout.write(text())
