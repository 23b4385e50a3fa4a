"""`prompt-tuning data check`: what it prints, draws, and how it ends."""

import json
import sys

import pytest

from prompt_tuning.cli import main

TEMPLATE = '--gin.INPUT_TEMPLATE=review: {text}'
LABELS = "--gin.CLASS_LABELS=['bad', 'good']"


@pytest.fixture
def reviews(tmp_path):
  """The flags of a task of files, and a function that writes them."""
  def write(train, dev=({'text': 'new', 'label': 'good'}, {'text': 'newer', 'label': 'bad'})):
    for name, rows in (('train', train), ('dev', dev)):
      (tmp_path / f'{name}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return ['data', 'check', '--gin_file=tasks/local_text.gin', TEMPLATE, LABELS,
            f'--gin.TRAIN_FILE={tmp_path}/train.jsonl', f'--gin.EVAL_FILE={tmp_path}/dev.jsonl']
  return write


GOOD = [{'text': f'word {i}', 'label': ('bad', 'good')[i % 2]} for i in range(10)]


def words(text):
  return ' '.join(text.split())


def test_tables_examples_and_the_end(reviews, capsys):
  assert main.main(reviews([*GOOD, {'text': 'new', 'label': 'good'}])) == 0
  out = words(capsys.readouterr().out)
  assert 'lengths in words: no vocabulary is given' in out
  assert 'train 11 11 0' in out and 'validation 2 2 0 1 of train' in out
  assert 'train.jsonl:1' in out
  assert 'train inputs 2.9 3.0 3.0 3' in out
  assert "'good' 6 (54.5 %) 1 (50.0 %)" in out
  assert "inputs: 'review: word" in out and "targets: 'good'" in out
  assert 'warning duplicates: 1 of 2 examples of validation' in out
  assert out.endswith('0 problems, 1 warning.')


def test_tokens_limits_and_a_picture(reviews, capsys, tmp_path):
  argv = [*reviews(GOOD), '--vocabulary=bytes', f'--plot={tmp_path}/lengths.png',
          "--gin.TASK_FEATURE_LENGTHS={'inputs': 15, 'targets': 5}", '--split=train']
  assert main.main(argv) == 0
  out = words(capsys.readouterr().out)
  assert 'lengths in tokens' in out and 'validation' not in out
  assert 'train inputs 15.0 15.0 15.0 15 15 0.0 %' in out
  assert 'train targets 4.5 4.5 5.0 5 5 0.0 %' in out
  assert (tmp_path / 'lengths.png').read_bytes().startswith(b'\x89PNG')


def test_problems_end_with_1(reviews, capsys):
  rows = [*GOOD, {'text': 'x', 'label': 'god'}]
  assert main.main(reviews(GOOD, dev=rows)) == 1
  out = words(capsys.readouterr().out)
  assert 'problem refused:' in out and 'dev.jsonl:11' in out and "'good'" in out
  assert 'train 10 10' in out  # the split that can be read is shown
  assert main.main([*reviews(GOOD), '--vocabulary=bytes',
                    "--gin.TASK_FEATURE_LENGTHS={'inputs': 15, 'targets': 4}"]) == 1
  assert "problem refused: Label 'good'" in words(capsys.readouterr().out)


def test_what_all_splits_say_is_said_once(capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  assert main.main(['data', 'check', '--task=glue_sst2_v200']) == 1
  out = words(capsys.readouterr().out)
  assert out.count('problem refused: glue/sst2:2.0.0') == 1 and out.endswith(
      '1 problem, 0 warnings.')


def test_a_task_by_name(capsys):
  assert main.main(['data', 'check', '--task=demo_sentiment', '--split=validation']) == 0
  out = words(capsys.readouterr().out)
  assert 'Task demo_sentiment' in out and 'validation inputs' in out
  assert main.main(['data', 'check', '--task=demo_sentiment', '--gin_file=models/demo.gin',
                    '--split=validation']) == 0
  assert 'lengths in tokens' in capsys.readouterr().out


def test_targets_may_be_what_labels_of_another_task_mean(capsys, tmp_path):
  rows = ['Quality\t#1 ID\t#2 ID\t#1 String\t#2 String', '1\t1\t2\ta\tb', '0\t3\t4\tc\td']
  (tmp_path / 'dev.tsv').write_text('\n'.join(rows))
  assert main.main(
      ['data', 'check', '--task=glue_mrpc_from_qqp_v002', f'--gin.DATA_DIR={tmp_path}']) == 0
  assert "'equivalent' 1 (50.0 %)" in words(capsys.readouterr().out)


def test_the_tasks_of_a_mixture(capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  assert main.main(['data', 'check', '--gin_file=tasks/mixture.gin', '--split=validation',
                    "--gin.MIXTURE_TASKS=['demo_sentiment', 'xsum_v110']",
                    "--gin.TASK_FEATURE_LENGTHS={'inputs': 9, 'targets': 9}"]) == 1
  out = words(capsys.readouterr().out)
  assert 'Task demo_sentiment' in out and 'Task xsum_v110' in out
  assert 'problem refused: xsum_v110: xsum:1.1.0 is read through' in out
  assert 'note class balance: demo_sentiment: validation:' in out


@pytest.mark.parametrize(('argv', 'code', 'expected'), [
    (['data'], 2, 'check'),
    (['data', 'chekc'], 2, "'chekc'"),
    (['data', 'check'], 2, 'No task is configured'),
    (['data', 'check', '--task=demo_sentimend'], 2, 'demo_sentiment'),
    (['data', 'check', '--task=demo_sentiment', '--vocabulary=no'], 2, 'no'),
    (['data', 'check', '--task=demo_sentiment', '--dry_run'], 0, 'would be read'),
])
def test_command_lines(argv, code, expected, capsys):
  assert main.main(argv) == code
  captured = capsys.readouterr()
  assert expected in captured.err + captured.out
  assert 'Traceback' not in captured.err
