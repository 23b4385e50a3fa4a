"""The wheel holds what a user needs and works outside the checkout."""

import pathlib
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """A wheel built from a clean copy, so that a stale build/ folder cannot add to it."""
  work = tmp_path_factory.mktemp('wheel')
  copy = work / 'source'
  copy.mkdir()
  names = subprocess.run(
      ['git', 'ls-files', '--cached', '--others', '--exclude-standard'], cwd=ROOT, check=True,
      capture_output=True, text=True).stdout.splitlines()
  for name in names:
    if not name.startswith('tests/') and (ROOT / name).is_file():
      (copy / name).parent.mkdir(parents=True, exist_ok=True)
      (copy / name).write_bytes((ROOT / name).read_bytes())
  subprocess.run(
      [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '-q',
       '-w', str(work), str(copy)], check=True)
  [path] = work.glob('*.whl')
  return path


def test_wheel_contents(wheel):
  names = set(zipfile.ZipFile(wheel).namelist())
  gin_files = {f'prompt_tuning/{path.relative_to(ROOT).as_posix()}'
               for path in (ROOT / 'gin').rglob('*.gin')}
  assert len(gin_files) >= 40
  assert gin_files <= names
  backbone = {f'prompt_tuning/demo/backbone/{path.name}'
              for path in (ROOT / 'prompt_tuning/demo/backbone').glob('*')}
  assert {'config.json', 'model.safetensors', 'spiece.model'} <= {
      pathlib.PurePosixPath(name).name for name in backbone}
  assert backbone <= names
  assert 'prompt_tuning/cli/main.py' in names
  assert not [name for name in names if name.startswith(('tests/', 'gin/'))]


def test_installed_wheel_outside_the_checkout(wheel, tmp_path):
  """Installed without dependencies into a folder that stands first on the path."""
  site = tmp_path / 'site'
  subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', str(site),
                  str(wheel)], check=True)
  (tmp_path / 'train.jsonl').write_text('{"text": "good", "label": "yes"}\n' * 4)
  code = f"""
import pathlib, sys
sys.path.insert(0, {str(site)!r})
from prompt_tuning.cli import config, main
assert config.gin_root() == pathlib.Path({str(site)!r}) / 'prompt_tuning' / 'gin'
sys.exit(main.main(['train', '--dry_run', '--gin_file=models/t5_1_1_small.gin',
                    '--gin_file=peft/prompt.gin', '--gin_file=tasks/local_text.gin',
                    '--gin_file=runs/train.gin', '--gin.INITIAL_CHECKPOINT_PATH=random',
                    '--gin.VOCABULARY=bytes', '--gin.TRAIN_FILE=train.jsonl',
                    '--gin.MODEL_DIR=out']))
"""
  done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert 'trainable 51,200' in done.stdout
  assert not (tmp_path / 'out').exists()


def test_gin_folder_is_no_package():
  assert not list(pathlib.Path(ROOT / 'gin').rglob('__init__.py'))
  done = subprocess.run([sys.executable, '-c', 'import gin; gin.parse_config'], cwd=ROOT)
  assert done.returncode == 0


def test_import_is_quick():
  code = ('import time\nstart = time.perf_counter()\nimport prompt_tuning\n'
          'print(time.perf_counter() - start)')
  seconds = [float(subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True,
                                  text=True, check=True).stdout) for _ in range(3)]
  assert min(seconds) < 1.5
