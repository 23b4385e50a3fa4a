"""What infer reads and writes, without a model."""

import gzip
import io
import json
import os
import subprocess
import sys

import pytest

from prompt_tuning.cli import infer
from prompt_tuning.data import task as task_lib
from prompt_tuning.data.tasks import local_text
from prompt_tuning.errors import UserError


def texts(task, *lines):
  return list(infer._texts(task, 'in', iter(lines)))


@pytest.mark.parametrize('label', ['entailment', 7, None, [1]])
def test_label_of_a_row_is_not_looked_at(label):
  row = json.dumps({'sentence1': 'a', 'sentence2': 'b', 'label': label})
  assert texts(task_lib.get('glue_rte_v200'), row) == ['rte sentence1: a sentence2: b']


def test_plain_lines():
  task = local_text.make(input_template='say: {text}', target_field='label')
  assert texts(task, 'fine\n', '\n', '{"text": "poor"}\n', '{"inputs": "as is"}\n') == [
      'say: fine', 'say: poor', 'as is']
  assert texts(task_lib.get('glue_rte_v200'), 'rte sentence1: x') == ['rte sentence1: x']
  both = local_text.make(input_template='{b} {a} {b}', target_field='label')
  with pytest.raises(UserError, match='in:1: INPUT_TEMPLATE has the fields a, b'):
    texts(both, 'fine')


def test_a_field_that_is_called_inputs():
  task = local_text.make(input_template='say: {inputs}', target_field='label')
  assert texts(task, '{"inputs": "fine"}', 'fine') == ['say: fine', 'say: fine']


def test_output_takes_its_place_at_the_end(tmp_path):
  out = tmp_path / 'out.jsonl'
  out.write_text('old')
  with pytest.raises(RuntimeError), infer._writing(str(out)) as file:
    file.write('half')
    raise RuntimeError
  assert out.read_text() == 'old'
  with infer._writing(str(out)) as file:
    file.write('new')
    assert out.read_text() == 'old'
  assert out.read_text() == 'new'
  assert os.listdir(tmp_path) == ['out.jsonl']


def test_output_to_a_device():
  with infer._writing(os.devnull) as file:
    file.write('x')
  assert not os.path.isfile(os.devnull)


def test_standard_streams_are_utf8(monkeypatch):
  monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO('schön\n'.encode()), 'ascii'))
  with infer._reading('-') as lines:
    assert list(lines) == ['schön\n']


def test_a_file_may_begin_with_a_mark_and_be_packed(tmp_path):
  (tmp_path / 'in.jsonl.gz').write_bytes(gzip.compress(b'\xef\xbb\xbf{"text": "a\xc2\x85"}\r\n'))
  task = local_text.make(input_template='say: {text}', target_field='label')
  with infer._reading(str(tmp_path / 'in.jsonl.gz')) as lines:
    assert texts(task, *lines) == ['say: a\x85']


def test_reader_of_the_output_has_gone():
  code = """
import sys
from prompt_tuning.cli import infer, main
def answers(flags):
  with infer._writing('-') as out:
    for _ in range(100_000):
      out.write('x' * 100)
infer.main = answers
sys.exit(main.main(['infer']))
"""
  with subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE) as process:
    process.stdout.close()
    err = process.stderr.read()
  assert (process.returncode, err) == (1, b'')
