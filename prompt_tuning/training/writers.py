"""Where metrics go: metrics.jsonl, TensorBoard event files, a progress bar or log lines.

A writer gets {name: float} with names such as train/loss and eval/accuracy.
"""

import abc
import json
import logging
import math
import os
import pathlib
import socket
import sys
import time

from prompt_tuning.atomic_file import write_atomically

_log = logging.getLogger(__name__)

# What a line on the screen shows, where it is there, and how.
_SHOWN = {'loss': '.4g', 'accuracy': '.3f', 'grad_norm': '.3g'}
_LONG = ('accuracy', 'grad_norm')  # left out beside the bar, for terminals of 80 columns


class Writer(abc.ABC):
  """Takes metrics; closing flushes."""

  @abc.abstractmethod
  def write(self, step, values):
    """Takes {name: float} of a step."""

  def tick(self, step):  # noqa: B027 (most writers do not care)
    """Hears that a step was dispatched."""

  def close(self):  # noqa: B027
    """Flushes; nothing is written afterwards."""

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


class Writers(Writer):
  """Several writers as one."""

  def __init__(self, *writers):
    self._writers = writers

  def write(self, step, values):
    for writer in self._writers:
      writer.write(step, values)

  def tick(self, step):
    for writer in self._writers:
      writer.tick(step)

  def close(self):
    for writer in self._writers:
      writer.close()


class JsonlWriter(Writer):
  """One JSON object a line: {"step": ..., "time": ..., name: value, ...}.

  Args:
    path: the file, appended to.
    first_step: what the file says about later steps is dropped: a run that was restored from an
      older checkpoint goes through them again.
    evaluated: whether the evaluation of first_step lies behind too.
  """

  def __init__(self, path, first_step=0, evaluated=True):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
      lines = ''.join(_lines_until(path, first_step, evaluated)).encode()
      write_atomically(path, lambda file: file.write(lines))
    self._file = path.open('a')

  def write(self, step, values):
    # JSON has no NaN: null, which every reader understands.
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    self._file.write(json.dumps({'step': step, 'time': round(time.time(), 3), **finite}) + '\n')
    self._file.flush()

  def close(self):
    self._file.close()


def _lines_until(path, last_step, evaluated):
  """The whole lines of the file with a step up to `last_step`; a torn last line is dropped."""
  for line in path.read_text().splitlines(keepends=True):
    try:
      values = json.loads(line)
      done = values['step'] < last_step or (values['step'] == last_step and (
          evaluated or not any(name.startswith('eval/') for name in values)))
    except (json.JSONDecodeError, KeyError, TypeError):
      continue
    if done and line.endswith('\n'):
      yield line


class TensorBoardWriter(Writer):
  """Scalars in an event file.

  The records are tensorboard's own; its EventFileWriter is not used, because that writes from a
  thread, where an error of the disk ends the thread and not the run.
  """

  def __init__(self, folder, first_step=0):
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter
    self._event, self._summary = event_pb2.Event, summary_pb2.Summary
    now = time.time()
    name = f'events.out.tfevents.{now:.6f}.{socket.gethostname()}.{os.getpid()}'
    self._file = (pathlib.Path(folder) / name).open('wb', buffering=0)
    self._records = RecordWriter(self._file)
    self._add(wall_time=now, file_version='brain.Event:2')
    if first_step:  # hides what an earlier, longer attempt wrote about later steps
      self._add(wall_time=now, step=first_step + 1,
                session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

  def write(self, step, values):
    scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    self._add(wall_time=time.time(), step=step, summary=self._summary(value=scalars))

  def close(self):
    self._file.close()

  def _add(self, **fields):
    self._records.write(self._event(**fields).SerializeToString())


class LogWriter(Writer):
  """One plain log line a write."""

  def __init__(self, last_step):
    self._last_step = last_step

  def write(self, step, values):
    for kind, line in _lines(values).items():
      left = _time_left(step, self._last_step, values)
      _log.info('step %d/%d  %s  %s%s', step, self._last_step, kind, line,
                f'  ETA {left}' if left else '')


class ProgressWriter(Writer):
  """A progress bar with loss, examples/s and the time that is left; evaluations as lines."""

  def __init__(self, first_step, last_step, console=None):
    import rich.console
    import rich.progress as bars
    self._last_step = last_step
    self._bar = bars.Progress(
        bars.TextColumn('step'), bars.MofNCompleteColumn(), bars.BarColumn(bar_width=12),
        bars.TextColumn('{task.fields[line]}'), bars.TextColumn('ETA {task.fields[left]}'),
        console=console or rich.console.Console(stderr=True), redirect_stdout=False)
    self._task = self._bar.add_task('train', total=last_step, completed=first_step, line='',
                                    left='-')
    self._bar.start()

  def tick(self, step):
    self._bar.update(self._task, completed=step)

  def write(self, step, values):
    for kind, line in _lines(values).items():
      if kind == 'train':
        short = '  '.join(part for part in line.split('  ') if not part.startswith(_LONG))
        self._bar.update(self._task, line=short,
                         left=_time_left(step, self._last_step, values) or '-')
      else:
        self._bar.console.print(f'step {step}  {kind}  {line}', highlight=False, markup=False)

  def close(self):
    self._bar.stop()


def open_writers(folder, first_step, last_step, evaluated=True, stream=None):
  """All writers of a run in MODEL_DIR.

  Args:
    folder: MODEL_DIR; metrics.jsonl and the event files go there.
    first_step: where this process starts, after a restore perhaps.
    last_step: where it ends.
    evaluated: whether first_step was evaluated by an earlier process.
    stream: decides between bar (a terminal) and log lines; stderr by default.
  """
  stream = sys.stderr if stream is None else stream
  screen = (ProgressWriter(first_step, last_step) if stream.isatty() else LogWriter(last_step))
  return Writers(JsonlWriter(pathlib.Path(folder) / 'metrics.jsonl', first_step, evaluated),
                 TensorBoardWriter(folder, first_step), screen)


def _lines(values):
  """{'train': 'loss 1.2  ...', 'eval': ...}: what a person reads of these values."""
  groups = {}
  for name, value in values.items():
    kind, _, rest = name.partition('/')
    groups.setdefault(kind, {})[rest] = value
  lines = {}
  for kind, group in groups.items():
    if kind == 'train':
      parts = [f'{name} {group[name]:{form}}' for name, form in _SHOWN.items() if name in group]
      if 'examples_per_second' in group:
        parts.append(f'{group["examples_per_second"]:.1f} examples/s')
    else:
      parts = [f'{name} {value:.4g}' for name, value in group.items()]
    lines[kind] = '  '.join(parts)
  return lines


def _time_left(step, last_step, values):
  """h:mm:ss at the present pace; '' where the pace is not among the values."""
  pace = values.get('train/steps_per_second')
  if not pace:
    return ''
  minutes, seconds = divmod(round((last_step - step) / pace), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02d}:{seconds:02d}'
