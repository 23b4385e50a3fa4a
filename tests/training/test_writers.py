"""metrics.jsonl, event files, log lines and the progress bar."""

import contextlib
import io
import json
import logging
import math
import os
import pathlib
import subprocess
import sys

import pytest
import rich.console

from prompt_tuning.training import writers

TRAIN = {'train/loss': 1.25, 'train/accuracy': 0.5, 'train/examples_per_second': 12.34,
         'train/steps_per_second': 2.0, 'train/grad_norm': 0.1}


def _rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_jsonl(tmp_path):
  path = tmp_path / 'run' / 'metrics.jsonl'
  with writers.JsonlWriter(path) as writer:
    writer.write(10, {'train/loss': 0.5})
    writer.write(20, {'eval/accuracy': math.nan})
  rows = _rows(path)
  assert [row['step'] for row in rows] == [10, 20]
  assert rows[0]['train/loss'] == 0.5 and rows[1]['eval/accuracy'] is None
  assert rows[0]['time'] > 1.7e9


def test_a_resumed_run_drops_what_it_does_again(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 10}\n{"step": 20}\n{"step": 30}\n{"step": 3')
  with writers.JsonlWriter(path, first_step=20) as writer:
    writer.write(30, {'train/loss': 1.0})
  assert [row['step'] for row in _rows(path)] == [10, 20, 30]


@pytest.mark.parametrize('evaluated', [True, False])
def test_an_evaluation_that_is_done_again_is_dropped(tmp_path, evaluated):
  """A run that was stopped before the evaluation of its last step has written the rest of it."""
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 10, "eval/x": 1}\n{"step": 20, "train/x": 1}\n'
                  '{"step": 20, "eval/x": 1}\n')
  writers.JsonlWriter(path, 20, evaluated).close()
  assert [row['step'] for row in _rows(path)] == ([10, 20, 20] if evaluated else [10, 20])
  assert 'train/x' in _rows(path)[1]


@pytest.mark.parametrize('kind', [writers.TensorBoardWriter, writers.JsonlWriter])
def test_a_full_disk_is_told_at_once(tmp_path, kind):
  """/dev/full takes nothing; a writer with a thread of its own would lose the error there."""
  if not pathlib.Path('/dev/full').exists():
    pytest.skip('no /dev/full on this system')
  writer = kind(tmp_path if kind is writers.TensorBoardWriter else tmp_path / 'metrics.jsonl')
  with open('/dev/full', 'wb', buffering=0) as full:
    os.dup2(full.fileno(), writer._file.fileno())
  with pytest.raises(OSError, match='No space left'):
    writer.write(1, TRAIN)
  with contextlib.suppress(OSError):  # what is still in its buffer
    writer.close()


def test_tensorboard(tmp_path):
  from tensorboard.compat.proto import event_pb2
  from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New
  with writers.TensorBoardWriter(tmp_path) as writer:
    writer.write(10, {'train/loss': 0.5, 'train/accuracy': 0.25})
  file, = tmp_path.glob('events.out.tfevents.*')
  reader, events = PyRecordReader_New(str(file)), []
  while True:
    try:
      reader.GetNext()
    except Exception:  # the reader's end of file
      break
    events.append(event_pb2.Event.FromString(reader.record()))
  scalars = {value.tag: value.simple_value for event in events for value in event.summary.value}
  assert scalars == {'train/loss': 0.5, 'train/accuracy': 0.25}
  assert events[-1].step == 10


def test_log_lines(caplog):
  with caplog.at_level(logging.INFO):
    writer = writers.LogWriter(100)
    writer.write(40, TRAIN)
    writer.write(40, {'eval/accuracy': 0.75})
  assert caplog.messages == [
      'step 40/100  train  loss 1.25  accuracy 0.500  grad_norm 0.1  12.3 examples/s  ETA 0:00:30',
      'step 40/100  eval  accuracy 0.75']


def test_progress_bar():
  stream = io.StringIO()
  console = rich.console.Console(file=stream, force_terminal=True, width=120)
  with writers.ProgressWriter(0, 100, console) as writer:
    for step in range(1, 41):
      writer.tick(step)
    writer.write(40, TRAIN)
    writer.write(40, {'eval/accuracy': 0.75})
  text = stream.getvalue()
  assert '40/100' in text and 'loss 1.25' in text and '12.3 examples/s' in text
  assert 'ETA 0:00:30' in text and 'step 40  eval  accuracy 0.75' in text


@pytest.mark.parametrize('terminal, kind', [(True, writers.ProgressWriter),
                                            (False, writers.LogWriter)])
def test_open_writers(tmp_path, terminal, kind):
  stream = io.StringIO()
  stream.isatty = lambda: terminal
  with writers.open_writers(tmp_path, 0, 10, stream=stream) as everything:
    assert any(isinstance(writer, kind) for writer in everything._writers)
    everything.tick(1)
    everything.write(1, TRAIN)
  assert len(_rows(tmp_path / 'metrics.jsonl')) == 1
  assert len(list(tmp_path.glob('events.out.tfevents.*'))) == 1


def test_neither_writing_nor_training_imports_tensorflow(tmp_path):
  """A stand-in that fails on import takes TensorFlow's place."""
  (tmp_path / 'tensorflow.py').write_text('raise SystemExit("tensorflow was imported")')
  code = ('from prompt_tuning.training import loop, step, writers\n'
          f'with writers.open_writers({str(tmp_path / "run")!r}, 0, 1) as w:\n'
          '  w.write(1, {"train/loss": 1.0})\n'
          'print("written")')
  env = {'PYTHONPATH': f'{tmp_path}:{":".join(p for p in sys.path if p)}', 'JAX_PLATFORMS': 'cpu',
         'PATH': ''}
  done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
  assert done.stdout.strip() == 'written', done.stderr
