"""Losses, gradients and seven training steps of T5X on the small model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prompt_tuning import losses
from prompt_tuning import params as params_lib
from prompt_tuning.models import t5
from prompt_tuning.peft import model as peft_model
from prompt_tuning.peft import model_tuning, soft_prompt
from prompt_tuning.training import optimizer as optimizer_lib
from prompt_tuning.training import state as state_lib
from prompt_tuning.training import step as step_lib

SHAPE = dict(vocab_size=256, emb_dim=32, num_heads=4, head_dim=8, mlp_dim=64, num_encoder_layers=2,
             num_decoder_layers=2, mlp_activations=('gelu', 'linear'))
PROMPT = 'encoder/prompt/prompt/prompt'
FEATURES = ('encoder_input_tokens', 'decoder_input_tokens', 'decoder_target_tokens',
            'decoder_loss_weights')
# The other settings are compared on the stored logits, in tests/test_losses.py.
LOSSES = {
    'loss_ls0_z0.0001': {},
    'loss_ls0.1_z0': dict(label_smoothing=0.1, z_loss=0.0),
    'loss_ls0_z0.0001_lnf_AVERAGE_PER_SEQUENCE': dict(
        loss_normalizing_factor='AVERAGE_PER_SEQUENCE'),
}


@pytest.fixture(scope='module')
def golden(golden_dir):
  return lambda name: np.load(golden_dir / 't5x_small' / name)


def _model(prompt, **options):
  methods = (soft_prompt.SoftPrompt(length=6) if prompt else model_tuning.ModelTuning(),)
  return peft_model.PeftModel(backbone=t5.T5(t5.T5Config(**SHAPE, **options)), methods=methods)


def _params(golden, prompt, scan_layers=False):
  flat = {path: jnp.asarray(value) for path, value in golden('small_params.npz').items()
          if prompt or path != PROMPT}
  tree = params_lib.unflatten(flat)
  return params_lib.stack_layers(tree) if scan_layers else tree


def _batch(arrays, prefix=''):
  return {name: jnp.asarray(arrays[prefix + name]) for name in FEATURES}


def _largest(actual, expected):
  """Largest difference as a share of the largest entry."""
  return np.max(np.abs(actual - expected)) / np.max(np.abs(expected))


@pytest.mark.parametrize('prompt', [True, False])
def test_losses(golden, prompt):
  reference = golden('small_prompt.npz' if prompt else 'small_noprompt.npz')
  model, params = _model(prompt), _params(golden, prompt)
  trainable, frozen = params_lib.split(params, model.trainable)
  compared = 0
  for name, settings in LOSSES.items():
    evaluate = step_lib.make_eval_step(model, loss=losses.LossConfig(**settings))
    metrics = evaluate(trainable, frozen, _batch(reference))
    np.testing.assert_allclose(metrics['loss'][0], reference[name], rtol=1e-5, err_msg=name)
    compared += 1
  assert compared == len(LOSSES) == 3
  correct, counted = metrics['accuracy']
  assert counted == 16
  assert correct / counted == (0.0 if prompt else 0.0625)
  real, slots = metrics['tokens'][0], metrics['padding_share'][1]
  np.testing.assert_allclose(real / slots, 0.6022727489, rtol=1e-6)


def _gradient(model, params, batch):
  """The gradient inside a training step: a trace without decay keeps it as its state."""
  trainable, frozen = params_lib.split(params, model.trainable)
  keep = optax.trace(decay=0.0)
  step = step_lib.make_train_step(model, keep, enable_dropout=False)
  state, _ = step(state_lib.create(trainable, keep), frozen, batch, jax.random.key(0))
  return params_lib.flatten(state.opt_state.trace)


@pytest.mark.parametrize('options', [{}, {'scan_layers': True, 'remat_policy': 'full'}])
def test_prompt_gradient(golden, options):
  reference = golden('small_prompt.npz')
  grads = _gradient(_model(True, **options), _params(golden, True, options.get('scan_layers')),
                    _batch(reference))
  assert list(grads) == [PROMPT]
  assert _largest(grads[PROMPT], reference['prompt_grad']) < 1e-5


@pytest.mark.parametrize('scanned', [False, True])
def test_every_gradient(golden, scanned):
  expected = dict(golden('small_noprompt_grads.npz'))
  grads = _gradient(_model(False, scan_layers=scanned), _params(golden, False, scanned),
                    _batch(golden('small_noprompt.npz')))
  if scanned:
    grads = params_lib.flatten(params_lib.unstack_layers(params_lib.unflatten(grads)))
  assert grads.keys() == expected.keys()
  for path, gradient in grads.items():
    assert _largest(gradient, expected[path]) < 1e-5, path
  assert len(grads) == 52


@pytest.mark.parametrize('num_microbatches', [1, 2])
def test_seven_steps(golden, num_microbatches):
  """Tolerances as the reference's own spread allows: its first steps amplify rounding."""
  reference = golden('ckpt_prompt_expected.npz')
  model = _model(True)
  trainable, frozen = params_lib.split(_params(golden, True), model.trainable)
  optimizer = optimizer_lib.adafactor()
  state = state_lib.create(trainable, optimizer)
  step = step_lib.make_train_step(model, optimizer, num_microbatches=num_microbatches,
                                  enable_dropout=False)
  batches = [_batch(reference, f'batch{i}_') for i in (0, 1)]
  before = params_lib.fingerprint(frozen)
  for i, expected in enumerate(reference['prompts_after_step']):
    state, metrics = step(state, frozen, batches[i % 2], jax.random.key(0))
    np.testing.assert_allclose(metrics['loss'][0], reference['train_losses'][i], rtol=5e-5)
    error = np.abs(state.trainable['encoder']['prompt']['prompt']['prompt'] - expected)
    if i == 0:
      assert error.max() < 1e-6
  assert i == 6 and state.step == reference['step'] == 7
  assert error.max() < 5e-3 and np.median(error) < 5e-4
  v = state.opt_state[0].v['encoder']['prompt']['prompt']['prompt']
  np.testing.assert_allclose(v, reference['prompt_v'], rtol=5e-3)
  assert params_lib.fingerprint(frozen) == before
