"""Recipes build, say what they say, and every number has its reason in docs/recipes.md."""

import re

import jax.numpy as jnp
import pytest

from prompt_tuning.cli import config, train
from prompt_tuning.diagnosis import step_checks

RECIPES = sorted(path.name for path in (config.gin_root() / 'recipes').glob('*.gin'))
DOCS = config.gin_root().parent / 'docs' / 'recipes.md'


def build(recipe, tmp_path, model='models/t5_1_1_base.gin'):
  file = tmp_path / 'train.jsonl'
  file.write_text('{"text": "good", "label": "yes"}\n' * 4)
  config.parse([model, 'peft/prompt.gin', 'tasks/local_text.gin', f'recipes/{recipe}'],
               [('INITIAL_CHECKPOINT_PATH', 'random'), ('MODEL_DIR', 'out'),
                ('TRAIN_FILE', str(file))])
  return config.build(train.TrainConfig)


def test_there_are_recipes():
  assert {'reference.gin', 'few_shot.gin', 'fast.gin', 'adamw.gin', 'xxl.gin'} == set(RECIPES)


@pytest.mark.parametrize(('recipe', 'length', 'batch', 'steps', 'period'), [
    ('reference.gin', 100, 32, 30_000, 1000), ('few_shot.gin', 20, 8, 1000, 20),
    ('fast.gin', 20, 32, 1000, 100), ('adamw.gin', 100, 32, 30_000, 1000),
    ('xxl.gin', 20, 32, 30_000, 1000)])
def test_numbers(recipe, length, batch, steps, period, tmp_path):
  run = build(recipe, tmp_path)
  assert run.model.methods[0].length == length
  assert (run.batch_size, run.train_steps_relative, run.eval_period) == (batch, steps, period)


@pytest.mark.parametrize('recipe', RECIPES)
def test_the_rate_reaches_the_optimizer(recipe, tmp_path):
  run = build(recipe, tmp_path)
  steps = step_checks.sampled_steps(0, run.train_steps_relative)
  sizes = step_checks.step_sizes(run.optimizer, {'prompt': jnp.ones((4, 4))}, steps)
  assert step_checks.check_rate(sizes) == []


def test_the_fast_rate_rises_and_falls(tmp_path):
  run = build('fast.gin', tmp_path)
  sizes = step_checks.step_sizes(
      run.optimizer, {'prompt': jnp.ones((4, 4))}, (0, 25, 50, 500, 999))
  assert [size.size for size in sizes.values()] == pytest.approx(
      [0.0, 0.14625, 0.285, 0.15, 0.0003], rel=1e-3)
  assert run.initial_step == 0  # so that it is the same on a base of T5X


def test_xxl_fits(tmp_path):
  run = build('xxl.gin', tmp_path, 'models/t5_1_1_lm100k_xxl.gin')
  shape = run.model.architecture
  assert (shape.dtype, run.model.param_dtype) == ('bfloat16', 'bfloat16')
  assert shape.scan_layers and shape.remat_policy == 'full'


@pytest.mark.parametrize('recipe', RECIPES)
def test_every_number_has_a_reason(recipe):
  text = (config.gin_root() / 'recipes' / recipe).read_text()
  numbers = re.findall(r'^(?:\w+\.)*(\w+) = ([^@%\n]+)$', text, flags=re.MULTILINE)
  section = DOCS.read_text().split(f'## recipes/{recipe}')[1].split('\n## ')[0]
  assert numbers
  for name, value in numbers:
    assert re.search(rf'^\| `{name}` \| {re.escape(value)} \| \S', section, flags=re.MULTILINE), (
        f'{name} = {value}')
