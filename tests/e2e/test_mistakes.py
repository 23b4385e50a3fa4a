"""Every mistake of a user ends in one message and exit code 2, without a traceback."""

import numpy as np
import pytest

from prompt_tuning.cli import main


def refused(argv, words, capsys):
  assert main.main(argv) == 2
  err = capsys.readouterr().err
  message = err[err.index('prompt-tuning: '):]
  assert 'Traceback' not in err
  assert len(message.strip().splitlines()) == 1, message
  for word in words:
    assert word in message, message


# What is wrong -> (the command's differences from a good one, words of the message).
SETTINGS = {
    'gin file': ({'peft': 'peft/promt.gin'}, ('peft/promt.gin', 'Nearest: peft/prompt.gin')),
    'macro': ({'BATCHSIZE': 8}, ('BATCHSIZE', 'BATCH_SIZE')),
    'no method': ({'peft': None, 'PROMPT_LENGTH': None}, ('No method', 'peft/prompt.gin')),
    'no task': ({'task': None, 'TRAIN_FILE': None, 'EVAL_FILE': None, 'INPUT_TEMPLATE': None,
                 'CLASS_LABELS': None}, ('No task', 'tasks/local_text.gin')),
    'no value': ({'INITIAL_CHECKPOINT_PATH': None}, ('INITIAL_CHECKPOINT_PATH', '--gin.')),
    'no shape': ({'model': None, 'VOCABULARY': None}, ("'random'", 'models/')),
    'text for a number': ({'BATCH_SIZE': 'many'}, ('BATCH_SIZE=many', 'int')),
    'text for an open number': ({'PATIENCE': 'long'}, ('patience', "'long'")),
    'fraction for a number': ({'BATCH_SIZE': 1.5}, ('batch_size', '1.5')),
    'batch of nothing': ({'BATCH_SIZE': 0}, ('BATCH_SIZE',)),
    'batch over devices': ({'BATCH_SIZE': 6}, ('6 rows', '8')),
    'steps': ({'TRAIN_STEPS_RELATIVE': 0}, ('TRAIN_STEPS_RELATIVE', '1 or more')),
    'evaluation period': ({'EVAL_PERIOD': 0}, ('eval_period',)),
    'length': ({'PROMPT_LENGTH': 0}, ('0', 'at least 1')),
    'placement': ({'PROMPT_PLACEMENT': 'middle'}, ("'middle'", 'prefix', 'suffix')),
    'remat': ({'REMAT_POLICY': 'some'}, ("'some'", 'minimal', 'full')),
    'dtype': ({'ACTIVATION_DTYPE': 'float16'}, ("'float16'", 'bfloat16')),
    'parameter dtype': ({'PARAM_DTYPE': 'int8'}, ("'int8'", 'bfloat16')),
    'partitions': ({'NUM_PARTITIONS': 3}, ('num_partitions=3', '8')),
    'normalizer': ({'LOSS_NORMALIZING_FACTOR': 'TOKENS'}, ("'TOKENS'", 'NUM_REAL_TARGET_TOKENS')),
    'metric of the best': ({'BEST_METRIC': 'bleu'}, ("'bleu'", 'accuracy')),
    'strategy': ({'DECODE_STRATEGY': 'best'}, ("'best'", 'greedy')),
    'feature lengths': ({'TASK_FEATURE_LENGTHS': "{'inputs': 9}"}, ('TASK_FEATURE_LENGTHS',)),
    'checkpoint': ({'INITIAL_CHECKPOINT_PATH': '/nowhere'}, ('/nowhere', 'does not exist')),
    'vocabulary': ({'VOCABULARY': '/nowhere.model'}, ('/nowhere.model',)),
    'prompt file': ({'PROMPT_FILE': '/nowhere.npy'}, ('/nowhere.npy',)),
    'train file': ({'TRAIN_FILE': '/nowhere.jsonl'}, ('/nowhere.jsonl',)),
    'no train file': ({'TRAIN_FILE': None}, ('TRAIN_FILE',)),
    'template field': ({'INPUT_TEMPLATE': 'say: {words}'}, ("'words'", "'text'", "'label'")),
    'template': ({'INPUT_TEMPLATE': 'say: {text'}, ('INPUT_TEMPLATE', 'brace')),
    'target field': ({'TARGET_FIELD': 'class'}, ("'class'", "'label'")),
    'label': ({'CLASS_LABELS': "['yes', 'never']"}, ("'no'", "'never'")),
    'labels': ({'CLASS_LABELS': 'yes'}, ("'yes'", 'list')),
    'metrics': ({'METRICS': "['blue']"}, ("'blue'", 'accuracy')),
    'task name': ({'task': 'tasks/sst2.gin', 'MIXTURE_OR_TASK_NAME': 'glue_sst3_v200',
                   'TRAIN_FILE': None, 'EVAL_FILE': None, 'INPUT_TEMPLATE': None,
                   'CLASS_LABELS': None}, ('glue_sst3_v200', 'glue_sst2_v200')),
    'task module': ({'task': 'tasks/sst2.gin', 'MIXTURE_OR_TASK_MODULE': 'my.tasks',
                     'TRAIN_FILE': None, 'EVAL_FILE': None, 'INPUT_TEMPLATE': None,
                     'CLASS_LABELS': None}, ('my.tasks', 'MIXTURE_OR_TASK_MODULE')),
    'data folder': ({'task': 'tasks/sst2.gin', 'DATA_DIR': '/nowhere', 'TRAIN_FILE': None,
                     'EVAL_FILE': None, 'INPUT_TEMPLATE': None, 'CLASS_LABELS': None},
                    ('/nowhere', 'DATA_DIR')),
}


@pytest.mark.parametrize('name', SETTINGS)
def test_settings(name, train_argv, tmp_path, capsys):
  changes, words = SETTINGS[name]
  refused(train_argv(tmp_path / 'run', **changes), words, capsys)


@pytest.mark.parametrize(('content', 'words'), [
    ('', ('train.jsonl', 'no rows')),
    ('{"text": "a", "label": "yes"}\n{"text": \n', ('train.jsonl:2', 'JSON')),
    ('["a"]\n', ('train.jsonl:1', 'object')),
    ('{"text": "a", "label": "yes"}\n{"text": "b", "label": "maybe"}\n', ("'maybe'", "'yes'")),
    ('{"text": "a", "label": "yes"}\n{"label": "yes"}\n', ("'text'",)),
    ('{"text": null, "label": "yes"}\n', ("'text'", 'None')),
])
def test_files(content, words, train_argv, tmp_path, capsys):
  (tmp_path / 'train.jsonl').write_text(content)
  argv = train_argv(tmp_path / 'run', TRAIN_FILE=tmp_path / 'train.jsonl')
  refused(argv, words, capsys)


def test_model_dir_is_a_file(train_argv, tmp_path, capsys):
  (tmp_path / 'run').write_text('')
  refused(train_argv(tmp_path / 'run'), ('MODEL_DIR', str(tmp_path / 'run')), capsys)


def test_prompt_of_another_length_or_width(train_argv, tmp_path, capsys):
  np.save(tmp_path / 'long.npy', np.zeros((5, 32), np.float32))
  np.save(tmp_path / 'wide.npy', np.zeros((3, 64), np.float32))
  argv = train_argv(tmp_path / 'run', PROMPT_FILE=tmp_path / 'long.npy')
  refused(argv, ('length 5', 'PROMPT_LENGTH is 3'), capsys)
  argv = train_argv(tmp_path / 'run', PROMPT_FILE=tmp_path / 'wide.npy')
  refused(argv, ('64', '32'), capsys)


@pytest.mark.parametrize('verb', ['eval', 'infer', 'export'])
def test_model_dir_without_a_run(verb, tmp_path, capsys):
  more = [f'--output={tmp_path / "x.npy"}', '--to=npy'] if verb == 'export' else []
  refused([verb, f'--gin.MODEL_DIR={tmp_path}', *more], (str(tmp_path), 'config.gin'), capsys)
  refused([verb, *more], ('MODEL_DIR', '--help'), capsys)


def test_run_without_checkpoint(train_argv, tmp_path, capsys):
  """A run that stopped before it saved anything has a configuration and nothing to evaluate."""
  refused(train_argv(tmp_path / 'run', BEST_METRIC='bleu'), ('bleu',), capsys)
  refused(['eval', f'--gin.MODEL_DIR={tmp_path / "run"}'], ('no checkpoint',), capsys)
  refused(['export', f'--gin.MODEL_DIR={tmp_path / "run"}', f'--output={tmp_path / "x.npy"}',
           '--to=npy'], ('prompt.safetensors',), capsys)


@pytest.mark.parametrize(('flags', 'words'), [
    (['--to=pickle', '--output=x.pkl'], ('pickle', 'npy', 'safetensors')),
    (['--to=npy', '--output=x.bin'], ('x.bin', '.npy')),
])
def test_export_formats(flags, words, tmp_path, capsys):
  (tmp_path / 'config.gin').write_text('')
  refused(['export', f'--gin.MODEL_DIR={tmp_path}', *flags], words, capsys)


@pytest.mark.parametrize(('content', 'words'), [
    (None, ('in.txt',)),
    ('', ('empty',)),
    ('{"text": \n', ('in.txt:1', 'JSON')),
    ('say: fine\n{"words": "fine"}\n', ('in.txt:2', "'text'")),
])
def test_infer_input(content, words, train_argv, tmp_path, capsys):
  argv = [flag for flag in train_argv(None, run='runs/infer.gin', CHECKPOINT_PATH='random')[1:]
          if not flag.startswith(('--gin.TRAIN_STEPS', '--gin.EVAL_PERIOD', '--gin.LEARNING',
                                  '--gin.WRITE', '--gin.INITIAL'))]
  if content is not None:
    (tmp_path / 'in.txt').write_text(content)
  refused(['infer', *argv, f'--input={tmp_path / "in.txt"}'], words, capsys)

