"""Hugging Face folders: written, read back, and refused where they cannot be read."""

import dataclasses
import json
import pathlib
import weakref

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from checkpoints.hf_models import UMT5, V10, V11, abstract, equal, random_params

from prompt_tuning import params as params_lib
from prompt_tuning.checkpoints import hf, restore
from prompt_tuning.errors import UserError
from prompt_tuning.models.t5 import T5Config
from prompt_tuning.vocabulary import load_vocabulary


def settings(folder, **changes):
  """Changes config.json; a value of None takes the key away."""
  path = folder / 'config.json'
  values = {**json.loads(path.read_text()), **changes}
  path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


@pytest.mark.parametrize('config', [
    V11, V10, dataclasses.replace(UMT5, logits_via_embedding=True),
    dataclasses.replace(V11, mlp_activations=('relu', 'linear')),
    dataclasses.replace(V10, mlp_activations=('gelu',)),
])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_round_trip(tmp_path, config, dtype):
  params = random_params(config, dtype=np.dtype(dtype))
  hf.write_folder(tmp_path, config, params)
  model = hf.open_folder(tmp_path)
  assert model.config == config
  read, report = restore.read_params(model, abstract(config), param_dtype=dtype)
  assert equal(read, params) == len(report.kept) > 20
  assert not report.unused and not report.new


def test_written_read_and_written_again(tmp_path):
  hf.write_folder(tmp_path / 'a', V11, random_params(V11))
  model = hf.open_folder(tmp_path / 'a')
  hf.write_folder(tmp_path / 'b', model.config, model.arrays)
  files = sorted(path.name for path in (tmp_path / 'a').iterdir())
  assert files == ['config.json', 'generation_config.json', 'model.safetensors']
  assert all((tmp_path / 'a' / n).read_bytes() == (tmp_path / 'b' / n).read_bytes() for n in files)


def test_untied_head_of_umt5_makes_up_for_its_scaling(tmp_path):
  params = random_params(UMT5)
  hf.write_folder(tmp_path, UMT5, params)
  kernel = params['decoder']['logits_dense']['kernel']
  theirs = safetensors.numpy.load_file(tmp_path / 'model.safetensors')['lm_head.weight']
  np.testing.assert_array_equal(theirs, kernel.T * np.float32(8**0.5))
  model = hf.open_folder(tmp_path)
  assert model.config == UMT5
  np.testing.assert_allclose(model.arrays[HEAD].read(), kernel, rtol=2e-7)


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


def test_what_is_not_the_model_is_refused(tmp_path):
  arrays = params_lib.flatten(random_params(V11))
  short = {path: leaf for path, leaf in arrays.items() if not path.startswith('decoder/layers_1/')}
  with pytest.raises(UserError, match='14 parameters of the model are missing, such as decoder/l'):
    hf.write_folder(tmp_path / 'a', V11, short)
  with pytest.raises(UserError, match=r'encoder_norm/scale has shape \[9\] .* has \[8\]'):
    hf.write_folder(tmp_path / 'a', V11, {**arrays, 'encoder/encoder_norm/scale': np.ones(9)})
  config = dataclasses.replace(V11, mlp_activations=('linear', 'relu'))
  with pytest.raises(UserError, match=r"\['linear', 'relu'\] have no counterpart"):
    hf.write_folder(tmp_path / 'a', config, arrays)
  assert not list(tmp_path.iterdir())


def test_folder_that_holds_something_is_left_alone(tmp_path):
  (tmp_path / 'config.json').write_text('mine')
  with pytest.raises(UserError, match='not an empty folder'):
    hf.write_folder(tmp_path, V11, random_params(V11))
  assert (tmp_path / 'config.json').read_text() == 'mine' and len(list(tmp_path.iterdir())) == 1


def test_a_source_that_breaks_leaves_no_folder(folder, tmp_path):
  model = hf.open_folder(folder)
  with (folder / 'model.safetensors').open('r+b') as file:
    file.truncate(9000)
  with pytest.raises(UserError, match=r'model\.safetensors: \w+.* damaged'):
    hf.write_folder(tmp_path / 'copy', model.config, model.arrays)
  assert [path.name for path in tmp_path.iterdir()] == ['model']


def test_one_parameter_at_a_time_is_read(folder, tmp_path):
  """Each is dropped before the next one is read."""
  alive, read = [], []

  def watched(path, array):
    def reader(dtype):
      assert not any(reference() is not None for reference in alive), (path, read[-1])
      value = array.read(dtype).copy()
      alive.append(weakref.ref(value))
      read.append(path)
      return value
    return dataclasses.replace(array, reader=reader)

  model = hf.open_folder(folder)
  arrays = {path: watched(path, array) for path, array in model.arrays.items()}
  hf.write_folder(tmp_path / 'copy', model.config, arrays, max_shard_bytes=1000)
  assert sorted(read) == sorted(arrays) and len(read) == 61


@pytest.mark.parametrize('most, files', [(10**9, 1), (4000, 5), (1, 61)])
def test_shards(folder, tmp_path, most, files):
  model = hf.open_folder(folder)
  hf.write_folder(tmp_path / 'copy', model.config, model.arrays, max_shard_bytes=most)
  paths = sorted((tmp_path / 'copy').glob('*.safetensors'))
  assert len(paths) == files
  shards = [safetensors.numpy.load_file(path) for path in paths]
  sizes = [sum(array.nbytes for array in shard.values()) for shard in shards]
  assert all(size <= most or len(shard) == 1 for size, shard in zip(sizes, shards, strict=True))
  whole = safetensors.numpy.load_file(folder / 'model.safetensors')
  assert equal(whole, {k: v for shard in shards for k, v in shard.items()}) == 61
  assert equal(random_params(V11), restore.read_params(
      tmp_path / 'copy', abstract(V11))[0]) == 61
  if files > 1:
    index = json.loads((tmp_path / 'copy' / 'model.safetensors.index.json').read_text())
    assert index['metadata'] == {'total_size': sum(sizes), 'total_parameters': sum(sizes) // 4}
    assert [path.name for path in paths] == sorted(set(index['weight_map'].values()))
    assert paths[0].name == f'model-00001-of-{files:05}.safetensors'


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
    ({'model_type': ['t5']}, r"type \['t5'\]"),
    ({'feed_forward_proj': 'gated-silu'}, "config.json: .*'silu' .*is 'gated-silu'.*gelu_new"),
    ({'feed_forward_proj': 'gelu'}, "activation is 'gelu'"),
    ({'feed_forward_proj': 7}, "activation is '7'"),
    ({'dense_act_fn': 'silu'}, "activation is 'silu' .*is 'gated-gelu'"),
    ({'dense_act_fn': ['relu']}, 'activation is'),
    ({'is_gated_act': False}, 'mlp_activations is .* in the configuration and'),
    ({'dropout_rate': 2}, r'config\.json: dropout_rate is 2'),
    ({'layer_norm_epsilon': float('nan')}, r'config\.json: layer_norm_epsilon is nan'),
    ({'vocab_size': -24}, r'config\.json: vocab_size is -24'),
    ({'vocab_size': True}, r'config\.json: vocab_size is True'),
    ({'vocab_size': 25}, 'vocab_size is 25 in the configuration and 24 in the file'),
    ({'relative_attention_max_distance': 4}, 'must exceed half of the 9 buckets'),
    ({'relative_attention_num_buckets': 32}, 'is 32 in the configuration and 9 in the file'),
    ({'d_model': '8'}, "config.json: d_model is '8'; it must be a number"),
    ({'num_heads': 4}, 'num_heads is 3 in the file|num_heads is 4 in the configuration'),
    ({'num_decoder_layers': 3}, 'num_decoder_layers is 3 in the configuration and 2'),
    ({'feed_forward_proj': 'relu'}, 'mlp_activations'),
])
def test_configurations_refused(folder, changes, message):
  settings(folder, **changes)
  with pytest.raises(UserError, match=message):
    hf.open_folder(folder)


@pytest.mark.parametrize('content', [b'{', b'[]', b'\xff{}', b'', b'[' * 100_000, b'1' * 10_000])
def test_config_that_is_no_json(folder, content):
  (folder / 'config.json').write_bytes(content)
  with pytest.raises(UserError, match=r'Cannot read .*config\.json'):
    hf.open_folder(folder)


def test_a_gigantic_config_is_not_read(folder):
  with (folder / 'config.json').open('r+b') as file:
    file.truncate(10**12)  # a hole: it takes no room
  with pytest.raises(UserError, match=r'config\.json: it has more than'):
    hf.open_folder(folder)


@pytest.mark.parametrize('changes, activations', [
    ({'feed_forward_proj': 'gated-gelu_new'}, ('gelu', 'linear')),
    ({'feed_forward_proj': 'gated-gelu_pytorch_tanh'}, ('gelu', 'linear')),
    ({'feed_forward_proj': 'gated-relu'}, ('relu', 'linear')),
    ({'feed_forward_proj': 'gated-silu', 'dense_act_fn': 'gelu_new'}, ('gelu', 'linear')),
    ({'dense_act_fn': 'relu'}, ('relu', 'linear')),
    ({'feed_forward_proj': 'gelu_new', 'is_gated_act': True}, ('gelu', 'linear')),
    ({'feed_forward_proj': None, 'model_type': 'mt5'}, ('gelu', 'linear')),
])
def test_activations(folder, changes, activations):
  settings(folder, **changes)
  assert hf.open_folder(folder).config.mlp_activations == activations


def test_a_config_that_says_nothing_of_the_shape(folder):
  (folder / 'config.json').write_text(json.dumps(
      {'model_type': 't5', 'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False}))
  config = dataclasses.replace(V11, dropout_rate=0.1)
  assert hf.open_folder(folder).config == config


@pytest.mark.parametrize('dtype', ['int8', 'uint8'])
def test_quantised_weights_are_refused(folder, dtype):
  weights = safetensors.numpy.load_file(folder / 'model.safetensors')
  name = 'encoder.block.0.layer.0.SelfAttention.q.weight'
  weights[name] = weights[name].astype(dtype)
  safetensors.numpy.save_file(weights, folder / 'model.safetensors')
  with pytest.raises(UserError, match=rf'model\.safetensors: {name} is {dtype}: a quantised'):
    hf.open_folder(folder)


def test_a_parameter_that_is_missing_is_named(folder):
  weights = safetensors.numpy.load_file(folder / 'model.safetensors')
  del weights['decoder.block.1.layer.2.DenseReluDense.wo.weight']
  safetensors.numpy.save_file(weights, folder / 'model.safetensors')
  with pytest.raises(UserError, match=r'does not hold 1 parameters .* decoder/layers_1/mlp/wo/k'):
    restore.load_backbone(folder)


def test_a_position_bias_for_the_first_layer_alone(folder):
  settings(folder, model_type='umt5')
  with pytest.raises(UserError, match=r'does not hold 3 .* decoder/layers_1/relpos_bias/rel_emb'):
    restore.load_backbone(folder)


# The head in the four combinations, as transformers 4 and 5 write them (golden README, item 9).
HEAD = 'decoder/logits_dense/kernel'


def head_of(folder):
  array = hf.open_folder(folder).arrays.get(HEAD)
  return None if array is None else array.read()


@pytest.mark.parametrize('changes', [
    {'tie_word_embeddings': False, 'scale_decoder_outputs': None},  # transformers 4
    {'tie_word_embeddings': True, 'scale_decoder_outputs': False},  # transformers 5
    {'tie_word_embeddings': True, 'scale_decoder_outputs': None, 'model_type': 'mt5'},
    {'tie_word_embeddings': False, 'scale_decoder_outputs': None, 'model_type': 'mt5'},
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
  _, report = restore.read_params(model, abstract(V10))
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


def test_vocabularies_read(folder):
  assert hf.open_folder(folder).vocabulary is None
  (folder / 'spiece.model').write_bytes(b'x')
  model = hf.open_folder(folder)
  assert (model.vocabulary, model.extra_ids) == (str(folder / 'spiece.model'), None)
  settings(folder, model_type='mt5')
  assert hf.open_folder(folder).extra_ids == 0
  (folder / 'tokenizer_config.json').write_text('{"extra_ids": 7}')
  assert hf.open_folder(folder).extra_ids == 7


DEMO_VOCABULARY = restore.demo_folder() / 'spiece.model'  # 3,000 pieces, not a unigram model


def with_rows(rows, config=V10):
  return dataclasses.replace(config, vocab_size=rows)


@pytest.mark.parametrize('given, asked, kept', [
    (DEMO_VOCABULARY, None, 100), (DEMO_VOCABULARY, 5, 5), ('bytes', None, 0)])
def test_vocabularies_written(tmp_path, given, asked, kept):
  config = with_rows(3100)
  hf.write_folder(tmp_path, config, random_params(config), vocabulary_file=given, extra_ids=asked)
  tokenizer = json.loads((tmp_path / 'tokenizer_config.json').read_text())
  assert tokenizer['tokenizer_class'] == ('ByT5Tokenizer' if given == 'bytes' else 'T5Tokenizer')
  assert tokenizer['extra_ids'] == hf.open_folder(tmp_path).extra_ids == kept
  vocabulary = load_vocabulary(hf.open_folder(tmp_path).vocabulary, kept)
  assert vocabulary == load_vocabulary(given, asked)


def test_a_vocabulary_that_does_not_fit(tmp_path):
  params = random_params(V10)
  for given, match in ((DEMO_VOCABULARY, '3100 ids and the model 24 embeddings'),
                       (tmp_path / 'none', 'There is no vocabulary file'),
                       (pathlib.Path(__file__), 'is not a SentencePiece model')):
    with pytest.raises(UserError, match=match):
      hf.write_folder(tmp_path / 'new', V10, params, vocabulary_file=given)
  assert not list(tmp_path.iterdir())


def test_what_their_tokenizers_make_of_it_is_said(tmp_path, caplog):
  config = with_rows(3100, UMT5)
  hf.write_folder(tmp_path, config, random_params(config), vocabulary_file=DEMO_VOCABULARY)
  assert 'is no unigram model' in caplog.text and 'AutoTokenizer wants a tok' in caplog.text


@pytest.mark.parametrize('extra_ids', [-1, 25, 10**12, 1.5, '100'])
def test_sentinels_that_do_not_fit(folder, extra_ids):
  (folder / 'spiece.model').write_bytes(b'x')
  (folder / 'tokenizer_config.json').write_text(json.dumps({'extra_ids': extra_ids}))
  with pytest.raises(UserError, match=r'tokenizer_config\.json: extra_ids is .* the 24 rows'):
    hf.open_folder(folder)


def test_parameters_on_a_device_are_written(tmp_path):
  params = random_params(V10, dtype=ml_dtypes.bfloat16)
  hf.write_folder(tmp_path, V10, jax.device_put(params))
  read, _ = restore.read_params(tmp_path, abstract(V10), param_dtype='bfloat16')
  assert equal(read, params) == 39
