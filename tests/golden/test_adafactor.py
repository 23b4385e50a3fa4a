"""Adafactor against T5X's own, three steps on given arrays in every stored configuration."""

import json

import jax
import numpy as np
import optax
import pytest

from prompt_tuning import params as params_lib
from prompt_tuning.training import optimizer as optimizer_lib

CONFIGS = ('anchor_prompt', 'anchor_ia3', 't5x_default_1e3', 'momentum', 'global_norm')
NAMES = {'lr': 'learning_rate'}
# T5X's defaults where the recipe's, which are this function's, differ.
DEFAULTS = {'multiply_by_parameter_scale': True, 'weight_decay_rate': None}


def _relative(actual, expected):
  """Largest difference over the largest entry (entries near zero are differences themselves)."""
  return np.max(np.abs(actual - expected)) / np.max(np.abs(expected))


@pytest.fixture(scope='module')
def reference(golden_dir):
  folder = golden_dir / 'adafactor'
  return (json.loads((folder / 'adafactor_pure.json').read_text()),
          dict(np.load(folder / 'adafactor_pure.npz')))


@pytest.mark.parametrize('name', CONFIGS)
def test_three_steps(reference, name):
  configs, arrays = reference
  settings = dict(configs[name])
  shapes = settings.pop('state_shapes')
  optimizer = optimizer_lib.adafactor(
      **{**DEFAULTS, **{NAMES.get(key, key): value for key, value in settings.items()}})
  # Every array takes part where all five do: the global norm runs over all of them.
  leaves = {array: arrays[f'{array}/param0'] for array in shapes}
  state = optimizer.init(leaves)
  update = jax.jit(optimizer.update)
  compared = 0
  for step in range(3):
    grads = {array: arrays[f'{array}/grad{step}'] for array in shapes}
    updates, state = update(grads, state, leaves)
    leaves = optax.apply_updates(leaves, updates)
    for array, value in leaves.items():
      expected = arrays.get(f'{name}/{array}/param{step + 1}')
      if expected is not None:
        assert _relative(value, expected) < 1e-6, (array, step)
        compared += 1
  assert compared >= 4
  assert _compare_statistics(state, arrays, name) >= 2


def _compare_statistics(state, arrays, name):
  """Compares v, v_row and v_col; returns how many arrays were compared."""
  parts = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, optax.FactoredState))
  factored, = (part for part in parts if isinstance(part, optax.FactoredState))
  compared = 0
  for kind in ('v', 'v_row', 'v_col'):
    for array, value in params_lib.flatten(getattr(factored, kind)).items():
      expected = arrays.get(f'{name}/{array}/{kind}_final')
      if expected is None or expected.shape == (1,):
        continue
      # Rows and columns are named after other axes where a matrix is wider than high.
      if kind != 'v' and value.shape != expected.shape:
        expected = arrays[f'{name}/{array}/{"v_col" if kind == "v_row" else "v_row"}_final']
      assert _relative(value, expected) < 1e-6, (array, kind)
      compared += 1
  return compared
