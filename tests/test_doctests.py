"""The examples in README.md and in docstrings do what they say."""

import doctest
import importlib
import pathlib

import pytest

from prompt_tuning.checkpoints import restore

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / 'prompt_tuning'
MODULES = sorted('.'.join(path.relative_to(ROOT).with_suffix('').parts)
                 for path in PACKAGE.rglob('*.py') if '>>> ' in path.read_text())


def test_readme():
  if not restore.demo_folder().is_dir():
    pytest.skip(f'no folder {restore.demo_folder()}: the example loads the bundled backbone')
  result = doctest.testfile(str(ROOT / 'README.md'), module_relative=False)
  assert result.attempted >= 7
  assert result.failed == 0


def test_there_are_examples():
  assert 'prompt_tuning.models.t5' in MODULES


@pytest.mark.parametrize('name', MODULES)
def test_docstrings(name):
  result = doctest.testmod(importlib.import_module(name))
  assert result.attempted > 0
  assert result.failed == 0
