"""`cache` before `train`: the run finds what was written, and needs nothing else."""

import os
import pathlib
import shutil
import subprocess
import sys
import textwrap

import pytest
from e2e import jsonl

from prompt_tuning.cli import main


@pytest.fixture
def cached(train_argv, tmp_path, capsys):
  """The command line of a run whose caches were written ahead, and where they are."""
  argv = train_argv(tmp_path / 'run', TRAIN_STEPS_RELATIVE=2, EVAL_PERIOD=2)
  assert main.main(['cache', *argv[1:], '--gin.VOCABULARY=bytes']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert [line.split(': ')[1].split(',')[0] for line in lines] == ['16 examples', '8 examples']
  return argv, [pathlib.Path(line.split(': ')[0]) for line in lines]


def test_train_finds_what_cache_wrote_and_sees_damage(cached, capsys):
  argv, (train, dev) = cached
  assert train.parent == dev.parent == pathlib.Path(argv[-1].split('=')[1]) / 'cache'
  assert main.main(['cache', '--verify', f'--gin.CACHE_DIR={train.parent}']) == 0
  assert '16 examples, as they were written' in capsys.readouterr().out
  file = train / 'tokens-00000.array_record'
  file.write_bytes(file.read_bytes()[:-1])
  for line in (argv, ['cache', '--verify', f'--gin.CACHE_DIR={train.parent}']):
    assert main.main(line) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert str(file) in err and 'USE_CACHED_TASKS=False' in err
  assert main.main(['cache', *argv[1:], '--gin.VOCABULARY=bytes',
                    '--gin.USE_CACHED_TASKS=False']) == 0
  assert main.main(['cache', '--verify', f'--gin.CACHE_DIR={train.parent}']) == 0


BLOCKED = textwrap.dedent('''
    import sys
    for name in ('tensorflow', 'tensorflow_datasets', 'tensorflow_text', 'seqio', 't5'):
      sys.modules[name] = None  # an import of it fails
    from prompt_tuning.cli import main
    sys.exit(main.main(sys.argv[1:]))
''')


def test_without_tensorflow_and_without_the_source(cached, train_argv, tmp_path):
  """A task that is known by its cache alone, as one of SeqIO or TFDS is on another machine."""
  _, (train, _) = cached
  caches = tmp_path / 'elsewhere'
  shutil.move(train.parent, caches)
  argv = train_argv(
      tmp_path / 'other', task='tasks/cached.gin', MIXTURE_OR_TASK_NAME='local_text',
      CACHE_DIR=caches, TRAIN_FILE=None, EVAL_FILE=None, INPUT_TEMPLATE=None, CLASS_LABELS=None,
      TASK_FEATURE_LENGTHS="{'inputs': 256, 'targets': 16}", TRAIN_STEPS_RELATIVE=2, EVAL_PERIOD=2,
      VOCABULARY='bytes')
  root = pathlib.Path(__file__).resolve().parent.parent.parent
  done = subprocess.run([sys.executable, '-c', BLOCKED, *argv], capture_output=True, text=True,
                        env={**os.environ, 'PYTHONPATH': str(root)}, check=False)
  assert done.returncode == 0, done.stderr
  rows = jsonl.read(tmp_path / 'other/metrics.jsonl')
  assert any('eval/exact_match' in row for row in rows)


@pytest.mark.parametrize(('flags', 'words'), [
    (['--gin_file=tasks/demo_sentiment.gin', '--gin.VOCABULARY=bytes'], ('CACHE_DIR', 'MODEL_DIR')),
    (['--gin.CACHE_DIR=x'], ('No task is configured',)),
    (['--gin.CACHE_DIR=x', '--gin_file=tasks/demo_sentiment.gin'], ('--gin.VOCABULARY',)),
    (['--gin.CACHE_DIR=x', '--verify'], ('holds no caches',)),
    (['--gin.CACHE_DIR=x', '--gin_file=tasks/demo_sentiment.gin', '--gin.VOCABULARY=bytes',
      '--split=dev'], ("'dev'", 'train, validation')),
    (['--gin.CACHE_DIR=x', '--gin_file=tasks/demo_sentiment.gin', '--gin.VOCABULARY=bytes',
      '--num_workers=0'], ('--num_workers is 0',)),
])
def test_usage_errors(flags, words, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert main.main(['cache', *flags]) == 2
  err = capsys.readouterr().err.splitlines()[-1]
  for word in words:
    assert word in err
  assert not [path for path in tmp_path.rglob('*') if path.is_file()]


def test_dry_run(tmp_path, capsys):
  assert main.main(['cache', '--gin_file=tasks/demo_sentiment.gin', '--gin_file=models/demo.gin',
                    f'--gin.CACHE_DIR={tmp_path}/c', '--split=validation', '--dry_run']) == 0
  assert 'demo_sentiment-validation-' in capsys.readouterr().out
  assert not (tmp_path / 'c').exists()
