"""Flags, help and exit codes; what a mistake in the input of a run says is in tests/e2e."""

import pytest

from prompt_tuning.cli import main
from prompt_tuning.version import __version__


@pytest.mark.parametrize('verb', main.VERBS)
def test_help_has_an_example_and_all_flags(verb, capsys):
  with pytest.raises(SystemExit) as stop:
    main.main([verb, '--help'])
  assert stop.value.code == 0
  out = capsys.readouterr().out
  assert f'prompt-tuning {verb}' in out.split('example')[1]
  assert max(map(len, out.splitlines())) <= 100
  flags = [flag for flag, _ in main.VERBS[verb].flags]
  assert '--dry_run' in flags
  for flag in flags:
    assert flag in out


def test_version(capsys):
  with pytest.raises(SystemExit) as stop:
    main.main(['--version'])
  assert stop.value.code == 0
  assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(('argv', 'words'), [
    ([], ('VERB', '--help')),
    (['tran'], ("'tran'", 'train', 'eval', 'infer', 'export')),
    (['train', '--gin_fil=x'], ('--gin_fil', 'Nearest: --gin_file')),
    (['train', '--BATCH_SIZE=3'], ('--gin.BATCH_SIZE',)),
    (['train', '--gin.BATCH_SIZE', '3'], ('--gin.BATCH_SIZE', '--gin.NAME=VALUE')),
    (['train', 'extra'], ("'extra'",)),
    (['--gin_file=x', 'train'], ('--gin_file=x', 'verb comes first', 'prompt-tuning train')),
    (['--gin_file', 'x', 'train'], ('verb comes first',)),
    (['export', '--gin.MODEL_DIR=x'], ('--output',)),
    (['import', '--output=x.npy'], ('--input',)),
    (['import', '--gin.MODEL_DIR=x', '--input=x', '--output=y'], ('--gin.MODEL_DIR=x', '--base')),
    (['train'], ('--gin_file',)),
    (['eval'], ('MODEL_DIR',)),
])
def test_usage_errors(argv, words, capsys):
  assert main.main(argv) == 2
  err = capsys.readouterr().err
  for word in words:
    assert word in err
  assert 'Traceback' not in err
  assert len(err.strip().splitlines()) == 1
