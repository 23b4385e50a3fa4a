"""What a task is, and how it is found by name.

A task is data: where examples come from, how one becomes `inputs` and `targets` text, how a
decoded answer is read, how answers are measured. Nothing here tokenises, batches or reads files.
"""

import dataclasses
import difflib
import importlib
import logging
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prompt_tuning.data import postprocessors, text_forms, token_forms
from prompt_tuning.errors import UserError

if TYPE_CHECKING:
  from prompt_tuning.data.mixture import Mixture

log = logging.getLogger(__name__)

Example = Mapping[str, Any]

_REGISTRY: dict[str, 'Task | Mixture'] = {}
_DECLARATIONS = 'prompt_tuning.data.tasks'  # every module of this package declares tasks
# MIXTURE_OR_TASK_MODULE of earlier configurations: their tasks are built in here.
_MODULES_OF_BUILT_IN_TASKS = frozenset({
    'prompt_tuning.data.c4', 'prompt_tuning.data.glue', 'prompt_tuning.data.glue_transfer',
    'prompt_tuning.data.qa', 'prompt_tuning.data.summarization', 'prompt_tuning.data.super_glue',
    'prompt_tuning.data.tasks', 't5.data', 't5.data.tasks', 't5.data.mixtures',
    't5.data.glue_utils', 'byt5.tasks', 'multilingual_t5.tasks',
    *(f'prompt_tuning.spot{folder}.{name}' for folder in ('', '.data')
      for name in ('glue', 'mrqa', 'nli', 'sentiment', 'summarization', 'tasks'))})


def as_is(example: Example) -> list[Example]:
  """The preprocess of examples that hold `inputs` and `targets` (or `text`) already."""
  return [example]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """One text-to-text task.

  Attributes:
    name: how users ask for it.
    source: where raw examples come from (sources.Source).
    preprocess: raw example -> list of dicts with `inputs` and `targets`: text, or token ids (with
      their end of sequence) where the source has tokenised already. A row with `text` is given to
      `objective` instead where there is one.
    postprocess_fn: `(text, example=None, is_target=False) -> value`, for decoded predictions and
      for target texts alike; `example` is the raw example with `inputs` and `targets` added.
    metric_fns: functions `(targets, predictions) -> {name: number}` of postprocessed values.
    labels: every text an answer can be, in class order, for rank classification and class-label
      initialisation; None for free text.
    objective: for plain-text corpora: token ids -> (inputs, targets), see preprocessors.py.
    on_tokens: what is done to the token ids of an example, see token_forms.py; None for nothing.
    task_index: number of the sentinel that stands before the tokens of the inputs and names the
      task; None for none.
    vocabulary: set where the task brings its own; None uses the backbone's.
    paper: where the data is described, a URL.
    train_split: split that training reads.
    eval_split: split that evaluation reads.
  """
  name: str
  source: Any
  preprocess: Callable[[Example], list[Example]] = as_is
  postprocess_fn: Callable[..., Any] = postprocessors.Text()
  metric_fns: tuple[Callable[..., Mapping[str, float]], ...] = ()
  labels: tuple[str, ...] | None = None
  objective: Any = None
  on_tokens: Callable[..., Any] | None = None
  task_index: int | None = None
  vocabulary: Any = None
  paper: str = ''
  train_split: str = 'train'
  eval_split: str = 'validation'

  @property
  def splits(self) -> tuple[str, ...]:
    """Names of the splits that the source has."""
    return self.source.splits

  @property
  def members(self) -> tuple['Task', ...]:
    """The task itself: what a mixture has several of. So have `trained` and `evaluated`."""
    return (self,)

  trained = evaluated = members

  def examples(
      self, split: str, rows: Iterable[tuple[str, Example]] | None = None,
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (example id, raw example with `inputs` and `targets` added).

    An id is the row in the source, followed by `.k` where a row gives several examples.

    Args:
      split: name of the split.
      rows: (row, raw example) of the source where not all of them are wanted; None reads all.

    Raises:
      UserError: no such split, or what the source says about a broken file.
    """
    if rows is None:
      self.check_split(split)
      rows = self.source.read(split)
    for row, raw in rows:
      try:
        processed = self.preprocess(raw)
      except UserError as error:
        raise UserError(f'{self.source.where(split, row)}: {error}') from None
      for k, example in enumerate(processed):
        yield row if len(processed) == 1 else f'{row}.{k}', {**raw, **example}

  def check_split(self, split: str):
    """Raises UserError where the source has no such split."""
    if split not in self.splits:
      raise UserError(
          f'Task {self.name!r} has no split {split!r}; it has {", ".join(self.splits) or "none"}.')

  def metrics(self, targets: list, predictions: list) -> dict[str, float]:
    """All metrics of postprocessed targets and predictions, in declaration order."""
    results = {}
    for metric_fn in self.metric_fns:
      for name, value in metric_fn(targets, predictions).items():
        results[name] = float(value)
    return results

  def read_from(self, data_dir: str) -> 'Task':
    """The same task with its files taken from a folder instead of TFDS.

    Raises:
      UserError: the source of this task does not come from a folder.
    """
    if not hasattr(self.source, 'in_folder'):
      raise UserError(
          f'DATA_DIR={data_dir!r} was given, but task {self.name!r} does not read its files from '
          'a data folder. Leave DATA_DIR out.')
    return dataclasses.replace(self, source=self.source.in_folder(data_dir))


def register(task: 'Task | Mixture') -> 'Task | Mixture':
  """Makes a task or a mixture known by its name; returns it.

  Raises:
    UserError: another has that name.
  """
  if _REGISTRY.setdefault(task.name, task) != task:
    raise UserError(f'A different task {task.name!r} is registered already; choose another name.')
  return task


def register_forms(task: Task, index: int, named: bool = True):
  """Registers a task and the forms that prompts are trained with, which know it by other means.

  Args:
    task: with its name as the first word of the inputs.
    index: of the task among those that it is trained with.
    named: False for inputs without the name of the task, which stay as they are.

  Besides `name` there are then `taskless_name`, without that word, and `task_index_name`, with
  sentinel number `index` in its place.
  """
  register(task)
  taskless = text_forms.Taskless(task.preprocess) if named else task.preprocess
  for prefix, task_index in (('taskless', None), ('task_index', index)):
    register(dataclasses.replace(
        task, name=f'{prefix}_{task.name}', preprocess=taskless, task_index=task_index))


def names() -> list[str]:
  """Names of all registered tasks, the built-in ones included."""
  _import_declarations()
  return sorted(name for name, found in _REGISTRY.items() if isinstance(found, Task))


def mixture_names() -> list[str]:
  """Names of all registered mixtures, the built-in ones included."""
  _import_declarations()
  return sorted(name for name, found in _REGISTRY.items() if not isinstance(found, Task))


def get(name: str, module: str | None = None, data_dir: str | None = None) -> 'Task | Mixture':
  """Finds a task or mixture: imports `module`, looks among those registered here, then asks SeqIO.

  Names of google-research/prompt-tuning mean the same task: `_examples` at the end (of mixtures
  also before `_proportional`) only asked for logged examples, and `mt5_` or `byt5_` in front named
  the vocabulary, which here comes from the backbone. `_1_sentinel` in a name gives the form that
  `with_sentinels` describes.

  Args:
    name: MIXTURE_OR_TASK_NAME.
    module: MIXTURE_OR_TASK_MODULE, a module whose import registers the task, here or with SeqIO.
    data_dir: DATA_DIR, the folder with the dataset's files; None reads from TFDS.

  Returns:
    The task or mixture.

  Raises:
    UserError: no such module or no such task, with the nearest names.
  """
  _import_declarations()
  # Those of T5 may be installed and have more; those of prompt_tuning are all here.
  if module in _MODULES_OF_BUILT_IN_TASKS and (
      _local(name) is not None or module.startswith('prompt_tuning.')):
    module = None
  if module:
    _import(module)
  task = _local(name)
  if task is None:
    task = _from_seqio(name, required=bool(module))
  return task if data_dir is None else task.read_from(data_dir)


def built_in(name: str) -> 'Task | Mixture | None':
  """A task of this package by its name, or by an older form of it; None where there is none."""
  _import_declarations()
  return _local(name)


def _local(name: str) -> 'Task | Mixture | None':
  """A task or mixture registered here under this name or under the plain form of an older name."""
  if name in _REGISTRY:
    return _REGISTRY[name]
  plain = re.sub(r'^(mt5|byt5)_', '', re.sub(r'_examples(_proportional)?$', r'\1', name))
  if plain in _REGISTRY:
    log.info('Task %s is read as %s (the vocabulary is the backbone\'s).', name, plain)
    return _REGISTRY[plain]
  found = re.search(r'_([1-9][0-9]?)_sentinel', plain)
  task = found and _REGISTRY.get(plain.replace(found[0], ''))
  return with_sentinels(task, int(found[1]), plain) if isinstance(task, Task) else None


def with_sentinels(task: Task, count: int, name: str) -> Task:
  """The form of a task whose targets look like masked spans, see token_forms.Sentinels.

  Args:
    task: a task of text.
    count: number of sentinels.
    name: of the new task.
  """
  return dataclasses.replace(
      task, name=name, on_tokens=token_forms.Sentinels(count),
      postprocess_fn=postprocessors.WithoutSentinels(task.postprocess_fn, count))


def _from_seqio(name: str, required: bool) -> 'Task | Mixture':
  """A SeqIO task or mixture; SeqIO is imported only where a module could have used it."""
  if required:
    from prompt_tuning.data import seqio_bridge
    task = seqio_bridge.find(name)
    if task is not None:
      return task
  near = difflib.get_close_matches(name, _REGISTRY, n=5, cutoff=0.4) or [
      known for known in names() if name in known.split('_')][:5]
  raise UserError(
      f'There is no task {name!r}. Nearest names: {", ".join(near) or "none"}; docs/tasks.md lists '
      f'the {len(_REGISTRY)} built-in tasks and mixtures. A task of your own or of SeqIO is found '
      'when MIXTURE_OR_TASK_MODULE names the module that registers it.')


def _import(module: str):
  try:
    importlib.import_module(module)
  except ModuleNotFoundError as error:
    raise UserError(
        f'MIXTURE_OR_TASK_MODULE={module!r} cannot be imported: {error}. Give a module that is '
        'installed or lies in a folder on PYTHONPATH.') from error


def _import_declarations():
  package = importlib.import_module(_DECLARATIONS)
  for found in pkgutil.iter_modules(package.__path__):
    importlib.import_module(f'{_DECLARATIONS}.{found.name}')
