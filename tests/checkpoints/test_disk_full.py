"""Writing where there is no room: one UserError, and nothing under the final name."""

import errno
import json
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest
from checkpoints import samples

from prompt_tuning.errors import UserError

WRITERS = ('t5x', 'hf', 'hf_shards', 'prompt_safetensors', 'prompt_npy', 'peft_prompt',
           'peft_lora')

# A process of its own: the limit holds for every file, those of pytest too.
LIMITED = textwrap.dedent('''
    import json, pathlib, resource, sys
    from checkpoints import samples
    from prompt_tuning.errors import UserError
    samples.params()
    report, root = {}, pathlib.Path(sys.argv[1])
    for name in sys.argv[3:]:
      for limit in (0, int(sys.argv[2])):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        folder = root / f'{name}_{limit}'
        try:
          samples.SAMPLES[name].make(folder)
          message = 'written'
        except UserError as error:
          message = str(error)
        except Exception as error:
          message = repr(error)
        report[folder.name] = message
    print(json.dumps(report))
''')


@pytest.fixture(scope='module')
def limited(tmp_path_factory):
  """(folder, {what was written where files have no room: message})."""
  root = tmp_path_factory.mktemp('full')
  here = pathlib.Path(__file__).parent.parent
  path = os.pathsep.join((str(here), str(here.parent)))
  done = subprocess.run([sys.executable, '-c', LIMITED, str(root), '60', *WRITERS],
                        env={**os.environ, 'PYTHONPATH': path}, stdout=subprocess.PIPE, text=True,
                        check=True)
  return root, json.loads(done.stdout)


@pytest.mark.parametrize('limit', [0, 60])
@pytest.mark.parametrize('name', WRITERS)
def test_files_that_may_not_grow(limited, name, limit):
  root, report = limited
  assert 'Cannot write' in report[f'{name}_{limit}']
  assert str(root) in report[f'{name}_{limit}']
  left = list((root / f'{name}_{limit}').rglob('*'))
  assert not [path for path in left if path.is_file()], left


@pytest.mark.parametrize('name', WRITERS)
def test_file_in_place_of_a_folder(tmp_path, name):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='Cannot write|is not an empty folder'):
    samples.SAMPLES[name].make(tmp_path / 'file' / 'x')
  assert [path.name for path in tmp_path.iterdir()] == ['file']


@pytest.mark.parametrize('name', WRITERS)
def test_disk_that_is_full_at_the_end(tmp_path, name, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  monkeypatch.setattr(os, 'replace', full)
  with pytest.raises(UserError, match='No space left on device'):
    samples.SAMPLES[name].make(tmp_path / 'x')
  assert not [path for path in tmp_path.rglob('*') if path.is_file()]


def test_what_was_there_stays(tmp_path, monkeypatch):
  path = samples.SAMPLES['prompt_safetensors'].make(tmp_path)
  before = samples.content(tmp_path)
  monkeypatch.setattr(os, 'fsync', lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, 'full')))
  with pytest.raises(UserError, match='Cannot write'):
    samples.SAMPLES['prompt_safetensors'].make(tmp_path)
  assert samples.content(tmp_path) == before
  samples.load_prompt(path)
