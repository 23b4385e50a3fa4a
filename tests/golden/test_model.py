"""Encoder output, logits and gradients against the reference's numbers (golden t5x_small)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import losses
from prompt_tuning import params as trees
from prompt_tuning.models.t5 import T5, T5Config
from prompt_tuning.peft import model as peft_model
from prompt_tuning.peft.prompt_init import FromArray
from prompt_tuning.peft.soft_prompt import SoftPrompt

CONFIG = dict(vocab_size=256, emb_dim=32, num_heads=4, head_dim=8, mlp_dim=64,
              num_encoder_layers=2, num_decoder_layers=2)
PROMPT = 'encoder/prompt/prompt/prompt'
INPUTS = ('encoder_input_tokens', 'decoder_input_tokens', 'decoder_target_tokens')


@pytest.fixture(scope='module')
def stored(golden_dir):
  def load(name):
    with np.load(golden_dir / 't5x_small' / f'{name}.npz', allow_pickle=False) as file:
      return dict(file)
  return load


@pytest.fixture(params=['looped', 'scanned'])
def scan(request):
  return request.param == 'scanned'


def build(stored, scan, with_prompt):
  """The golden model and its parameters."""
  flat = stored('small_params')
  prompt = flat.pop(PROMPT)
  params = trees.unflatten(flat)
  methods = (SoftPrompt(length=6, init=FromArray(prompt)),) if with_prompt else ()
  model = peft_model.PeftModel(T5(T5Config(**CONFIG, scan_layers=scan)), methods)
  return model, peft_model.initialize(model, jax.random.key(0),
                                      trees.stack_layers(params) if scan else params)


def close_at(got, want, valid, tolerance):
  """Asserts closeness where `valid`; returns how many numbers were compared."""
  valid = np.broadcast_to(valid, want.shape)
  assert valid.any()
  np.testing.assert_allclose(np.asarray(got)[valid], want[valid], atol=tolerance, rtol=tolerance)
  return int(valid.sum())


@pytest.mark.parametrize('name', ['small_noprompt', 'small_prompt'])
def test_outputs(stored, scan, name):
  model, params = build(stored, scan, name == 'small_prompt')
  batch = stored(name)
  encoded = jax.jit(lambda p: model.apply({'params': p}, batch['encoder_input_tokens'],
                                          method='encode'))(params)
  rows = batch['encoder_input_tokens'] > 0
  added = encoded.shape[1] - rows.shape[1]
  assert added == (6 if name == 'small_prompt' else 0)
  rows = np.concatenate([np.ones((len(rows), added), bool), rows], axis=1)
  assert close_at(encoded, batch['encoder_output'], rows[..., None], 1e-5) > 1000
  logits = jax.jit(lambda p: model.apply({'params': p}, *(batch[k] for k in INPUTS)))(params)
  assert logits.dtype == jnp.float32
  valid = batch['decoder_target_tokens'] > 0
  assert close_at(logits, batch['logits'], valid[..., None], 1e-5) > 1000


def loss_of(model, batch):
  def loss(params):
    logits = model.apply({'params': params}, *(batch[k] for k in INPUTS))
    return losses.token_cross_entropy(logits, batch['decoder_target_tokens'],
                                      batch['decoder_loss_weights'], z_loss=1e-4)[0]
  return loss


def test_every_gradient(stored, scan):
  model, params = build(stored, scan, False)
  want = stored('small_noprompt_grads')
  grads = jax.jit(jax.grad(loss_of(model, stored('small_noprompt'))))(params)
  grads = trees.flatten(trees.unstack_layers(grads))
  compared = 0
  for path, grad in grads.items():
    reference = want[path]
    scale = np.abs(reference).max()
    assert scale > 0
    np.testing.assert_allclose(grad, reference, atol=1e-5 * scale, rtol=0, err_msg=path)
    compared += 1
  assert compared == len(want) == 52


def test_gradient_of_the_prompt(stored, scan):
  model, params = build(stored, scan, True)
  batch = stored('small_prompt')
  grads = trees.flatten(jax.jit(jax.grad(loss_of(model, batch)))(params))
  for path, want in ((PROMPT, batch['prompt_grad']),
                     ('token_embedder/embedding', batch['token_embedding_grad'])):
    scale = np.abs(want).max()
    assert scale > 0
    np.testing.assert_allclose(grads[path], want, atol=1e-5 * scale, rtol=0, err_msg=path)
