"""Every mistake of a user ends in one message and exit code 2, without a traceback."""

import gzip
import io
import logging
import sys

import numpy as np
import pytest

from prompt_tuning.cli import main, model
from prompt_tuning.training import loop


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
    'evaluation period': ({'EVAL_PERIOD': 0}, ('EVAL_PERIOD',)),
    'evaluation steps': ({'EVAL_STEPS': -1}, ('EVAL_STEPS is -1', '1 or more')),
    'micro-batches': ({'NUM_MICROBATCHES': 0}, ('NUM_MICROBATCHES is 0', '1 or more')),
    'odd micro-batches': ({'NUM_MICROBATCHES': 3}, ('NUM_MICROBATCHES is 3', 'divide', '8')),
    'buckets': ({'MAX_BUCKETS': 0}, ('MAX_BUCKETS is 0', '1 or more')),
    'seed': ({'RANDOM_SEED': -1}, ('RANDOM_SEED is -1', '0 to')),
    'rate': ({'LEARNING_RATE': -0.1}, ('LEARNING_RATE is -0.1', 'schedule')),
    'clipping': ({'GRADIENT_CLIP_NORM': 'abc'}, ("GRADIENT_CLIP_NORM is 'abc'", 'above 0')),
    'optimizer': ({'OPTIMIZER': 'adamw'}, ("optimizer of TrainConfig is 'adamw'",)),
    'dropout': ({'DROPOUT_RATE': 2}, ('dropout_rate is 2', 'from 0 to below 1')),
    'negative dropout': ({'DROPOUT_RATE': -1}, ('dropout_rate is -1',)),
    'fraction of a length': ({'PROMPT_LENGTH': 1.5}, ('length of SoftPrompt is 1.5', 'int')),
    'first values': ({'PROMPT_INIT': 'uniform'}, ("init of SoftPrompt is 'uniform'", '@')),
    'fraction of a rank': ({'peft': 'peft/lora.gin', 'PROMPT_LENGTH': None, 'LORA_RANK': 1.5},
                           ('rank of LoRA is 1.5', 'int')),
    'regular expression': ({'peft': 'peft/lora.gin', 'PROMPT_LENGTH': None,
                            'LORA_TARGETS': '(query'}, ("'(query'", 'regular expression')),
    'submesh': ({'MODEL_PARALLEL_SUBMESH': 3}, ('model_parallel_submesh', '3', 'a list of int')),
    'length': ({'PROMPT_LENGTH': 0}, ('0', 'at least 1')),
    'placement': ({'PROMPT_PLACEMENT': 'middle'}, ("'middle'", 'prefix', 'suffix')),
    'remat': ({'REMAT_POLICY': 'some'}, ("'some'", 'minimal', 'full')),
    'dtype': ({'ACTIVATION_DTYPE': 'float16'}, ("'float16'", 'bfloat16')),
    'parameter dtype': ({'PARAM_DTYPE': 'int4'}, ("'int4'", 'bfloat16', 'int8')),
    'training in int8': ({'PARAM_DTYPE': 'int8', 'peft': 'peft/model_tuning.gin',
                          'PROMPT_LENGTH': None}, ('int8', "PARAM_DTYPE = 'float32'")),
    'partitions': ({'NUM_PARTITIONS': 3}, ('num_partitions=3', '8')),
    'normalizer': ({'LOSS_NORMALIZING_FACTOR': 'TOKENS'}, ("'TOKENS'", 'NUM_REAL_TARGET_TOKENS')),
    'metric of the best': ({'BEST_METRIC': 'bleu'}, ("'bleu'", 'accuracy')),
    'strategy': ({'DECODE_STRATEGY': 'best'}, ("'best'", 'greedy')),
    'feature lengths': ({'TASK_FEATURE_LENGTHS': "{'inputs': 9}"}, ('TASK_FEATURE_LENGTHS',)),
    'text for a length': ({'TASK_FEATURE_LENGTHS': "{'inputs': 'many', 'targets': 3}"},
                          ('TASK_FEATURE_LENGTHS', 'many', 'whole numbers')),
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


ROW = '{"text": "a", "label": "yes"}\n'


# The good row stands first, so that only reading all of a file finds the mistake.
FILES = [
    ('x.jsonl', '', ('x.jsonl', 'no rows')),
    ('x.jsonl', ROW + '{"text": \n', ('x.jsonl:2', 'JSON', 'column 9')),
    ('x.jsonl', ROW + '["a"]\n', ('x.jsonl:2', 'expected a JSON object', '["a"]')),
    ('x.jsonl', ROW + '{"text": "b", "label": "Yes"}\n',
     ('x.jsonl:2', "'Yes'", "'yes', 'no'", "Did you mean 'yes'")),
    ('x.jsonl', ROW + '{"text": "b", "label": true}\n', ('x.jsonl:2', "'true'", '{False: ')),
    ('x.jsonl', ROW + '{"label": "yes"}\n', ('x.jsonl:2', "'text'", "'label'")),
    ('x.jsonl', ROW + '{"text": null, "label": "yes"}\n', ('x.jsonl:2', "'text'", 'None')),
    ('x.jsonl', ROW + '{"text": ["a"], "label": "yes"}\n', ('x.jsonl:2', "'text'", "['a']")),
    ('x.jsonl', ROW + '{"text": 1e999, "label": "yes"}\n', ('x.jsonl:2', "'text'", 'inf')),
    ('x.jsonl', ROW + '{"text": NaN, "label": "yes"}\n', ('x.jsonl:2', 'NaN', 'a number')),
    ('x.jsonl', ROW + '{"text": "a", "text": "b"}\n', ('x.jsonl:2', "'text' more than once")),
    ('x.jsonl', ROW + '{"a": ' + '[' * 10**5, ('x.jsonl:2', '100 levels', 'flat objects')),
    ('x.jsonl', ROW.encode() + b'{"text": "\xe9"}', ('x.jsonl:2', '0xe9', 'position 10', 'UTF-8')),
    ('x.jsonl', ROW + '{"text": "a\0"}\n', ('x.jsonl:2', 'NUL', 'position 11')),
    ('x.jsonl', ROW * 2 + '{"text": "' + 'x' * 2**24, ('x.jsonl:3', 'more than 16,777,216')),
    ('x.json', f'[{ROW}, {{"text": 3}}]', ('x.json:2:3', "'label'", "'text'")),
    ('x.jsonl.gz', gzip.compress(ROW.encode() * 9, mtime=0)[:-9],
     ('x.jsonl.gz:', 'gzip file is broken')),
    ('x.jsonl.gz', ROW, ('x.jsonl.gz:1', 'gzip file is broken', 'Not a gzipped file')),
    ('x.tsv', 'text\tlabel\n', ('x.tsv', 'nothing after the line of column names')),
    ('x.tsv', 'text\tlabel\na\tyes\nb\n', ('x.tsv:3', 'found 1, expected 2', "'text', 'label'")),
    ('x.tsv', 'text\ttext\na\tb\n', ('x.tsv:1', 'each once', "'text'")),
    ('x.tsv', 'text\tlabel\ra\tyes\r', ('x.tsv:1', 'carriage return')),
    ('x.csv', 'text,label\na,yes\n"b,yes\n', ('x.csv:3', 'never closed')),
    ('x.csv', 'text;label\na;yes\n', ('x.csv:1', 'semicolon', 'commas')),
    ('x.xlsx', 'PK', ('x.xlsx', '.csv')),
]


# Named by their messages: contents are megabytes, and a gzip file holds the time it was made.
@pytest.mark.parametrize(('name', 'content', 'words'), FILES,
                         ids=[' '.join(words[:2]) for _, _, words in FILES])
@pytest.mark.parametrize('macro', ['TRAIN_FILE', 'EVAL_FILE'])
def test_files(name, content, words, macro, train_argv, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(model, 'load', lambda *unused: pytest.fail('the model was loaded first'))
  path = tmp_path / name
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  refused(train_argv(tmp_path / 'run', **{macro: path}), words, capsys)
  assert not (tmp_path / 'run').exists()


def test_a_broken_file_to_evaluate_on(train_argv, tmp_path, capsys):
  (tmp_path / 'x.tsv').write_text('text\tlabel\na\tyes\nb\tnever\n')
  argv = train_argv(None, run='runs/eval.gin', **{
      'TRAIN_FILE': None, 'EVAL_FILE': tmp_path / 'x.tsv', 'INITIAL_CHECKPOINT_PATH': None,
      'CHECKPOINT_PATH': 'random', 'TRAIN_STEPS_RELATIVE': None, 'EVAL_PERIOD': None,
      'WRITE_PERIOD': None, 'LEARNING_RATE': None})
  refused(['eval', *argv[1:]], ('x.tsv:3', "'never'", "'yes', 'no'"), capsys)


def test_labels_that_are_cut_or_nothing(train_argv, tmp_path, capsys):
  refused(train_argv(tmp_path / 'run', TASK_FEATURE_LENGTHS="{'inputs': 16, 'targets': 3}"),
          ("'yes'", '4 tokens', 'targets to 3', '4 or more'), capsys)
  refused(train_argv(tmp_path / 'run', CLASS_LABELS="{'yes': 'yes', 'no': ' '}"),
          ('CLASS_LABELS', 'not empty'), capsys)


def test_training_examples_to_evaluate_on_are_counted(train_argv, folder, tmp_path, caplog):
  """A warning; the run goes on (to the next mistake, here)."""
  lines = (folder / 'train.jsonl').read_text().splitlines()[:3]
  (tmp_path / 'x.jsonl').write_text('\n'.join([*lines, '{"text": "new", "label": "no"}']))
  argv = train_argv(tmp_path / 'run', EVAL_FILE=tmp_path / 'x.jsonl', BEST_METRIC='bleu')
  with caplog.at_level(logging.WARNING):
    assert main.main(argv) == 2
  assert 'local_text: 3 of 4 examples of validation have the input of an example of train, as has '\
      f'{folder / "train.jsonl"}:1: ' in caplog.text


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


def test_gin_file_on_top_of_no_run(tmp_path, capsys):
  refused(['eval', '--gin_file=tasks/sst2.gin', f'--gin.MODEL_DIR={tmp_path}'],
          (str(tmp_path), 'no config.gin'), capsys)


def test_a_refused_start_leaves_no_configuration(train_argv, tmp_path, capsys):
  refused(train_argv(tmp_path / 'run', BEST_METRIC='bleu'), ('bleu',), capsys)
  assert not (tmp_path / 'run' / 'config.gin').exists()


def test_run_without_checkpoint(train_argv, tmp_path, capsys, monkeypatch):
  """A run that stopped before it saved anything has a configuration and nothing to evaluate."""
  def interrupted(*unused, **options):
    raise KeyboardInterrupt
  monkeypatch.setattr(loop, 'train', interrupted)
  assert main.main(train_argv(tmp_path / 'run')) == 1
  capsys.readouterr()
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


@pytest.fixture
def infer_argv(train_argv):
  """Builds the gin flags of an inference on a random base."""
  def build(**overrides):
    nothing = dict.fromkeys(('TRAIN_STEPS_RELATIVE', 'EVAL_PERIOD', 'LEARNING_RATE', 'WRITE_PERIOD',
                             'INITIAL_CHECKPOINT_PATH', 'TRAIN_FILE', 'EVAL_FILE'))
    return train_argv(None, run='runs/infer.gin', **{
        'CHECKPOINT_PATH': 'random', 'peft': None, 'PROMPT_LENGTH': None, **nothing,
        **overrides})[1:]
  return build


@pytest.mark.parametrize(('content', 'words'), [
    (None, ('in.txt',)),
    ('', ('empty',)),
    ('{"text": \n', ('in.txt:1', 'JSON')),
    ('fine\n{"words": "fine"}\n', ('in.txt:2', "'text'")),
    ('{"inputs": "\\ud800"}\n', ('in.txt:1', 'ud800', 'half of a surrogate pair')),
    ('fine\n{"text": NaN}\n', ('in.txt:2', 'NaN', 'number')),
    ('{"text": ' + '[' * 10**5 + '\n', ('in.txt:1', '100 levels')),
    (b'fine\nso fine\xff\n', ('in.txt:2', 'UTF-8', 'position 7')),
    (b'fine\n\0\n', ('in.txt:2', 'NUL')),
])
def test_infer_input(content, words, infer_argv, tmp_path, capsys):
  if content is not None:
    (tmp_path / 'in.txt').write_bytes(content if isinstance(content, bytes) else content.encode())
  (tmp_path / 'out.jsonl').write_text('of yesterday')
  refused(['infer', *infer_argv(), f'--input={tmp_path / "in.txt"}',
           f'--output={tmp_path / "out.jsonl"}'], words, capsys)
  assert (tmp_path / 'out.jsonl').read_text() == 'of yesterday'
  assert len(list(tmp_path.iterdir())) == 1 + (content is not None)


@pytest.mark.parametrize(('peft', 'length'), [('peft/prompt.gin', 3), ('peft/lora.gin', None)])
def test_infer_with_untrained_leaves(peft, length, infer_argv, tmp_path, capsys):
  (tmp_path / 'in.txt').write_text('fine\n')
  argv = infer_argv(peft=peft, PROMPT_LENGTH=length)
  refused(['infer', *argv, f'--input={tmp_path / "in.txt"}'],
          ('PROMPT_FILE', 'MODEL_DIR', 'untrained'), capsys)


def test_infer_stdin_is_not_utf8(infer_argv, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(b'fine\xff\n'), 'ascii'))
  refused(['infer', *infer_argv()], ('--input=-', 'UTF-8'), capsys)


def test_infer_plain_line_for_two_fields(infer_argv, tmp_path, capsys):
  (tmp_path / 'in.txt').write_text('fine\n')
  argv = infer_argv(INPUT_TEMPLATE='{text} or {other}')
  refused(['infer', *argv, f'--input={tmp_path / "in.txt"}'],
          ('in.txt:1', 'other, text', 'JSON'), capsys)


def test_infer_output_folder(infer_argv, tmp_path, capsys):
  (tmp_path / 'in.txt').write_text('fine\n')
  refused(['infer', *infer_argv(), f'--input={tmp_path / "in.txt"}',
           f'--output={tmp_path / "no" / "out.jsonl"}'], ('--output', 'no/out.jsonl'), capsys)


def test_ranking_without_labels(infer_argv, tmp_path, capsys):
  (tmp_path / 'in.txt').write_text('fine\n')
  argv = infer_argv(CLASS_LABELS=None, RANK_LABELS=True)
  refused(['infer', *argv, f'--input={tmp_path / "in.txt"}'], ('RANK_LABELS', 'no labels'), capsys)

