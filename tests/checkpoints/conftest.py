"""A Hugging Face folder to read, and a copy of it to break."""

import shutil

import pytest
from checkpoints.hf_models import V11, random_params

from prompt_tuning.checkpoints import hf


@pytest.fixture(scope='session')
def original(tmp_path_factory):
  path = tmp_path_factory.mktemp('original') / 'model'
  hf.write_folder(path, V11, random_params(V11))
  return path


@pytest.fixture
def folder(original, tmp_path):
  """A copy to break."""
  return shutil.copytree(original, tmp_path / 'model')
