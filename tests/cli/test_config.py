"""gin files parse, compose and name what is wrong."""

import dataclasses
import subprocess
import sys

import pytest

from prompt_tuning.cli import config
from prompt_tuning.errors import UserError

GIN_FILES = sorted(path.relative_to(config.gin_root()).as_posix()
                   for path in config.gin_root().rglob('*.gin'))
TRAIN = ['models/t5_1_1_small.gin', 'peft/prompt.gin', 'tasks/local_text.gin', 'runs/train.gin']
REQUIRED = [('INITIAL_CHECKPOINT_PATH', 'random'), ('MODEL_DIR', 'out')]


def parse_alone(file):
  """Parses one file without asking that its macros have values."""
  config.gin.clear_config()
  config._set_search_paths([])
  config.parse_file(file)
  return config.gin_config._CONFIG


@pytest.fixture
def required(tmp_path):
  """Values for the names that TRAIN leaves open."""
  file = tmp_path / 'train.jsonl'
  file.write_text('{"text": "good", "label": "yes"}\n' * 4)
  return [*REQUIRED, ('TRAIN_FILE', str(file))]


def test_gin_files_are_found():
  assert len(GIN_FILES) >= 40
  assert {name.split('/')[0] for name in GIN_FILES} == {
      'models', 'peft', 'tasks', 'runs', 'recipes'}


@pytest.mark.parametrize('file', GIN_FILES)
def test_every_gin_file_parses(file):
  assert parse_alone(file)


@pytest.mark.parametrize('file', GIN_FILES)
def test_only_dynamic_registration(file):
  text = (config.gin_root() / file).read_text()
  imports = [line for line in text.splitlines() if line.startswith(('import ', 'from '))]
  if imports:
    assert imports[0] == 'from __gin__ import dynamic_registration'


def test_prompt_length_is_bound_once():
  bound = [name for name in GIN_FILES
           if 'length = %PROMPT_LENGTH' in (config.gin_root() / name).read_text()]
  assert bound == ['peft/prefix.gin', 'peft/prompt.gin']


# (family, size) -> emb_dim, num_heads, head_dim, mlp_dim, encoder layers, decoder layers: the
# published configurations of the checkpoints.
_T5_1_1 = {
    'small': (512, 6, 64, 1024, 8, 8), 'base': (768, 12, 64, 2048, 12, 12),
    'large': (1024, 16, 64, 2816, 24, 24), 'xl': (2048, 32, 64, 5120, 24, 24),
    'xxl': (4096, 64, 64, 10240, 24, 24)}
SHAPES = {
    't5_1_1': _T5_1_1, 't5_1_1_lm100k': _T5_1_1, 'mt5': _T5_1_1,
    't5': {'small': (512, 8, 64, 2048, 6, 6), 'base': (768, 12, 64, 3072, 12, 12),
           'large': (1024, 16, 64, 4096, 24, 24), 'xl': (1024, 32, 128, 16384, 24, 24),
           'xxl': (1024, 128, 128, 65536, 24, 24)},
    'byt5': {'small': (1472, 6, 64, 3584, 12, 4), 'base': (1536, 12, 64, 3968, 18, 6),
             'large': (1536, 16, 64, 3840, 36, 12), 'xl': (2560, 32, 64, 6720, 36, 12),
             'xxl': (4672, 64, 64, 12352, 36, 12)},
}
VOCAB = {'t5': 32128, 't5_1_1': 32128, 't5_1_1_lm100k': 32128, 'mt5': 250112, 'byt5': 384}


@pytest.mark.parametrize(
    ('family', 'size'), [(family, size) for family, sizes in SHAPES.items() for size in sizes])
def test_published_shapes(family, size):
  from prompt_tuning.models import t5
  config.gin.clear_config()
  config._set_search_paths([])
  config.parse_file(f'models/{family}_{size}.gin')
  shape = config.build(t5.T5Config)
  assert SHAPES[family][size] == (
      shape.emb_dim, shape.num_heads, shape.head_dim, shape.mlp_dim, shape.num_encoder_layers,
      shape.num_decoder_layers)
  assert shape.vocab_size == VOCAB[family]
  assert shape.logits_via_embedding == (family == 't5')
  assert shape.mlp_activations == (('relu',) if family == 't5' else ('gelu', 'linear'))


def test_reference_recipe(required):
  from prompt_tuning.cli import train
  config.parse(TRAIN, required)
  run = config.build(train.TrainConfig)
  assert (run.batch_size, run.train_steps_relative, run.eval_period) == (32, 30000, 1000)
  assert (run.loss.z_loss, run.loss.label_smoothing) == (1e-4, 0.0)
  assert run.loss.loss_normalizing_factor is None
  assert run.model.methods[0].length == 100
  assert run.model.methods[0].init.fallback.top == 5000
  assert run.model.architecture.dropout_rate == 0.1
  for name, value in {'learning_rate': 0.3, 'decay_rate': 0.8, 'clipping_threshold': 1.0,
                      'multiply_by_parameter_scale': False, 'weight_decay_rate': 1e-5}.items():
    assert f'optimizer.adafactor.{name} = ' in config.operative_text()
    assert dict(config.gin.get_bindings('adafactor'))[name] == value


@pytest.mark.parametrize(('value', 'expected'), [
    ('/tmp/some folder/x', '/tmp/some folder/x'), ("'quoted'", 'quoted'), ('"quoted"', 'quoted'),
    ('3', 3), ('1e-3', 1e-3), ('None', None), ("['a', 'b']", ['a', 'b']), ('demo', 'demo'),
    ('review: {text}', 'review: {text}'), ('{text}', '{text}'), ('1 2', '1 2'),
    ("{'a': 'b'}", {'a': 'b'}), ('%RANDOM_SEED', 0), ("it's", "it's"), ('a\\nb', 'a\\nb'),
    ('', '')])
def test_override_values(value, expected):
  config.parse(TRAIN, [*REQUIRED, ('INPUT_TEMPLATE', value)])
  assert config.gin.query_parameter('local_text.make.input_template').scoped_configurable_fn(
      ) == expected


def test_override_of_a_parameter_and_of_a_reference(required):
  from prompt_tuning.cli import train
  config.parse(TRAIN, [*required, ('train.TrainConfig.batch_size', '5'),
                       ('PROMPT_INIT', '@prompt_init.Uniform()')])
  run = config.build(train.TrainConfig)
  assert run.batch_size == 5
  assert type(run.model.methods[0].init).__name__ == 'Uniform'


@pytest.mark.parametrize('name', ['adafactor', 'adamw', 'sgd'])
def test_every_optimizer_has_the_rate_and_the_clipping(required, name):
  from prompt_tuning.cli import train
  config.parse(TRAIN, [*required, ('OPTIMIZER', f'@optimizer.{name}()'), ('LEARNING_RATE', '0.25'),
                       ('GRADIENT_CLIP_NORM', '1.5')])
  config.build(train.TrainConfig)
  text = config.operative_text()
  assert f'optimizer.{name}.learning_rate = %LEARNING_RATE' in text
  assert f'optimizer.{name}.global_norm_clip_threshold = %GRADIENT_CLIP_NORM' in text


def test_schedule_as_the_rate(required):
  import jax.numpy as jnp

  from prompt_tuning.cli import train
  config.parse(TRAIN, [
      *required, ('OPTIMIZER', '@optimizer.sgd()'), ('LEARNING_RATE', '@schedules.linear_warmup()'),
      ('schedules.linear_warmup.schedule', '0.5'), ('schedules.linear_warmup.warmup_steps', '2')])
  optimizer = config.build(train.TrainConfig).optimizer
  gradient, updates = {'x': jnp.ones(())}, []
  state = optimizer.init(gradient)
  for _ in range(4):
    update, state = optimizer.update(gradient, state, gradient)
    updates.append(float(update['x']))
  assert updates == [0, -0.25, -0.5, -0.5]


@pytest.mark.parametrize(('task', 'given', 'expected'), [
    ('tasks/sst2.gin', None, ('negative', 'positive')),
    ('tasks/sst2.gin', "['bad', 'good']", ('bad', 'good')),
    ('tasks/local_text.gin', "['bad', 'yes']", ('bad', 'yes')),
    ('tasks/local_text.gin', "{'no': 'bad', 'yes': 'good'}", ('bad', 'good')),
])
def test_class_labels(required, task, given, expected):
  from prompt_tuning.cli import model, train
  files = ['models/t5_1_1_small.gin', 'peft/prompt.gin', task, 'runs/train.gin']
  overrides = required if 'local' in task else REQUIRED
  config.parse(files, [*overrides, *([] if given is None else [('CLASS_LABELS', given)])])
  run = config.build(train.TrainConfig)
  assert model.module(run.model, run.data.task.labels).methods[0].init.labels == expected


def test_saved_text_configures_the_same_run(required, tmp_path):
  from prompt_tuning.cli import train
  config.parse(TRAIN, [*required, ('PROMPT_LENGTH', '7')])
  first = dataclasses.replace(config.build(train.TrainConfig), optimizer=None)
  (tmp_path / 'config.gin').write_text(config.text())
  config.parse([str(tmp_path / 'config.gin')])
  again = dataclasses.replace(config.build(train.TrainConfig), optimizer=None)
  assert again.model == first.model and again.model.methods[0].length == 7
  assert again.data == first.data
  assert again.loss == first.loss


@pytest.mark.parametrize(('files', 'overrides', 'words'), [
    (TRAIN, [('BATCHSIZE', '3')], ('BATCHSIZE', 'Nearest: BATCH_SIZE')),
    (TRAIN, [], ('No value for INITIAL_CHECKPOINT_PATH, MODEL_DIR', '--gin.MODEL_DIR=')),
    (['models/t5_1_1_smal.gin'], [], ('No gin file models/t5_1_1_smal.gin', 't5_1_1_small.gin')),
    (TRAIN, [*REQUIRED, ('train.TrainConfig.batchsize', '3')], ('batchsize',)),
    (TRAIN, [*REQUIRED, ('PROMPT_INIT', '@prompt_init.Nothing()')], ('Nothing',)),
])
def test_errors_name_the_mistake(files, overrides, words):
  with pytest.raises(UserError) as error:
    config.parse(files, overrides)
  for word in words:
    assert word in str(error.value)
  assert '\n' not in str(error.value)


def test_broken_gin_file(tmp_path):
  broken = tmp_path / 'broken.gin'
  broken.write_text('BATCH_SIZE = = 3\n')
  with pytest.raises(UserError, match='broken.gin'):
    config.parse([str(broken)])


def test_search_paths(tmp_path):
  (tmp_path / 'mine.gin').write_text("include 'models/t5_1_1_small.gin'\nDROPOUT_RATE = 0.25\n")
  config.parse(['mine.gin'], search_paths=[str(tmp_path)])
  assert config.macro('DROPOUT_RATE') == 0.25
  with pytest.raises(UserError, match='no folder'):
    config.parse(['mine.gin'], search_paths=[str(tmp_path / 'absent')])


def test_help_imports_nothing_heavy():
  code = ("import sys; from prompt_tuning.cli import main\n"
          "try: main.main(['train', '--help'])\n"
          "except SystemExit: pass\n"
          "sys.exit(any(name in sys.modules for name in ('jax', 'flax', 'gin', 'tensorflow')))")
  assert subprocess.run([sys.executable, '-c', code], capture_output=True).returncode == 0
