"""`prompt-tuning data check`: what there is in the splits of a task, before anything is trained.

Takes the command line of `train`, or less: without a vocabulary lengths are counted in words.
"""

import dataclasses

import rich.box
import rich.console
import rich.table
import rich.text

from prompt_tuning.cli import cache as cache_verb
from prompt_tuning.cli import config as config_lib
from prompt_tuning.cli import data as data_lib
from prompt_tuning.cli import data_plot, doctor, process
from prompt_tuning.data import statistics, tokenizing
from prompt_tuning.data import task as task_lib
from prompt_tuning.diagnosis import findings, split_checks
from prompt_tuning.diagnosis.findings import Finding
from prompt_tuning.errors import UserError, excerpt

_SHOWN = 400  # characters of a rendered text
_LABELS = 12  # rows of the table of targets


def main(flags) -> int:
  """Runs the verb; 1 where there is a problem."""
  process.start()
  task, limits = _configured(flags)
  console = rich.console.Console(highlight=False)
  found, plotted = [], {}
  for member in task.members:
    seen, splits = _look_at(console, member, flags, limits)
    name = f'{member.name}: ' if len(task.members) > 1 else ''
    found += [dataclasses.replace(finding, found=name + finding.found) for finding in seen]
    plotted |= {f'{member.name} {split.split}': split for split in splits}
  if flags.plot and plotted:
    data_plot.write(flags.plot, plotted, limits)
  if not flags.dry_run:
    doctor.print_findings(list(dict.fromkeys(found)))  # what every split says is said once
  return int(any(finding.severity == findings.PROBLEM for finding in found))


def _look_at(console, task, flags, limits):
  """Prints what there is of one task; returns (findings, statistics of its splits)."""
  vocabulary = cache_verb.find_vocabulary(task)
  console.print(f'Task {task.name}, lengths in '
                f'{"words: no vocabulary is given" if vocabulary is None else "tokens"}')
  try:
    names = flags.split or task.splits
  except UserError as error:  # the other tasks of a mixture may be there
    return [findings.refused(error)], []
  if flags.dry_run:
    console.print(f'Dry run: {", ".join(names)} would be read.')
    return [], []
  splits = []
  found = examine(task, names, limits, vocabulary, splits)
  if splits:
    print_splits(console, splits, limits, labelled=bool(task.labels))
  return found, splits


def examine(task, names, limits, vocabulary, splits: list) -> list[Finding]:
  """Reads splits; a broken one is a finding.

  Args:
    task: the task.
    names: of the splits.
    limits: TASK_FEATURE_LENGTHS, as far as it is known.
    vocabulary: that lengths are measured with, or None.
    splits: gets the statistics of what could be read.
  """
  found: list[Finding] = []
  for name in names:
    try:
      splits.append(statistics.gather(task, name, vocabulary, limits))
    except UserError as error:
      found.append(findings.refused(error))
  if vocabulary is not None:
    try:
      tokenizing.check_labels(task, vocabulary, limits.get('targets'))
    except UserError as error:
      found.append(findings.refused(error))
  return found + split_checks.check_splits(task, splits, limits, vocabulary)


def _configured(flags):
  """(task or mixture, TASK_FEATURE_LENGTHS as far as it is given) of the command line."""
  if flags.vocabulary is not None:
    flags.overrides.append(('VOCABULARY', flags.vocabulary))
  if flags.task is None:
    cache_verb.parse(flags)
    config = config_lib.build(data_lib.DataConfig)
    return config.task, config.feature_lengths
  config_lib.parse(
      [cache_verb.RUN_FILE, 'tasks/named.gin'], flags.overrides, flags.gin_search_paths,
      bindings=[('MIXTURE_OR_TASK_NAME', repr(flags.task)), ('TASK_FEATURE_LENGTHS', '{}')],
      more_files=flags.gin_file)
  return config_lib.build(task_lib.get), config_lib.macro('TASK_FEATURE_LENGTHS')


def print_splits(console: rich.console.Console, splits, limits, labelled: bool):
  """Prints tables of counts, lengths and targets, and a few examples of each split."""
  _print_counts(console, splits)
  _print_lengths(console, splits, limits)
  _print_targets(console, splits, labelled)
  for split in splits:
    for example in split.rendered:
      text = rich.text.Text(f'{split.split} {example.example_id}\n', style='bold')
      text.append(f'  inputs:  {excerpt(example.inputs, _SHOWN)}\n', style='not bold')
      text.append(f'  targets: {excerpt(example.targets, _SHOWN)}', style='not bold')
      console.print(text)


def _table(*columns: str) -> rich.table.Table:
  table = rich.table.Table(box=rich.box.SIMPLE)
  for number, column in enumerate(columns):
    table.add_column(column, justify='right' if number else 'left', overflow='fold')
  return table


def _print_counts(console, splits):
  shared = statistics.shared(splits)
  table = _table('split', 'rows', 'examples', 'repeated inputs', 'inputs of other splits')
  for split in splits:
    others = ', '.join(f'{count:,} of {pair[0]}' for pair, count in shared.items()
                       if pair[1] == split.split)
    table.add_row(split.split, f'{split.rows:,}', f'{len(split):,}', f'{split.repeated:,}', others)
  console.print(table)
  for split in splits:
    console.print(f'  {split.split} begins at {split.first}', soft_wrap=True)


def _print_lengths(console, splits, limits):
  table = _table('split', 'length of', 'mean', 'p50', 'p95', 'max', 'limit', 'cut')
  for split in splits:
    cut = split.truncated(limits)
    for i, feature in enumerate(tokenizing.FEATURES):
      row = statistics.summary(split.lengths[:, i])
      count = cut[feature]['examples'] if feature in cut else None
      table.add_row(
          split.split, feature, *([f'{row[key]:,.1f}' for key in ('mean', 'p50', 'p95')] if row
                                  else ['', '', '']), f'{row["max"]:,}' if row else '',
          str(limits.get(feature) or ''),
          '' if count is None else findings.percent(count, len(split)))
  console.print(table)


def _print_targets(console, splits, labelled):
  """The most common targets; a task whose targets hardly repeat has no classes to count."""
  totals = sum((split.targets for split in splits), start=type(splits[0].targets)())
  if not labelled and 2 * len(totals) >= sum(totals.values()):
    console.print('  Targets are not classes: few of them occur twice.')
    return
  table = _table('target', *(split.split for split in splits))
  for text, _ in totals.most_common(_LABELS):
    table.add_row(excerpt(text), *(
        f'{split.targets[text]:,} ({findings.percent(split.targets[text], len(split))})'
        for split in splits))
  if len(totals) > _LABELS:
    table.add_row(f'and {len(totals) - _LABELS} or more others', *('' for _ in splits))
  console.print(table)
