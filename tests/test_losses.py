"""Losses against T5X's numbers and against plain differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import errors, losses

FILES = ('small_prompt.npz', 'small_noprompt.npz')


@pytest.fixture(params=FILES)
def reference(request, golden_dir):
  return np.load(golden_dir / 't5x_small' / request.param)


def _plain(logits, targets, weights, z_loss, label_smoothing):
  """The textbook form: a one-hot target and nothing by hand."""
  size = logits.shape[-1]
  on, off = 1 - label_smoothing, label_smoothing / (size - 1)
  soft = jax.nn.one_hot(targets, size) * (on - off) + off
  log_probs = jax.nn.log_softmax(logits)
  entropy = on * np.log(on) + (size - 1) * off * np.log(off + 1e-20)
  z = z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2
  loss = -jnp.sum(soft * log_probs, axis=-1) + z + np.float32(entropy)
  return jnp.sum(loss * weights), jnp.sum(z * weights)


@pytest.mark.parametrize('label_smoothing', ['0', '0.1'])
@pytest.mark.parametrize('z_loss', ['0', '0.0001'])
def test_cross_entropy_is_t5x(reference, label_smoothing, z_loss):
  loss, z, weight = losses.token_cross_entropy(
      reference['logits'], reference['decoder_target_tokens'], reference['decoder_loss_weights'],
      z_loss=float(z_loss), label_smoothing=float(label_smoothing))
  np.testing.assert_allclose(loss, reference[f'loss_ls{label_smoothing}_z{z_loss}'], rtol=1e-6)
  assert weight == 16 and np.sum(reference['decoder_target_tokens'] != 0) == 16
  if z_loss != '0':
    np.testing.assert_allclose(z, reference[f'z_loss_sum_z{z_loss}'], rtol=1e-6)
  else:
    assert z == 0


@pytest.mark.parametrize('setting', [*losses.NORMALIZERS, 16.0])
def test_loss_normalizing_factor_is_t5x(reference, setting):
  batch = {key: reference[key] for key in ('decoder_target_tokens', 'decoder_loss_weights')}
  factor, weights = losses.loss_normalizer(setting, batch)
  loss, _, _ = losses.token_cross_entropy(
      reference['logits'], batch['decoder_target_tokens'], weights, z_loss=1e-4)
  np.testing.assert_allclose(
      loss / factor, reference[f'loss_ls0_z0.0001_lnf_{setting}'], rtol=1e-6)


def test_sequence_scores_are_t5x(reference):
  scores = losses.sequence_scores(
      reference['logits'], reference['decoder_target_tokens'], reference['decoder_loss_weights'])
  assert scores.shape == (4,)
  np.testing.assert_allclose(scores, reference['score_batch'], rtol=1e-6)


def test_token_accuracy(reference):
  correct, counted = losses.token_accuracy(
      reference['logits'], reference['decoder_target_tokens'], reference['decoder_loss_weights'])
  assert counted == 16
  expected = np.sum((reference['logits'].argmax(-1) == reference['decoder_target_tokens'])
                    * reference['decoder_loss_weights'])
  assert correct == expected
  everything = losses.token_accuracy(reference['logits'], reference['logits'].argmax(-1))
  assert everything[0] == everything[1] == 24


@pytest.mark.parametrize('label_smoothing', [0.0, 0.1])
@pytest.mark.parametrize('z_loss', [0.0, 0.03])
@pytest.mark.parametrize('which', [0, 1])
def test_gradient_equals_plain_differentiation(label_smoothing, z_loss, which):
  key = jax.random.key(0)
  logits = 3 * jax.random.normal(key, (2, 5, 17))
  targets = jax.random.randint(key, (2, 5), 0, 17)
  weights = jnp.array([[1, 0.5, 2, 0, 1], [0, 1, 1, 1, 0]], jnp.float32)
  kwargs = dict(z_loss=z_loss, label_smoothing=label_smoothing)
  by_hand, grad_by_hand = jax.value_and_grad(
      lambda x: losses.token_cross_entropy(x, targets, weights, **kwargs)[which])(logits)
  plain, grad_plain = jax.value_and_grad(
      lambda x: _plain(x, targets, weights, **kwargs)[which])(logits)
  np.testing.assert_allclose(by_hand, plain, rtol=2e-6, atol=1e-6)
  np.testing.assert_allclose(grad_by_hand, grad_plain, atol=1e-6)
  assert which == 1 and z_loss == 0 or np.abs(grad_plain).max() > 1e-2


def test_bfloat16_logits_are_summed_in_float32():
  logits = jax.random.normal(jax.random.key(1), (2, 3, 11)).astype(jnp.bfloat16)
  targets = jnp.ones((2, 3), jnp.int32)
  loss, _, weight = losses.token_cross_entropy(logits, targets)
  assert loss.dtype == jnp.float32 and weight == 6
  grad = jax.grad(lambda x: losses.token_cross_entropy(x, targets)[0])(logits)
  assert grad.dtype == jnp.bfloat16


def test_packed_sequences_count_the_same():
  """AVERAGE_PER_SEQUENCE over packed rows equals the same sequences one a row."""
  targets = np.array([[5, 1, 7, 8, 1, 0]])
  packed = {'decoder_target_tokens': targets, 'decoder_segment_ids': np.array([[1, 1, 2, 2, 2, 0]]),
            'decoder_loss_weights': (targets != 0).astype(np.float32)}
  factor, weights = losses.loss_normalizer('AVERAGE_PER_SEQUENCE', packed)
  np.testing.assert_allclose(weights, [[1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3, 0]], rtol=1e-6)
  np.testing.assert_allclose(factor, 2, rtol=1e-6)


def test_a_row_without_targets_has_no_weight():
  batch = {'decoder_target_tokens': np.array([[3, 1], [0, 0]])}
  factor, weights = losses.loss_normalizer('AVERAGE_PER_SEQUENCE', batch)
  np.testing.assert_array_equal(weights, [[0.5, 0.5], [0, 0]])
  assert factor == 1


@pytest.mark.parametrize('kwargs', [
    {'z_loss': -1.0}, {'label_smoothing': 1.0}, {'loss_normalizing_factor': 0},
    {'loss_normalizing_factor': 'MEAN'}])
def test_wrong_settings_are_refused(kwargs):
  with pytest.raises(errors.UserError, match='give'):
    losses.LossConfig(**kwargs)
