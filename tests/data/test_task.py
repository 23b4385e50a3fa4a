"""The registry: names, modules, messages; nothing heavy is imported."""

import subprocess
import sys

import pytest

from prompt_tuning.data import sources, task
from prompt_tuning.errors import UserError


def a_task(name, **kwargs):
  rows = ({'inputs': 'a', 'targets': 'b'},)
  return task.Task(name=name, source=sources.ListSource({'train': rows}), **kwargs)


@pytest.fixture
def registry(monkeypatch):
  task.names()  # the built-in ones register once, and not here
  monkeypatch.setattr(task, '_REGISTRY', dict(task._REGISTRY))


def test_register_and_get(registry):
  mine = task.register(a_task('mine'))
  assert task.get('mine') is mine
  assert task.register(mine) is mine
  with pytest.raises(UserError, match="'mine' is registered already"):
    task.register(a_task('mine', labels=('x',)))
  assert 'mine' in task.names() and 'glue_sst2_v200' in task.names()


def test_a_module_registers_its_task(registry, tmp_path, monkeypatch):
  (tmp_path / 'their_tasks.py').write_text(
      'from prompt_tuning.data import sources, task\n'
      'task.register(task.Task(name="theirs", source=sources.ListSource({"train": ()})))\n')
  monkeypatch.syspath_prepend(tmp_path)
  assert task.get('theirs', module='their_tasks').name == 'theirs'
  with pytest.raises(UserError, match="MIXTURE_OR_TASK_MODULE='absent_tasks' cannot be imported"):
    task.get('theirs', module='absent_tasks')


def test_unknown_name_lists_the_nearest():
  with pytest.raises(UserError, match='Nearest names: .*glue_sst2_v200'):
    task.get('glue_sst_v200')
  with pytest.raises(UserError, match='Nearest names: .*glue_sst2_v200'):
    task.get('glue_sst_v200', module='prompt_tuning.data.glue')


def test_data_dir_is_refused_where_it_means_nothing(registry):
  task.register(a_task('mine'))
  with pytest.raises(UserError, match='does not read its files from'):
    task.get('mine', data_dir='/tmp')


def test_unknown_split(registry):
  with pytest.raises(UserError, match="no split 'validation'; it has train"):
    list(a_task('mine').examples('validation'))


def test_several_examples_of_one_row():
  double = a_task('double', preprocess=lambda ex: [{**ex, 'inputs': c} for c in 'xy'])
  assert [(i, ex['inputs']) for i, ex in double.examples('train')] == [('0.0', 'x'), ('0.1', 'y')]


def test_errors_of_preprocess_name_the_place():
  def broken(example):
    raise UserError('no good')
  with pytest.raises(UserError, match='^train example 0: no good$'):
    list(a_task('broken', preprocess=broken).examples('train'))


def test_import_is_light():
  code = ('import sys, prompt_tuning.data.task as t, prompt_tuning.data.tasks.local_text\n'
          't.names()\n'
          'print([m for m in ("tensorflow", "gin", "seqio", "grain", "jax") if m in sys.modules])')
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  heavy = eval(out.stdout)
  assert not {'tensorflow', 'gin', 'seqio', 'grain'} & set(heavy)
