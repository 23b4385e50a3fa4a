"""Generation with a tiny T5: cached decoding equals teacher forcing, settings are checked."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning import partitioning
from prompt_tuning.decoding import generate as generate_lib
from prompt_tuning.decoding.generate import DecodeConfig, generate_jit
from prompt_tuning.errors import UserError
from prompt_tuning.models.t5 import T5, T5Config
from prompt_tuning.peft.lora import LoRA
from prompt_tuning.peft.model import PeftModel
from prompt_tuning.peft.prefix_tuning import PrefixTuning
from prompt_tuning.peft.soft_prompt import SoftPrompt

LENGTH = 6
INPUTS = np.asarray([[5, 9, 3, 17, 1, 0, 0], [8, 1, 0, 0, 0, 0, 0], [4, 4, 6, 22, 13, 2, 1]],
                    np.int32)


@functools.cache
def make(methods=(SoftPrompt(length=4),), **options):
  """(model, params) with random weights, large enough for decodes to differ."""
  config = T5Config(vocab_size=29, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32,
                    num_encoder_layers=1, num_decoder_layers=1, **options)
  model = PeftModel(backbone=T5(config), methods=methods)
  params = jax.jit(model.init)(jax.random.key(3), INPUTS, INPUTS, INPUTS)['params']
  keys = iter(jax.random.split(jax.random.key(4), len(jax.tree.leaves(params))))
  return model, jax.tree.map(
      lambda p: p + jnp.float32(0.3) * jax.random.normal(next(keys), p.shape), params)


def teacher_forced(model, params, sequences):
  """Log-probabilities [B, L, V] (float64) of each next token after a given sequence [B, L]."""
  shifted = np.pad(sequences, ((0, 0), (1, 0)))[:, :-1].astype(np.int32)
  # Every position counts as real: a generated 0 is a token like any other.
  logits = jax.jit(model.apply)({'params': params}, INPUTS, shifted, np.ones_like(shifted))
  logits = np.asarray(logits, np.float64)
  return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))


def up_to_eos(sequence, eos_id):
  """Number of tokens, EOS included."""
  hits = np.flatnonzero(sequence == eos_id)
  return int(hits[0]) + 1 if len(hits) else len(sequence)


# The end of sequence is a token that some rows reach late and others not at all.
@pytest.mark.parametrize('methods, eos_id', [
    ((), 20), ((SoftPrompt(length=4),), 12), ((PrefixTuning(length=3),), 4),
    ((LoRA(rank=2),), 3)], ids=['none', 'prompt', 'prefix', 'lora'])
def test_greedy_equals_teacher_forcing(methods, eos_id):
  model, params = make(methods)
  decoded = generate_jit(model, params, {'encoder_input_tokens': INPUTS},
                         DecodeConfig(max_decode_length=LENGTH, eos_id=eos_id))
  assert decoded.sequences.shape == (3, 1, LENGTH) and decoded.scores.shape == (3, 1)
  sequences = np.asarray(decoded.sequences[:, 0])
  log_probs = teacher_forced(model, params, sequences)
  compared = 0
  for row in range(3):
    length = up_to_eos(sequences[row], eos_id)
    steps = log_probs[row, :length]
    np.testing.assert_array_equal(sequences[row, :length], np.argmax(steps, axis=-1))
    np.testing.assert_allclose(decoded.scores[row, 0], np.sum(np.max(steps, axis=-1)), rtol=1e-5)
    assert not np.any(sequences[row, length:])
    compared += length
  assert compared >= 15


@pytest.mark.parametrize('scan_layers', [False, True])
def test_scores_of_beams_are_those_of_teacher_forcing(scan_layers):
  model, params = make(scan_layers=scan_layers)
  config = DecodeConfig(strategy='beam', beam_size=3, max_decode_length=LENGTH, eos_id=7)
  decoded = generate_jit(model, params, {'encoder_input_tokens': INPUTS}, config)
  scores = np.asarray(decoded.scores)
  assert decoded.sequences.shape == (3, 3, LENGTH)
  assert np.all(scores[:, :-1] >= scores[:, 1:])
  compared = 0
  for beam in range(3):
    sequences = np.asarray(decoded.sequences[:, beam])
    log_probs = teacher_forced(model, params, sequences)
    for row in range(3):
      if scores[row, beam] < -1e6:
        continue
      length = up_to_eos(sequences[row], 7)
      total = sum(log_probs[row, i, sequences[row, i]] for i in range(length))
      finished = 7 in sequences[row]
      penalty = ((5 + length) / 6) ** 0.6 if finished else 1.0
      np.testing.assert_allclose(scores[row, beam], total / penalty, rtol=1e-5)
      compared += 1
  assert compared >= 5


def test_num_return_cuts_the_beams():
  model, params = make()
  config = DecodeConfig(strategy='beam', beam_size=3, max_decode_length=LENGTH)
  batch = {'encoder_input_tokens': INPUTS}
  whole = generate_jit(model, params, batch, config)
  best = generate_jit(model, params, batch, dataclasses.replace(config, num_return=1))
  np.testing.assert_array_equal(best.sequences, whole.sequences[:, :1])
  np.testing.assert_array_equal(best.scores, whole.scores[:, :1])


def test_samples_are_sorted_and_scored():
  model, params = make()
  config = DecodeConfig(strategy='sample', num_return=5, max_decode_length=LENGTH,
                        rescale_log_probs=False, top_k=6)
  decoded = generate_jit(model, params, {'encoder_input_tokens': INPUTS}, config, jax.random.key(0))
  scores = np.asarray(decoded.scores)
  assert decoded.sequences.shape == (3, 5, LENGTH)
  assert np.all(scores[:, :-1] >= scores[:, 1:])
  assert len({tuple(s) for s in np.asarray(decoded.sequences).reshape(-1, LENGTH).tolist()}) > 5
  for sample in range(5):
    sequences = np.asarray(decoded.sequences[:, sample])
    log_probs = teacher_forced(model, params, sequences)
    for row in range(3):
      total = sum(log_probs[row, i, sequences[row, i]]
                  for i in range(up_to_eos(sequences[row], 1)))
      np.testing.assert_allclose(scores[row, sample], total, rtol=1e-5)


def test_padding_changes_nothing():
  model, params = make()
  config = DecodeConfig(max_decode_length=LENGTH)
  wide = np.pad(INPUTS, ((0, 1), (0, 5)))
  first = generate_jit(model, params, {'encoder_input_tokens': INPUTS}, config)
  second = generate_jit(model, params, {'encoder_input_tokens': wide}, config)
  np.testing.assert_array_equal(first.sequences, second.sequences[:3])
  np.testing.assert_allclose(first.scores, second.scores[:3], rtol=1e-5)


@pytest.mark.parametrize('num_partitions', [1, 2])
def test_a_sharded_model_and_batch_give_the_same(num_partitions):
  model, params = make()
  config = DecodeConfig(strategy='beam', beam_size=2, max_decode_length=LENGTH, eos_id=16)
  batch = {'encoder_input_tokens': np.tile(INPUTS, (3, 1))[:8]}
  whole = generate_jit(model, params, batch, config)
  mesh = partitioning.make_mesh(num_partitions)
  rules = tuple(rule for method in model.methods for rule in method.logical_axes)
  sharded = generate_jit(model, partitioning.shard_params(params, mesh, rules),
                         partitioning.shard_batch(batch, mesh), config)
  np.testing.assert_array_equal(whole.sequences, sharded.sequences)
  np.testing.assert_allclose(whole.scores, sharded.scores, rtol=1e-5)
  assert len(sharded.scores.sharding.device_set) == 8


def test_segment_ids_say_what_is_padding():
  model, params = make()
  config = DecodeConfig(strategy='beam', beam_size=2, max_decode_length=LENGTH)
  first = generate_jit(model, params, {'encoder_input_tokens': INPUTS}, config)
  filled = np.where(INPUTS == 0, 7, INPUTS)
  batch = {'encoder_input_tokens': filled, 'encoder_segment_ids': (INPUTS != 0).astype(np.int32)}
  second = generate_jit(model, params, batch, config)
  np.testing.assert_array_equal(first.sequences, second.sequences)
  np.testing.assert_allclose(first.scores, second.scores, rtol=1e-5)


def test_only_inputs_and_settings_compile_anew():
  model, params = make(())
  config = DecodeConfig(max_decode_length=3)
  batch = {'encoder_input_tokens': INPUTS}
  generate_jit(model, params, batch, config)
  size = generate_lib._jitted._cache_size()
  generate_jit(model, params, {**batch, 'decoder_target_tokens': INPUTS[:, :2], 'text': 'x'},
               DecodeConfig(max_decode_length=3))
  assert generate_lib._jitted._cache_size() == size
  generate_jit(model, params, batch, DecodeConfig(max_decode_length=4))
  assert generate_lib._jitted._cache_size() == size + 1


@pytest.mark.parametrize('settings, message', [
    ({'strategy': 'beams'}, 'greedy, beam, sample'),
    ({'max_decode_length': 0}, 'max_decode_length'),
    ({'beam_size': 0}, 'beam_size'),
    ({'top_p': 1.5}, 'from 0 to 1'),
    ({'temperature': -1.0}, 'temperature'),
    ({'num_return': 2}, 'num_return'),
    ({'strategy': 'beam', 'beam_size': 2, 'num_return': 3}, 'beam_size')])
def test_wrong_settings_are_refused(settings, message):
  with pytest.raises(UserError, match=message):
    DecodeConfig(**settings)


@pytest.mark.parametrize('settings, message', [
    ({}, 'max_decode_length'), ({'strategy': 'sample', 'max_decode_length': 2}, 'rng')])
def test_missing_settings_are_asked_for(settings, message):
  model, params = make(())
  with pytest.raises(UserError, match=message):
    generate_jit(model, params, {'encoder_input_tokens': INPUTS}, DecodeConfig(**settings))
