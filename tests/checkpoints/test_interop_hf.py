"""Folders of transformers, in both directions: equal logits, loss and text (extra `interop`)."""

import dataclasses
import functools
import json
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from prompt_tuning import losses
from prompt_tuning.checkpoints import hf, restore, t5x
from prompt_tuning.checkpoints.names import HEAD, PROMPT
from prompt_tuning.decoding.generate import DecodeConfig, generate_jit
from prompt_tuning.models.t5 import T5, T5Config
from prompt_tuning.vocabulary import load_vocabulary

with warnings.catch_warnings():
  warnings.simplefilter('ignore')
  torch = pytest.importorskip('torch', reason='extra `interop` is not installed')
  transformers = pytest.importorskip('transformers', reason='extra `interop` is not installed')

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings('ignore')]

# No dimension follows from another one.
ODD = {'vocab_size': 40, 'd_model': 12, 'd_kv': 5, 'num_heads': 3, 'd_ff': 20, 'num_layers': 2,
       'num_decoder_layers': 3, 'relative_attention_num_buckets': 8,
       'relative_attention_max_distance': 20, 'dropout_rate': 0.0, 'decoder_start_token_id': 0}
GATED = {'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False}
# Type, options, whether the head is given values of its own.
MODELS = {
    't5_1_0': ('T5', {}, False),
    't5_1_0_untied': ('T5', {}, True),
    't5_1_1': ('T5', GATED, True),
    't5_gated_relu': ('T5', {**GATED, 'feed_forward_proj': 'gated-relu'}, True),
    't5_gelu_new': ('T5', {'feed_forward_proj': 'gelu_new'}, False),
    'mt5': ('MT5', {}, True),
    'mt5_tied': ('MT5', {}, False),
    'byt5': ('T5', {**GATED, 'vocab_size': 384, 'tokenizer_class': 'ByT5Tokenizer'}, True),
    'umt5': ('UMT5', {}, False),
    'umt5_untied': ('UMT5', {}, True),
}
# Their logits are scaled and their head is not the table: we keep the scale in the head.
SCALED_HEADS = ('t5_1_0_untied', 'umt5_untied')
EXACT = sorted(set(MODELS) - set(SCALED_HEADS))
LENGTH = 8  # of generated text


@functools.cache
def their_model(name):
  """A random model with every weight changed, biases and norms too."""
  torch.manual_seed(0)
  kind, options, untied = MODELS[name]
  config = getattr(transformers, f'{kind}Config')(**{**ODD, **options})
  model = getattr(transformers, f'{kind}ForConditionalGeneration')(config).eval()
  if untied:
    model.lm_head.weight = torch.nn.Parameter(model.shared.weight.detach() * 0.3)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(torch.randn_like(parameter) * 0.1)
  return model


def batch(vocab_size):
  """Inputs and targets of odd lengths, rows of different length."""
  rng = np.random.default_rng(0)
  inputs = rng.integers(2, vocab_size, (3, 41)).astype(np.int32)
  inputs[1, 9:] = 0
  targets = rng.integers(2, vocab_size, (3, 25)).astype(np.int32)
  targets[2, 7:] = 0
  return inputs, np.pad(targets[:, :-1], ((0, 0), (1, 0))), targets


def their_outputs(model, inputs, targets):
  """Their logits, loss and the inputs' mask, from targets that they shift themselves."""
  labels = torch.tensor(np.where(targets > 0, targets, -100), dtype=torch.long)
  with torch.no_grad():
    out = model(input_ids=torch.tensor(inputs, dtype=torch.long), labels=labels,
                attention_mask=torch.tensor(inputs > 0))
  return out.logits.numpy(), float(out.loss)


def our_logits(backbone, inputs, decoder_inputs, targets):
  return np.asarray(backbone.module.apply({'params': backbone.params}, inputs, decoder_inputs,
                                          targets))


def close(backbone, model, vocab_size):
  """Compares logits and loss where there are targets."""
  inputs, decoder_inputs, targets = batch(vocab_size)
  ours = our_logits(backbone, inputs, decoder_inputs, targets)
  theirs, their_loss = their_outputs(model, inputs, targets)
  real = targets > 0
  assert ours.shape == theirs.shape and ours[real].size > 1000
  np.testing.assert_allclose(ours[real], theirs[real], rtol=1e-5, atol=2e-5)
  loss, *_ = losses.token_cross_entropy(jnp.asarray(ours), targets, real.astype(np.float32))
  np.testing.assert_allclose(float(loss) / real.sum(), their_loss, rtol=1e-5)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  return tmp_path_factory.mktemp('theirs')


@pytest.fixture
def folder(home, name):
  """What transformers saves of a model; saved once."""
  if not (home / name).exists():
    their_model(name).save_pretrained(home / name)
  return home / name


@pytest.mark.parametrize('name', MODELS)
def test_their_folder_gives_their_logits_and_loss(folder, name):
  backbone = restore.load_backbone(folder)
  assert backbone.config.logits_via_embedding == (name in ('t5_1_0', 't5_gelu_new', 'umt5'))
  assert backbone.config.relative_attention_per_layer == name.startswith('umt5')
  close(backbone, their_model(name), backbone.config.vocab_size)


@pytest.mark.parametrize('name', ['t5_1_0', 'umt5_untied'])
def test_their_shards(tmp_path, folder, name):
  their_model(name).save_pretrained(tmp_path, max_shard_size='8KB')
  assert len(list(tmp_path.glob('model-*.safetensors'))) > 3
  whole, shards = (hf.open_folder(path) for path in (folder, tmp_path))
  assert whole.config == shards.config and whole.arrays.keys() == shards.arrays.keys()
  assert all(shards.arrays[p].read().tobytes() == whole.arrays[p].read().tobytes()
             for p in whole.arrays)


def their_text(model, inputs, eos_token_id, **options):
  """Their ids [B, K, LENGTH] without the start, 0 after the end, and the scores of beams [B, K]."""
  out = model.generate(
      input_ids=torch.tensor(inputs, dtype=torch.long), attention_mask=torch.tensor(inputs > 0),
      # Without a cache: theirs has only as many layers as the encoder.
      max_new_tokens=LENGTH, eos_token_id=eos_token_id, do_sample=False, use_cache=False,
      return_dict_in_generate=True, output_scores=True, **options)
  ids = out.sequences.numpy()[:, 1:]
  ids = np.pad(ids, ((0, 0), (0, LENGTH - ids.shape[1])))
  # Beams that have ended they fill with the end's id, not with padding.
  ended = np.cumsum(ids == eos_token_id, axis=-1) - (ids == eos_token_id) > 0
  ids = np.where(ended, 0, ids).reshape(len(inputs), -1, LENGTH)
  return ids, np.reshape(np.array(out.get('sequences_scores', [])), (len(inputs), -1))


def our_text(backbone, inputs, eos_id, **options):
  out = generate_jit(backbone.module, backbone.params, {'encoder_input_tokens': inputs},
                     DecodeConfig(max_decode_length=LENGTH, eos_id=eos_id, **options))
  return np.asarray(out.sequences), np.asarray(out.scores)


@pytest.mark.parametrize('name', ['t5_1_0', 't5_1_1', 'mt5', 'byt5', 'umt5'])
def test_greedy_text(folder, name):
  backbone, model = restore.load_backbone(folder), their_model(name)
  inputs = batch(backbone.config.vocab_size)[0]
  free, _ = their_text(model, inputs, None)
  eos = int(np.setdiff1d(free[:, 0, 1:-1], free[:, 0, :1])[0])  # ends a row in its middle
  theirs, _ = their_text(model, inputs, eos)
  ours, _ = our_text(backbone, inputs, eos)
  np.testing.assert_array_equal(ours, theirs)
  assert (ours[:, :, -1] == 0).any() and len(np.unique(ours)) > 2


# Their length ** penalty and our ((5 + length) / 6) ** alpha agree where the exponents are 0.
THEIR_BEAMS = {'num_beams': 3, 'num_return_sequences': 3, 'length_penalty': 0.0,
               'early_stopping': 'never'}
OUR_BEAMS = {'strategy': 'beam', 'beam_size': 3, 'alpha': 0.0}


@pytest.mark.parametrize('name', ['t5_1_0', 't5_1_1', 'mt5', 'byt5', 'umt5'])
def test_beams_without_an_end(folder, name):
  backbone, model = restore.load_backbone(folder), their_model(name)
  inputs = batch(backbone.config.vocab_size)[0]
  theirs, their_scores = their_text(model, inputs, None, **THEIR_BEAMS)
  ours, scores = our_text(backbone, inputs, backbone.config.vocab_size, **OUR_BEAMS)
  np.testing.assert_array_equal(ours, theirs)
  np.testing.assert_allclose(scores, their_scores, atol=5e-5)


@pytest.mark.parametrize('name', ['t5_1_0', 't5_1_1'])
def test_beams_with_an_end(folder, name):
  """Of candidates that end they keep those among the 3 best, and we, as T5X, those among the 6."""
  backbone, model = restore.load_backbone(folder), their_model(name)
  inputs = batch(backbone.config.vocab_size)[0]
  eos = int(their_text(model, inputs, None, **THEIR_BEAMS)[0][0, 0, 0])
  theirs, their_scores = their_text(model, inputs, eos, **THEIR_BEAMS)
  ours, scores = our_text(backbone, inputs, eos, **OUR_BEAMS)
  equal = (ours == theirs).all(-1)[:, 0]
  better = scores[:, 0] > their_scores[:, 0]
  assert equal[0] and (equal | better).all() and (ours[0, 0, 1:] == 0).all()
  np.testing.assert_allclose(scores[equal, 0], their_scores[equal, 0], atol=5e-5)


@pytest.mark.parametrize('name', ['t5_1_0', 't5_1_1', 'umt5', 'umt5_untied'])
def test_configuration_of_transformers_4(tmp_path, folder, name):
  """Version 4 has no scale_decoder_outputs: an untied head was never scaled."""
  untied = MODELS[name][2]
  values = {
      'architectures': ['ForConditionalGeneration'], 'model_type': MODELS[name][0].lower(),
      **ODD, 'layer_norm_epsilon': 1e-6, 'initializer_factor': 1.0, 'is_encoder_decoder': True,
      'feed_forward_proj': their_model(name).config.feed_forward_proj, 'use_cache': True,
      'pad_token_id': 0, 'eos_token_id': 1, 'decoder_start_token_id': 0, 'n_positions': 512,
      'output_past': True, 'torch_dtype': 'float32', 'transformers_version': '4.12.0',
      'tie_word_embeddings': not untied}
  (tmp_path / 'config.json').write_text(json.dumps(values))
  (tmp_path / 'model.safetensors').write_bytes((folder / 'model.safetensors').read_bytes())
  backbone = restore.load_backbone(tmp_path)
  model = their_model(name)
  if name == 'umt5_untied':  # version 5 scales it all the same
    head = backbone.params['decoder']['logits_dense']['kernel']
    assert np.asarray(head).tobytes() == model.lm_head.weight.detach().numpy().T.tobytes()
  else:
    close(backbone, model, ODD['vocab_size'])


@pytest.mark.parametrize('name, scan', [(name, False) for name in MODELS] + [('umt5', True),
                                                                           ('t5_1_1', True)])
def test_they_load_our_folder(tmp_path, folder, name, scan):
  backbone = restore.load_backbone(folder, scan_layers=scan)
  hf.write_folder(tmp_path / 'ours', backbone.config, backbone.params,
                  max_shard_bytes=6000 if scan else 10**9)
  assert (tmp_path / 'ours' / hf.INDEX).exists() == scan
  model, found = transformers.AutoModelForSeq2SeqLM.from_pretrained(
      tmp_path / 'ours', output_loading_info=True)
  assert not found['missing_keys'] and not found['unexpected_keys']
  assert (model.config.model_type == 'umt5') == name.startswith('umt5')
  inputs, _, targets = batch(backbone.config.vocab_size)
  logits, loss = their_outputs(model.eval(), inputs, targets)
  expected, expected_loss = their_outputs(their_model(name), inputs, targets)
  assert abs(loss - expected_loss) < 1e-5
  np.testing.assert_allclose(logits, expected, atol=2e-5 if name in SCALED_HEADS else 0)
  np.testing.assert_array_equal(their_text(model, inputs, 1)[0],
                                their_text(their_model(name), inputs, 1)[0])


@pytest.mark.parametrize('name', EXACT)
def test_mutual_round_trip_is_bit_exact(tmp_path, folder, name):
  first = hf.open_folder(folder)
  hf.write_folder(tmp_path / 'b', first.config, first.arrays)
  transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / 'b').save_pretrained(tmp_path / 'c')
  last = hf.open_folder(tmp_path / 'c')
  assert dataclasses.asdict(last.config) == dataclasses.asdict(first.config)
  assert first.arrays.keys() == last.arrays.keys()
  assert (HEAD in first.arrays) != first.config.logits_via_embedding
  assert sum(first.arrays[p].read().tobytes() == last.arrays[p].read().tobytes()
             for p in first.arrays) == len(first.arrays) > 40
  a, c = (safetensors.numpy.load_file(path / hf.WEIGHTS) for path in (folder, tmp_path / 'c'))
  assert sorted(a) == sorted(c) and all(a[n].tobytes() == c[n].tobytes() for n in a)


@pytest.mark.parametrize('name', ['t5_1_1'])
def test_bfloat16(tmp_path, folder, name):
  backbone = restore.load_backbone(folder, param_dtype='bfloat16')
  hf.write_folder(tmp_path, backbone.config, backbone.params)
  model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
  assert model.dtype == torch.bfloat16
  close(backbone, model.float().eval(), ODD['vocab_size'])


def test_golden_t5x_checkpoint_becomes_a_folder(tmp_path, shared_dir):
  source = t5x.open_checkpoint(shared_dir / 'golden' / 't5x_small' / 'ckpt_prompt_gzip')
  arrays = {path: array for path, array in source.arrays.items() if path != PROMPT}
  assert len(arrays) == len(source.arrays) - 1
  hf.write_folder(tmp_path, source.config, arrays)
  model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
  golden = np.load(shared_dir / 'golden' / 't5x_small' / 'small_noprompt.npz')
  inputs, targets = golden['encoder_input_tokens'], golden['decoder_target_tokens']
  logits, _ = their_outputs(model, inputs, targets)
  real = targets > 0
  assert real.sum() > 10
  np.testing.assert_allclose(logits[real], golden['logits'][real], atol=2e-5)


@pytest.mark.parametrize('kind', ['pieces', 'bytes'])
def test_tokenizers(tmp_path, shared_dir, kind):
  config = T5Config(vocab_size=32128, emb_dim=4, num_heads=1, head_dim=2, mlp_dim=4,
                    num_encoder_layers=1, num_decoder_layers=1)
  params = restore.random_params(T5(config=config))
  file = hf.BYTES if kind == 'bytes' else shared_dir / 'data' / 'vocab' / 't5.sentencepiece.model'
  hf.write_folder(tmp_path, config, params, vocabulary_file=file)
  texts = ['The quick brown fox,  twice.', 'caf\u00e9 <extra_id_0> and 3 <extra_id_1>']
  model = hf.open_folder(tmp_path)
  vocabulary = load_vocabulary(model.vocabulary, model.extra_ids)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
  if kind == 'bytes':
    texts = [text.replace('<extra_id_', '<') for text in texts]  # no sentinels among the bytes
  ours = [[*ids, 1] for ids in vocabulary.encode_batch(texts)]
  assert ours == tokenizer(texts).input_ids


def test_a_folder_with_a_tokenizer_json_alone(tmp_path, shared_dir):
  """What `save_pretrained` of transformers 5 leaves of a T5 tokenizer."""
  config = T5Config(vocab_size=32128, emb_dim=4, num_heads=1, head_dim=2, mlp_dim=4,
                    num_encoder_layers=1, num_decoder_layers=1)
  file = shared_dir / 'data' / 'vocab' / 't5.sentencepiece.model'
  hf.write_folder(tmp_path, config, restore.random_params(T5(config=config)), vocabulary_file=file)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
  (tmp_path / hf.VOCABULARY).unlink()
  tokenizer.save_pretrained(tmp_path)
  assert not (tmp_path / hf.VOCABULARY).exists(), 'save_pretrained writes it: this tests nothing'
  model = hf.open_folder(tmp_path)
  ours = load_vocabulary(model.vocabulary, model.extra_ids)
  assert ours.hash == load_vocabulary(file).hash
  texts = ['The quick brown  fox, twice.', 'caf\u00e9 \ufb01n <extra_id_0> and 3 <extra_id_1>']
  assert [[*ids, 1] for ids in ours.encode_batch(texts)] == tokenizer(texts).input_ids
