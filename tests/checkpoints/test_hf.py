"""Hugging Face folders: written, read back, and refused where they cannot be read."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from prompt_tuning import params as params_lib
from prompt_tuning.checkpoints import hf, restore
from prompt_tuning.errors import UserError
from prompt_tuning.models.t5 import T5, T5Config
from prompt_tuning.peft.model import abstract_params

V11 = T5Config(vocab_size=24, emb_dim=8, num_heads=3, head_dim=4, mlp_dim=12, num_encoder_layers=3,
               num_decoder_layers=2, relative_attention_num_buckets=9, dropout_rate=0.0)
V10 = T5Config(vocab_size=24, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=12, num_encoder_layers=1,
               num_decoder_layers=2, mlp_activations=('relu',), logits_via_embedding=True)


def random_params(config, seed=0, dtype=np.float32):
  rng = np.random.default_rng(seed)
  return params_lib.unflatten({
      path: rng.normal(size=leaf.shape).astype(dtype)
      for path, leaf in params_lib.flatten(abstract_params(T5(config=config))).items()})


def equal(a, b) -> int:
  """Compares trees bit for bit and returns how many arrays were compared."""
  a, b = params_lib.flatten(a), params_lib.flatten(b)
  assert a.keys() == b.keys()
  for path in a:
    x, y = np.asarray(a[path]), np.asarray(b[path])
    assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes(), path
  return len(a)


def settings(folder, **changes):
  """Changes config.json; a value of None takes the key away."""
  path = folder / 'config.json'
  values = {**json.loads(path.read_text()), **changes}
  path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


@pytest.fixture
def folder(tmp_path):
  hf.write_folder(tmp_path / 'model', V11, random_params(V11))
  return tmp_path / 'model'


@pytest.mark.parametrize('config', [V11, V10])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_round_trip(tmp_path, config, dtype):
  params = random_params(config, dtype=np.dtype(dtype))
  hf.write_folder(tmp_path, config, params)
  model = hf.open_folder(tmp_path)
  assert model.config == config
  read, report = restore.read_params(model, abstract_params(T5(config=config)), param_dtype=dtype)
  assert equal(read, params) == len(report.kept) > 20
  assert not report.unused and not report.new


def test_scanned_parameters_are_written_per_layer(tmp_path):
  config = T5Config(vocab_size=24, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=12,
                    num_encoder_layers=3, num_decoder_layers=2)
  params = random_params(config)
  hf.write_folder(tmp_path / 'a', config, params)
  hf.write_folder(tmp_path / 'b', config, params_lib.stack_layers(params))
  a, b = ((tmp_path / name / 'model.safetensors') for name in 'ab')
  assert equal(safetensors.numpy.load_file(a), safetensors.numpy.load_file(b)) == 61


def test_kernels_are_transposed_on_disk(folder):
  theirs = safetensors.numpy.load_file(folder / 'model.safetensors')
  assert theirs['encoder.block.0.layer.1.DenseReluDense.wi_0.weight'].shape == (12, 8)
  bias = 'encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight'
  assert theirs[bias].shape == (9, 3)
  assert theirs['shared.weight'].shape == theirs['lm_head.weight'].shape == (24, 8)


def test_a_leaf_of_a_method_is_refused(tmp_path):
  params = params_lib.merge(random_params(V11), {'encoder': {'prompt': {'prompt': {
      'prompt': np.zeros((2, 8), np.float32)}}}})
  with pytest.raises(UserError, match='encoder/prompt/prompt/prompt has no place'):
    hf.write_folder(tmp_path, V11, params)


def shards_of(folder):
  """Splits model.safetensors in two and writes the index."""
  weights = safetensors.numpy.load_file(folder / 'model.safetensors')
  (folder / 'model.safetensors').unlink()
  index = {}
  for number, part in enumerate((list(weights)[::2], list(weights)[1::2])):
    name = f'model-0000{number + 1}-of-00002.safetensors'
    safetensors.numpy.save_file({k: weights[k] for k in part}, folder / name)
    index.update(dict.fromkeys(part, name))
  return index


def write_index(folder, index):
  (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': index}))


def test_sharded_files(folder):
  write_index(folder, shards_of(folder))
  read, _ = restore.read_params(folder, abstract_params(T5(config=V11)))
  assert equal(read, random_params(V11)) == 61


@pytest.mark.parametrize('shard', ['../model.safetensors', '/etc/passwd', '..', 'a/b', 7, ''])
def test_index_that_leaves_the_folder(folder, shard):
  write_index(folder, {**shards_of(folder), 'shared.weight': shard})
  with pytest.raises(UserError, match='no file name of this folder'):
    hf.open_folder(folder)


def test_index_that_promises_too_much(folder):
  index = shards_of(folder)
  write_index(folder, {**index, 'more.weight': index['shared.weight']})
  with pytest.raises(UserError, match=r'does not hold more\.weight'):
    hf.open_folder(folder)


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'model.pt'])
def test_a_pickle_is_not_read(folder, name):
  (folder / 'model.safetensors').rename(folder / name)
  with pytest.raises(UserError, match=rf'pickle \({name}\).*never read here.*save_pretrained'):
    hf.open_folder(folder)


def test_no_weights(folder):
  (folder / 'model.safetensors').unlink()
  with pytest.raises(UserError, match='no weights'):
    hf.open_folder(folder)


@pytest.mark.parametrize('changes, message', [
    ({'model_type': 'llama'}, "type 'llama'"),
    ({'model_type': None}, 'type None'),
    ({'feed_forward_proj': 'gated-silu'}, "feed_forward_proj is 'gated-silu'"),
    ({'d_model': '8'}, "config.json: d_model is '8'; it must be a number"),
    ({'num_heads': 4}, 'num_heads is 3 in the file|num_heads is 4 in the configuration'),
    ({'num_decoder_layers': 3}, 'num_decoder_layers is 3 in the configuration and 2'),
    ({'feed_forward_proj': 'relu'}, 'mlp_activations'),
])
def test_configurations_refused(folder, changes, message):
  settings(folder, **changes)
  with pytest.raises(UserError, match=message):
    hf.open_folder(folder)


def test_config_that_is_no_json(folder):
  (folder / 'config.json').write_text('{')
  with pytest.raises(UserError, match=r'Cannot read .*config\.json'):
    hf.open_folder(folder)


# The head in the four combinations, as transformers 4 and 5 write them (golden README, item 9).
HEAD = 'decoder/logits_dense/kernel'


def head_of(folder):
  array = hf.open_folder(folder).arrays.get(HEAD)
  return None if array is None else array.read()


@pytest.mark.parametrize('changes', [
    {'tie_word_embeddings': False, 'scale_decoder_outputs': None},  # transformers 4
    {'tie_word_embeddings': True, 'scale_decoder_outputs': False},  # transformers 5
    {'tie_word_embeddings': True, 'scale_decoder_outputs': None, 'model_type': 'mt5'},
])
def test_untied_head_is_read_as_it_is(folder, changes):
  settings(folder, **changes)
  expected = random_params(V11)['decoder']['logits_dense']['kernel']
  assert head_of(folder).tobytes() == expected.tobytes()


@pytest.mark.parametrize('changes', [
    {'tie_word_embeddings': None, 'scale_decoder_outputs': None},  # the oldest T5 files
    {'tie_word_embeddings': True, 'scale_decoder_outputs': None},
    {'tie_word_embeddings': True, 'scale_decoder_outputs': True},
])
@pytest.mark.parametrize('copies', [(), ('lm_head.weight', 'encoder.embed_tokens.weight')])
def test_tied_head_is_absent(tmp_path, changes, copies):
  hf.write_folder(tmp_path, V10, random_params(V10))
  weights = safetensors.numpy.load_file(tmp_path / 'model.safetensors')
  weights |= {name: weights['shared.weight'].copy() for name in copies}
  safetensors.numpy.save_file(weights, tmp_path / 'model.safetensors')
  settings(tmp_path, **changes)
  model = hf.open_folder(tmp_path)
  assert HEAD not in model.arrays and model.config == V10
  _, report = restore.read_params(model, abstract_params(T5(config=V10)))
  assert not report.unused


def test_tied_head_without_scaling_becomes_a_head(tmp_path):
  hf.write_folder(tmp_path, V10, random_params(V10))
  settings(tmp_path, model_type='mt5', feed_forward_proj='relu')
  model = hf.open_folder(tmp_path)
  assert not model.config.logits_via_embedding
  table = random_params(V10)['token_embedder']['embedding']
  assert model.arrays[HEAD].read().tobytes() == table.T.tobytes()


def test_untied_head_with_scaling_takes_the_scale(folder):
  settings(folder, scale_decoder_outputs=True)
  expected = random_params(V11)['decoder']['logits_dense']['kernel'] * np.float32(8**-0.5)
  np.testing.assert_array_equal(head_of(folder), expected)


def test_defaults_of_an_old_config(tmp_path):
  hf.write_folder(tmp_path, V10, random_params(V10))
  settings(tmp_path, feed_forward_proj=None, relative_attention_num_buckets=None,
           relative_attention_max_distance=None, layer_norm_epsilon=None, dropout_rate=None,
           num_decoder_layers=None, num_layers=1, tie_word_embeddings=None)
  with pytest.raises(UserError, match='num_decoder_layers is 1 .* 2 in the file'):
    hf.open_folder(tmp_path)
  settings(tmp_path, num_decoder_layers=2)
  assert hf.open_folder(tmp_path).config == V10


def test_vocabularies(folder, tmp_path):
  assert hf.open_folder(folder).vocabulary is None
  (folder / 'spiece.model').write_bytes(b'x')
  model = hf.open_folder(folder)
  assert (model.vocabulary, model.extra_ids) == (str(folder / 'spiece.model'), None)
  settings(folder, model_type='mt5')
  assert hf.open_folder(folder).extra_ids == 0
  hf.write_folder(tmp_path / 'b', V11, random_params(V11), extra_ids=5,
                  vocabulary_file=folder / 'spiece.model')
  assert hf.open_folder(tmp_path / 'b').extra_ids == 5
  assert (tmp_path / 'b' / 'spiece.model').read_bytes() == b'x'
  hf.write_folder(tmp_path / 'c', V11, random_params(V11), vocabulary_file='bytes')
  assert hf.open_folder(tmp_path / 'c').vocabulary == 'bytes'


def test_parameters_on_a_device_are_written(tmp_path):
  params = random_params(V10, dtype=ml_dtypes.bfloat16)
  hf.write_folder(tmp_path, V10, jax.device_put(params))
  read, _ = restore.read_params(tmp_path, abstract_params(T5(config=V10)), param_dtype='bfloat16')
  assert equal(read, params) == 39
