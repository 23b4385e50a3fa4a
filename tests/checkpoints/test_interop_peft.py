"""Adapters of PEFT, in both directions: equal logits (extra `interop`)."""

import dataclasses
import json
import logging
import warnings

import jax
import numpy as np
import pytest

from prompt_tuning import params as params_lib
from prompt_tuning.checkpoints import peft_adapter, restore, safetensors_file
from prompt_tuning.errors import UserError
from prompt_tuning.peft import model as peft_model
from prompt_tuning.peft.lora import LoRA
from prompt_tuning.peft.prefix_tuning import PrefixTuning
from prompt_tuning.peft.soft_prompt import SoftPrompt

with warnings.catch_warnings():
  warnings.simplefilter('ignore')
  torch = pytest.importorskip('torch', reason='needs the extra interop')
  transformers = pytest.importorskip('transformers', reason='needs the extra interop')
  peft = pytest.importorskip('peft', reason='needs the extra interop')

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings('ignore')]

# head_dim is not emb_dim / heads, and the stacks differ in depth.
ODD = {'vocab_size': 40, 'd_model': 12, 'd_kv': 5, 'num_heads': 3, 'd_ff': 20, 'num_layers': 2,
       'num_decoder_layers': 3, 'relative_attention_num_buckets': 8,
       'relative_attention_max_distance': 20, 'dropout_rate': 0.0}
MODELS = {
    't5_1_0': {},
    't5_1_1': {'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False},
    't5_1_1_even': {'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False,
                    'num_decoder_layers': 4},
    'mt5': {'model_type': 'mt5', 'tie_word_embeddings': False},
    'umt5': {'model_type': 'umt5', 'tie_word_embeddings': False},  # a position bias a layer
}
TASK = {'task_type': 'SEQ_2_SEQ_LM'}


def prompt(**options):
  return peft.PromptTuningConfig(**TASK, num_virtual_tokens=4, **options)


def prefix(slots=3, **options):
  # Without these PEFT takes the encoder's depth and emb_dim, and fails on this model.
  return peft.PrefixTuningConfig(**TASK, num_virtual_tokens=4, num_layers=slots, token_dim=15,
                                 **options)


def lora(**options):
  return peft.LoraConfig(**{**TASK, 'r': 3, 'lora_alpha': 5, 'target_modules': ['q', 'v'],
                            **options})


# Name -> (model, configuration of PEFT).
ADAPTERS = {
    'prompt': ('t5_1_1', prompt(num_transformer_submodules=1)),
    'prompt_1_0': ('t5_1_0', prompt(num_transformer_submodules=1)),
    'prompt_of_both_sides': ('t5_1_1', prompt(num_transformer_submodules=2)),
    'prefix': ('t5_1_1', prefix()),
    'prefix_1_0': ('t5_1_0', prefix()),
    'prefix_shared_slots': ('t5_1_1_even', prefix(slots=4)),
    'prefix_projected': ('t5_1_1', prefix(prefix_projection=True, encoder_hidden_size=7)),
    'prefix_umt5': ('umt5', prefix()),
    'lora_mt5': ('mt5', lora()),
    'lora_all_linear': ('t5_1_1', lora(target_modules='all-linear')),
    'lora_head': ('t5_1_1', lora(target_modules=['q', 'lm_head'])),
    'lora_expression': ('t5_1_1', lora(
        target_modules=r'(encoder|decoder)\.block\.[02].*(SelfAttention|DenseReluDense)\.(q|wi_1)')),
    'lora_some_layers': ('t5_1_1', lora(layers_to_transform=[1])),
    'lora_stabilized': ('t5_1_1', lora(use_rslora=True, exclude_modules=r'encoder.*\.q')),
    'lora_patterns': ('t5_1_1', lora(rank_pattern={'q': 2, r'block\.1\..*\.v': 4},
                                     alpha_pattern={r'encoder.*': 1.5}, use_rslora=True)),
    # None of these changes what a trained adapter of a T5 computes.
    'lora_without_effect': ('t5_1_1', lora(
        task_type=None, fan_in_fan_out=True, lora_dropout=0.5, bias='lora_only',
        init_lora_weights='orthogonal', r=4)),
}


@pytest.fixture(scope='module')
def bases(tmp_path_factory):
  """{name: (folder, our backbone, its logits)} of random bases."""
  found = {}
  for name, options in MODELS.items():
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**{'model_type': 't5', **ODD, **options})
    model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    if not options.get('tie_word_embeddings', True):
      model.lm_head.weight = torch.nn.Parameter(model.shared.weight.detach().clone())
    disturb(model.parameters(), 0.1)
    folder = tmp_path_factory.mktemp(name)
    model.save_pretrained(folder)
    backbone = restore.load_backbone(folder)
    found[name] = folder, backbone, our_logits(backbone)
  return found


def disturb(parameters, scale):
  with torch.no_grad():
    for parameter in parameters:
      parameter.add_(torch.randn_like(parameter) * scale)


def their_base(folder):
  return transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()


def batch():
  rng = np.random.default_rng(0)
  inputs = rng.integers(2, 40, (3, 30)).astype(np.int32)
  inputs[1, 9:] = 0
  targets = rng.integers(2, 40, (3, 25)).astype(np.int32)
  return inputs, np.pad(targets[:, :-1], ((0, 0), (1, 0))), targets


def their_logits(model):
  inputs, decoder_inputs, _ = batch()
  with torch.no_grad():
    return model(input_ids=torch.tensor(inputs, dtype=torch.long),
                 attention_mask=torch.tensor(inputs > 0),
                 decoder_input_ids=torch.tensor(decoder_inputs, dtype=torch.long)).logits.numpy()


def our_logits(backbone, methods=(), leaves=None):
  """Logits of the backbone with leaves filled in; every expected leaf must be given."""
  model = peft_model.PeftModel(backbone.module, methods)
  params = params_lib.merge(backbone.params, params_lib.unflatten(leaves or {}))
  expected = params_lib.flatten(peft_model.abstract_params(model))
  assert {p: x.shape for p, x in expected.items()} == {
      p: x.shape for p, x in params_lib.flatten(params).items()}
  return np.asarray(jax.jit(lambda p: model.apply({'params': p}, *batch()))(params))


def close(ours, theirs):
  assert ours.shape == theirs.shape == (3, 25, 40)
  np.testing.assert_allclose(ours, theirs, atol=2e-5 * max(1, np.abs(theirs).max()))


def their_adapter(base, config, folder):
  """Saves a random adapter of PEFT; returns its model's logits."""
  torch.manual_seed(1)
  model = peft.get_peft_model(their_base(base), dataclasses.replace(config)).eval()
  disturb((p for p in model.parameters() if p.requires_grad), 0.3)
  model.save_pretrained(folder)
  return their_logits(model)


@pytest.mark.parametrize('name', ADAPTERS)
def test_their_adapter_gives_their_logits(tmp_path, bases, name, caplog):
  model, config = ADAPTERS[name]
  folder, backbone, bare = bases[model]
  theirs = their_adapter(folder, config, tmp_path / 'theirs')
  assert np.abs(theirs - bare).max() > 1e-2  # the adapter does something
  assert peft_adapter.is_adapter(tmp_path / 'theirs')
  with caplog.at_level(logging.WARNING):
    adapter = peft_adapter.read_adapter(tmp_path / 'theirs', backbone.config)
  close(our_logits(backbone, adapter.methods, adapter.leaves), theirs)
  for part, names in (('uses the first 4', ['prompt_of_both_sides']),
                      ('the same prefix', ['prefix_shared_slots']),
                      ('lora_dropout', ['lora_without_effect'])):
    assert (part in caplog.text) == (name in names)

  # And back: PEFT loads what we write, and what we read of it is the same to the bit.
  peft_adapter.write_adapter(tmp_path / 'ours', adapter.methods, adapter.leaves, backbone.config)
  close(their_logits(load(folder, tmp_path / 'ours')), theirs)
  again = peft_adapter.read_adapter(tmp_path / 'ours', backbone.config)
  assert set(again.methods) == set(adapter.methods)
  same(again.leaves, adapter.leaves)
  if name not in ('prompt_of_both_sides', 'prefix_shared_slots', 'lora_head'):
    same(stored(tmp_path / 'ours'), stored(tmp_path / 'theirs'))


def load(base, adapter, **options):
  """PEFT's model of a folder; nothing may be missing or unknown to it."""
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    model = peft.PeftModel.from_pretrained(their_base(base), adapter, **options).eval()
  texts = [str(warning.message) for warning in caught]
  assert not [t for t in texts if 'missing' in t or 'nexpected' in t], texts
  return model


def stored(folder):
  arrays, _ = safetensors_file.read(folder / peft_adapter.WEIGHTS)
  return {name: array.read() for name, array in arrays.items()}


def same(a, b):
  assert a.keys() == b.keys() and a
  for name in a:
    assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape
    assert a[name].tobytes() == b[name].tobytes(), name


OURS = {
    'prompt': ('t5_1_1', (SoftPrompt(length=3),)),
    'prefix': ('t5_1_1', (PrefixTuning(length=3, encoder=False, cross=False),)),
    'prefix_even': ('t5_1_1_even', (PrefixTuning(length=3, encoder=False, cross=False),)),
    'lora': ('t5_1_0', (LoRA(rank=3),)),
    'lora_everywhere': ('t5_1_1', (LoRA(targets='.*', rank=2, rank_stabilized=True),)),
    'lora_one_layer': ('t5_1_1', (LoRA(targets='decoder/layers_1/.*/(key|wo)'),)),
    'two_loras': ('t5_1_1', (LoRA(targets='.*/query', rank=2),
                             LoRA(targets='.*/wo', rank=3, alpha=2.5, rank_stabilized=True))),
}


@pytest.mark.parametrize('name', OURS)
def test_they_load_our_adapter_and_go_on_training(tmp_path, bases, name):
  model, methods = OURS[name]
  folder, backbone, _ = bases[model]
  rng = np.random.default_rng(0)
  shapes = params_lib.flatten(peft_model.abstract_params(
      peft_model.PeftModel(backbone.module, methods)))
  leaves = {path: rng.standard_normal(leaf.shape).astype(np.float32) * 0.05
            for path, leaf in shapes.items() if path not in params_lib.flatten(backbone.params)}
  peft_adapter.write_adapter(tmp_path / 'ours', methods, leaves, backbone.config,
                             base_name=str(folder))
  ours = our_logits(backbone, methods, leaves)
  close(ours, their_logits(load(folder, tmp_path / 'ours')))
  same(peft_adapter.read_adapter(tmp_path / 'ours', backbone.config).leaves, leaves)

  if not all(isinstance(method, LoRA) for method in methods):
    return  # PEFT loads prompts and prefixes for inference only
  trained = load(folder, tmp_path / 'ours', is_trainable=True)
  close(ours, their_logits(trained))
  parameters = [p for p in trained.parameters() if p.requires_grad]
  assert parameters
  inputs, decoder_inputs, targets = (torch.tensor(x, dtype=torch.long) for x in batch())
  trained(input_ids=inputs, attention_mask=inputs > 0, decoder_input_ids=decoder_inputs,
          labels=targets).loss.backward()
  assert all(p.grad is not None and p.grad.abs().max() > 0 for p in parameters)
  # What PEFT saves after that, we read again.
  trained.save_pretrained(tmp_path / 'theirs')
  same(peft_adapter.read_adapter(tmp_path / 'theirs', backbone.config).leaves, leaves)


def test_configuration_has_no_field_that_peft_lacks(tmp_path, bases):
  folder, backbone, _ = bases['t5_1_1']
  their_adapter(folder, lora(), tmp_path / 'theirs')
  adapter = peft_adapter.read_adapter(tmp_path / 'theirs', backbone.config)
  peft_adapter.write_adapter(tmp_path / 'ours', adapter.methods, adapter.leaves, backbone.config,
                             base_name=str(folder))
  theirs, ours = (json.loads((tmp_path / name / 'adapter_config.json').read_text())
                  for name in ('theirs', 'ours'))
  assert not ours.keys() - theirs.keys()
  differing = {name for name in ours if ours[name] != theirs[name]} - {'target_modules'}
  assert differing == {'peft_version'} and sorted(theirs['target_modules']) == ['q', 'v']


@pytest.mark.parametrize('config, message', [
    (peft.IA3Config(**TASK), "peft_type is 'IA3'"),
    (peft.AdaLoraConfig(**TASK, total_step=10, target_modules=['q']), "peft_type is 'ADALORA'"),
    (peft.PromptEncoderConfig(**TASK, num_virtual_tokens=4), "peft_type is 'P_TUNING'"),
    (lora(use_dora=True), 'use_dora is True'),
    (lora(lora_bias=True), 'lora_bias is True'),
    (lora(bias='all'), "bias is 'all'"),
    (lora(modules_to_save=['lm_head']), 'modules_to_save is'),
    (lora(target_modules=['shared', 'q']), 'shared.* belongs to no dense layer'),
    (lora(init_lora_weights='pissa'), "init_lora_weights is 'pissa'"),
    (prefix(num_transformer_submodules=1), 'num_transformer_submodules is 1'),
])
def test_what_has_no_counterpart_is_refused_by_name(tmp_path, bases, config, message):
  folder, backbone, _ = bases['t5_1_1']
  peft.get_peft_model(their_base(folder), config).save_pretrained(tmp_path / 'theirs')
  with pytest.raises(UserError, match=message):
    peft_adapter.read_adapter(tmp_path / 'theirs', backbone.config)


def test_head_of_a_tied_base_is_refused(tmp_path, bases):
  folder, backbone, _ = bases['t5_1_0']
  their_adapter(folder, lora(target_modules=['lm_head']), tmp_path / 'theirs')
  with pytest.raises(UserError, match='which is the embedding table in this base'):
    peft_adapter.read_adapter(tmp_path / 'theirs', backbone.config)
