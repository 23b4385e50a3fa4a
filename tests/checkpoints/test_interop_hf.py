"""Folders of transformers, in both directions: equal logits (extra `interop`)."""

import dataclasses
import json
import warnings

import numpy as np
import pytest

from prompt_tuning import params as params_lib
from prompt_tuning.checkpoints import hf, restore
from prompt_tuning.checkpoints.names import HEAD

with warnings.catch_warnings():
  warnings.simplefilter('ignore')
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings('ignore')]

ODD = {'vocab_size': 40, 'd_model': 12, 'd_kv': 5, 'num_heads': 3, 'd_ff': 20, 'num_layers': 3,
       'num_decoder_layers': 2, 'relative_attention_num_buckets': 8,
       'relative_attention_max_distance': 20, 'dropout_rate': 0.0}
MODELS = {
    't5_1_0': (transformers.T5Config, transformers.T5ForConditionalGeneration, {}),
    't5_1_1': (transformers.T5Config, transformers.T5ForConditionalGeneration,
               {'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False}),
    'mt5': (transformers.MT5Config, transformers.MT5ForConditionalGeneration,
            {'tie_word_embeddings': False}),
    'byt5': (transformers.T5Config, transformers.T5ForConditionalGeneration,
             {'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False, 'vocab_size': 384,
              'tokenizer_class': 'ByT5Tokenizer'}),
    't5_1_0_untied': (transformers.T5Config, transformers.T5ForConditionalGeneration, {}),
}
UNTIED = ('t5_1_1', 'mt5', 'byt5', 't5_1_0_untied')


def their_model(name):
  """A random model with every weight changed, biases and norms too."""
  torch.manual_seed(0)
  config, model, options = MODELS[name]
  model = model(config(**{**ODD, **options})).eval()
  if name in UNTIED:
    model.lm_head.weight = torch.nn.Parameter(model.shared.weight.detach().clone())
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(torch.randn_like(parameter) * 0.3)
  return model


def batch(vocab_size):
  rng = np.random.default_rng(0)
  inputs = rng.integers(2, vocab_size, (3, 40)).astype(np.int32)
  inputs[1, 9:] = 0
  targets = rng.integers(2, vocab_size, (3, 25)).astype(np.int32)
  return inputs, np.pad(targets[:, :-1], ((0, 0), (1, 0))), targets


def their_logits(model, inputs, decoder_inputs):
  with torch.no_grad():
    return model(input_ids=torch.tensor(inputs, dtype=torch.long),
                 attention_mask=torch.tensor(inputs > 0),
                 decoder_input_ids=torch.tensor(decoder_inputs, dtype=torch.long)).logits.numpy()


def our_logits(backbone, inputs, decoder_inputs, targets):
  return np.asarray(backbone.module.apply({'params': backbone.params}, inputs, decoder_inputs,
                                          targets))


def close(ours, theirs):
  assert ours.shape == theirs.shape and ours.size > 1000
  np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize('shards', ['one file', 'sharded'])
@pytest.mark.parametrize('name', MODELS)
def test_their_folder_gives_their_logits(tmp_path, name, shards):
  model = their_model(name)
  model.save_pretrained(tmp_path, **({'max_shard_size': '8KB'} if shards == 'sharded' else {}))
  assert (tmp_path / hf.INDEX).exists() == (shards == 'sharded')
  backbone = restore.load_backbone(tmp_path)
  assert backbone.config.logits_via_embedding == (name == 't5_1_0')
  if name == 'byt5':
    assert hf.open_folder(tmp_path).vocabulary == 'bytes'
  tokens = batch(backbone.config.vocab_size)
  close(our_logits(backbone, *tokens), their_logits(model, *tokens[:2]))


@pytest.mark.parametrize('name', ['t5_1_0', 't5_1_1'])
def test_configuration_of_transformers_4(tmp_path, name):
  model = their_model(name)
  model.save_pretrained(tmp_path)
  path = tmp_path / 'config.json'
  values = json.loads(path.read_text())
  values.pop('scale_decoder_outputs')
  values['tie_word_embeddings'] = name == 't5_1_0'
  path.write_text(json.dumps(values))
  tokens = batch(ODD['vocab_size'])
  close(our_logits(restore.load_backbone(tmp_path), *tokens), their_logits(model, *tokens[:2]))


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('name', ['t5_1_0', 't5_1_1', 'mt5'])
def test_they_load_our_folder(tmp_path, name, scan):
  their_model(name).save_pretrained(tmp_path / 'theirs')
  backbone = restore.load_backbone(tmp_path / 'theirs', scan_layers=scan)
  hf.write_folder(tmp_path / 'ours', backbone.config, backbone.params)
  model, found = transformers.AutoModelForSeq2SeqLM.from_pretrained(
      tmp_path / 'ours', output_loading_info=True)
  assert not found['missing_keys'] and not found['unexpected_keys']
  tokens = batch(ODD['vocab_size'])
  close(our_logits(backbone, *tokens), their_logits(model.eval(), *tokens[:2]))


@pytest.mark.parametrize('name', ['t5_1_0', 't5_1_1'])
def test_mutual_round_trip_is_bit_exact(tmp_path, name):
  their_model(name).save_pretrained(tmp_path / 'a')
  first = restore.load_backbone(tmp_path / 'a')
  hf.write_folder(tmp_path / 'b', first.config, first.params)
  transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / 'b').save_pretrained(tmp_path / 'c')
  last = restore.load_backbone(tmp_path / 'c')
  assert dataclasses.asdict(last.config) == dataclasses.asdict(first.config)
  a, c = params_lib.flatten(first.params), params_lib.flatten(last.params)
  assert a.keys() == c.keys() and (HEAD in a) == (name in UNTIED)
  assert sum(np.asarray(a[p]).tobytes() == np.asarray(c[p]).tobytes() for p in a) == len(a) > 40
