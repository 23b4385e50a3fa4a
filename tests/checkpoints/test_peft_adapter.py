"""Adapter folders made by hand, as PEFT 0.21 writes them; live parity is in test_interop_peft."""

import json
import logging
import math

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from prompt_tuning import params as params_lib
from prompt_tuning.checkpoints import names, peft_adapter, peft_settings, safetensors_file
from prompt_tuning.errors import UserError
from prompt_tuning.models.t5 import T5, T5Config
from prompt_tuning.peft import description
from prompt_tuning.peft import model as peft_model
from prompt_tuning.peft.lora import LoRA
from prompt_tuning.peft.model_tuning import ModelTuning
from prompt_tuning.peft.prefix_tuning import PrefixTuning
from prompt_tuning.peft.soft_prompt import SoftPrompt

CONFIG = T5Config(vocab_size=40, emb_dim=12, num_heads=3, head_dim=5, mlp_dim=20,
                  num_encoder_layers=2, num_decoder_layers=3)
PROMPT = {'peft_type': 'PROMPT_TUNING', 'task_type': 'SEQ_2_SEQ_LM', 'num_virtual_tokens': 4,
          'token_dim': 12, 'num_transformer_submodules': 1, 'num_layers': 2,
          'base_model_name_or_path': 'some/t5', 'peft_version': '0.21.2'}
PREFIX = {'peft_type': 'PREFIX_TUNING', 'task_type': 'SEQ_2_SEQ_LM', 'num_virtual_tokens': 4,
          'token_dim': 15, 'num_transformer_submodules': 2, 'num_layers': 3,
          'num_attention_heads': 3, 'prefix_projection': True}
LORA = {'peft_type': 'LORA', 'task_type': 'SEQ_2_SEQ_LM', 'r': 2, 'lora_alpha': 8,
        'target_modules': ['q', 'v']}
ATTENTIONS = {'encoder.block.{}.layer.0.SelfAttention': ('encoder/layers_{}/attention', 2),
              'decoder.block.{}.layer.0.SelfAttention': ('decoder/layers_{}/self_attention', 3),
              'decoder.block.{}.layer.1.EncDecAttention': (
                  'decoder/layers_{}/encoder_decoder_attention', 3)}


def numbers(*shape, dtype=np.float32):
  return np.random.default_rng(math.prod(shape)).standard_normal(shape).astype(dtype)


def prompt_arrays(rows=4, width=12):
  return {'prompt_embeddings': numbers(rows, width)}


def lora_arrays(rank=2, only=''):
  """q and v of every attention: (our path, A, B) by the module's name."""
  modules = [(f'{theirs.format(i)}.{short}', f'{ours.format(i)}/{name}')
             for theirs, (ours, depth) in ATTENTIONS.items() for i in range(depth)
             for short, name in (('q', 'query'), ('v', 'value'))]
  return {theirs: (ours, numbers(rank, 12) + n, numbers(15, rank) + n)
          for n, (theirs, ours) in enumerate(modules) if only in theirs}


def tensors(loras):
  return {f'base_model.model.{name}.lora_{kind}.weight': array
          for name, (_, *pair) in loras.items() for kind, array in zip('AB', pair)}


def make(folder, settings, arrays):
  folder.mkdir(exist_ok=True)
  (folder / 'adapter_config.json').write_text(json.dumps(settings))
  if arrays is not None:
    safetensors_file.write(folder / 'adapter_model.safetensors', arrays)
  return folder


def stored(folder):
  return {name: array.read()
          for name, array in safetensors_file.read(folder / peft_adapter.WEIGHTS)[0].items()}


def same(a, b):
  assert a.keys() == b.keys() and a
  for name in a:
    assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
    assert a[name].tobytes() == b[name].tobytes(), name


def fits(methods, leaves, **options):
  """The model takes exactly these leaves."""
  model = T5(T5Config(**{**vars(CONFIG), **options}))
  expected = params_lib.flatten(peft_model.abstract_params(peft_model.PeftModel(model, methods)))
  backbone = params_lib.flatten(peft_model.abstract_params(model))
  assert {p: x.shape for p, x in expected.items() if p not in backbone} == {
      p: x.shape for p, x in leaves.items()}


@pytest.mark.parametrize('submodules', [1, 2, None])
def test_prompt(tmp_path, submodules, caplog):
  arrays = prompt_arrays(4 if submodules == 1 else 8)
  folder = make(tmp_path / 'a', {**PROMPT, 'num_transformer_submodules': submodules}, arrays)
  adapter = peft_adapter.read_adapter(folder, CONFIG)
  assert peft_adapter.is_adapter(folder) and not peft_adapter.is_adapter(tmp_path)
  assert adapter.methods == (SoftPrompt(length=4),) and adapter.source == str(folder)
  assert adapter.metadata == {
      'method': 'SoftPrompt', 'methods': description.describe(adapter.methods),
      'peft_type': 'PROMPT_TUNING', 'peft_version': '0.21.2', 'base_model_name_or_path': 'some/t5'}
  same(adapter.leaves, {names.PROMPT: arrays['prompt_embeddings'][:4]})
  assert ('uses the first 4' in caplog.text) == (submodules != 1)


@pytest.mark.parametrize('slots, used', [(3, [0, 2, 1]), (4, [0, 2, 0]), (5, [0, 2, 4])])
def test_prefix_takes_the_slots_that_peft_uses(tmp_path, slots, used, caplog):
  rows = numbers(4, slots * 2 * 15)
  folder = make(tmp_path / 'a', {**PREFIX, 'num_layers': slots}, {'prompt_embeddings': rows})
  adapter = peft_adapter.read_adapter(folder, CONFIG)
  assert adapter.methods == (PrefixTuning(length=4, encoder=False, cross=False),)
  parts = rows.reshape(4, slots, 2, 3, 5)
  same(adapter.leaves, {f'decoder/layers_{i}/self_attention/core/prefix/{leaf}': parts[:, slot, j]
                        for i, slot in enumerate(used) for j, leaf in enumerate(['key', 'value'])})
  fits(adapter.methods, adapter.leaves)
  assert ('the same prefix' in caplog.text) == (slots == 4)


def test_lora(tmp_path):
  loras = lora_arrays()
  adapter = peft_adapter.read_adapter(make(tmp_path / 'a', LORA, tensors(loras)), CONFIG)
  method, = adapter.methods
  assert (method.rank, method.alpha, method.rank_stabilized) == (2, 8.0, False)
  assert method.targets == (
      r'encoder/layers(_\d+)?/attention/(query|value)',
      r'decoder/layers(_\d+)?/self_attention/(query|value)',
      r'decoder/layers(_\d+)?/encoder_decoder_attention/(query|value)')
  same(adapter.leaves, {f'{path}/lora/{leaf}': array.T for path, a, b in loras.values()
                        for leaf, array in (('a', a), ('b', b))})
  fits(adapter.methods, adapter.leaves)
  stacked = params_lib.flatten(params_lib.stack_layers(params_lib.unflatten(adapter.leaves)))
  fits(adapter.methods, stacked, scan_layers=True)


def test_lora_of_some_layers(tmp_path):
  settings = {**LORA, 'layers_to_transform': 1, 'use_rslora': True}
  loras = lora_arrays(only='block.1.')
  adapter = peft_adapter.read_adapter(make(tmp_path / 'a', settings, tensors(loras)), CONFIG)
  method, = adapter.methods
  assert method.targets[0] == 'encoder/layers_(1)/attention/(query|value)'
  assert method.scale == 8 / math.sqrt(2)
  fits(adapter.methods, adapter.leaves)


def test_ranks_and_alphas_by_module_become_several_methods(tmp_path):
  settings = {**LORA, 'rank_pattern': {'encoder.*q': 3}, 'alpha_pattern': {r'^decoder\..*': 1.5}}
  loras = {**lora_arrays(), **lora_arrays(rank=3, only='encoder')}
  loras.update({k: v for k, v in lora_arrays(only='encoder').items() if k.endswith('v')})
  adapter = peft_adapter.read_adapter(make(tmp_path / 'a', settings, tensors(loras)), CONFIG)
  assert [(m.rank, m.alpha, len(m.targets)) for m in adapter.methods] == [
      (3, 8.0, 1), (2, 8.0, 1), (2, 1.5, 2)]
  fits(adapter.methods, adapter.leaves)
  peft_adapter.write_adapter(tmp_path / 'b', adapter.methods, adapter.leaves, CONFIG)
  again = peft_adapter.read_adapter(tmp_path / 'b', CONFIG)
  assert again.methods == adapter.methods
  same(stored(tmp_path / 'b'), tensors(loras))


@pytest.mark.parametrize('targets', [
    r'.*Attention\.(q|v)', '(a+)+$', None, ['SelfAttention.q', 'q', 'v']])
def test_forms_of_target_modules(tmp_path, targets):
  folder = make(tmp_path / 'a', {**LORA, 'target_modules': targets}, tensors(lora_arrays()))
  assert len(peft_adapter.read_adapter(folder, CONFIG).leaves) == 32


def test_copy_of_the_head_is_left_out(tmp_path, caplog):
  arrays = {'base_model.model.lm_head.lora_A.weight': numbers(2, 12),
            'base_model.model.lm_head.lora_B.weight': numbers(40, 2),
            'base_model.model.lm_head.base_layer.weight': numbers(40, 12)}
  folder = make(tmp_path / 'a', {**LORA, 'target_modules': ['lm_head']}, arrays)
  adapter = peft_adapter.read_adapter(folder, CONFIG)
  assert adapter.methods[0].targets == ('decoder/logits_dense',) and len(adapter.leaves) == 2
  assert all(record.levelno < logging.WARNING for record in caplog.records)
  peft_adapter.write_adapter(tmp_path / 'b', adapter.methods, adapter.leaves, CONFIG)
  for option in ({'mlp_activations': ('relu',)}, {'relative_attention_per_layer': True}):
    config = T5Config(**{**vars(CONFIG), **option})
    with pytest.raises(UserError, match='adapts lm_head .* may scale'):
      peft_adapter.read_adapter(folder, config)
    with pytest.raises(UserError, match='adapts lm_head .* may scale'):
      peft_adapter.write_adapter(tmp_path / 'c', adapter.methods, adapter.leaves, config)
  with pytest.raises(UserError, match='lm_head.*is the embedding table in this base'):
    peft_adapter.read_adapter(folder, T5Config(**{**vars(CONFIG), 'logits_via_embedding': True}))


def without(arrays, part):
  left = {name: array for name, array in arrays.items() if part not in name}
  assert len(left) < len(arrays)
  return left


BAD = [
    ({**PROMPT, 'peft_type': 'IA3'}, prompt_arrays(), r"peft_type is 'IA3'; read are PROMPT_TUN"),
    ({**PROMPT, 'peft_type': ['LORA']}, prompt_arrays(), 'peft_type is'),
    ({**PROMPT, 'task_type': 'CAUSAL_LM'}, prompt_arrays(), "task_type is 'CAUSAL_LM'; an adapter"),
    ({**PROMPT, 'task_type': None}, prompt_arrays(), 'task_type is None'),
    ({**LORA, 'task_type': 'SEQ_CLS'}, None, "task_type is 'SEQ_CLS'"),
    ({**PROMPT, 'modules_to_save': ['lm_head']}, prompt_arrays(), 'modules_to_save is'),
    ({**PROMPT, 'token_dim': 16}, prompt_arrays(4, 16), 'token_dim is 16; this base'),
    ({**PROMPT, 'num_virtual_tokens': 5}, prompt_arrays(), r'embeddings has shape \[4, 12\]'),
    ({**PROMPT, 'num_virtual_tokens': 10**30}, prompt_arrays(), 'prompt_embeddings has shape'),
    ({**PROMPT, 'num_virtual_tokens': '4'}, prompt_arrays(), "num_virtual_tokens is '4'; it must"),
    ({**PROMPT, 'num_transformer_submodules': 3}, prompt_arrays(12), 'has 1 or 2'),
    (PROMPT, prompt_arrays() | {'extra': numbers(2)}, r"holds \['extra', 'prompt_embeddings'\]"),
    (PROMPT, {'prompt_embeddings': np.zeros((4, 12), np.int32)}, r'prompt_embeddings is int32'),
    (PROMPT, None, 'holds adapter_config.json and no adapter_model'),
    ({**PREFIX, 'num_transformer_submodules': 1}, prompt_arrays(4, 90), 'gives self-attention and'),
    ({**PREFIX, 'num_layers': 2}, prompt_arrays(4, 60), 'num_layers is 2; this base has 3 decoder'),
    ({**PREFIX, 'num_attention_heads': 5}, prompt_arrays(4, 90), 'this base has 3 heads of 5'),
    ({**PREFIX, 'token_dim': 12}, prompt_arrays(4, 72), 'token_dim is 12'),
    (PREFIX, prompt_arrays(4, 80), r'\[4, 80\]; adapter_config.json and this base need \[4, 90'),
    ({**LORA, 'use_dora': True}, tensors(lora_arrays()), 'use_dora is True; DoRA'),
    ({**LORA, 'bias': 'all'}, tensors(lora_arrays()), "bias is 'all'"),
    ({**LORA, 'init_lora_weights': 'pissa'}, tensors(lora_arrays()), "weights is 'pissa'"),
    ({**LORA, 'r': 0}, tensors(lora_arrays()), 'r is 0; it must be'),
    ({**LORA, 'lora_alpha': math.nan}, tensors(lora_arrays()), 'lora_alpha is nan'),
    ({**LORA, 'use_rslora': 'yes'}, tensors(lora_arrays()), "use_rslora is 'yes'"),
    ({**LORA, 'alpha_pattern': {'(a+)+': 1}}, tensors(lora_arrays()), 'could run for long'),
    ({**LORA, 'rank_pattern': [1]}, tensors(lora_arrays()), r'rank_pattern is \[1\]'),
    ({**LORA, 'r': 3}, tensors(lora_arrays()), r'q.lora_A.weight has shape \[2, 12\]; rank 3'),
    (LORA, {}, 'holds no lora_A and lora_B at all'),
    (LORA, without(tensors(lora_arrays()), 'encoder.block.1.layer.0.SelfAttention.q.lora_B'),
     'lacks .*encoder.block.1.layer.0.SelfAttention.q.lora_B.weight'),
    (LORA, without(tensors(lora_arrays()), 'encoder.block.1.layer.0.SelfAttention.q'),
     'lacks .*encoder.block.1.layer.0.SelfAttention.q.lora_A.weight, which target_modules'),
    ({**LORA, 'target_modules': ['q']}, tensors(lora_arrays()), 'does not name .*SelfAttention.v'),
    (LORA, tensors(lora_arrays()) | {'base_model.model.shared.weight': numbers(40, 12)},
     'shared.weight belongs to no dense layer'),
    (LORA, {name.replace('block.1', 'block.7'): array
            for name, array in tensors(lora_arrays()).items()}, 'block.7.* belongs to no dense'),
]


@pytest.mark.parametrize('settings, arrays, message', BAD)
def test_what_does_not_fit_is_refused_by_name(tmp_path, settings, arrays, message):
  with pytest.raises(UserError, match=message) as error:
    peft_adapter.read_adapter(make(tmp_path / 'a', settings, arrays), CONFIG)
  assert str(tmp_path / 'a') in str(error.value)


def test_pickles_and_broken_files_are_refused(tmp_path):
  folder = make(tmp_path / 'a', PROMPT, None)
  (folder / 'adapter_model.bin').write_bytes(b'cos\nsystem\n.')
  with pytest.raises(UserError, match='is never read here. Convert it: .*weights_only=True'):
    peft_adapter.read_adapter(folder, CONFIG)
  (folder / 'adapter_model.safetensors').write_bytes(b'\xff' * 64)
  with pytest.raises(UserError, match='adapter_model.safetensors is not a safetensors file'):
    peft_adapter.read_adapter(folder, CONFIG)
  for text in ('', '[1]', '{"peft_type": ', '[' * 100_000, '\xff'):
    (folder / 'adapter_config.json').write_text(text, encoding='latin-1')
    with pytest.raises(UserError, match='Cannot read .*adapter_config.json'):
      peft_adapter.read_adapter(folder, CONFIG)
  with open(folder / 'adapter_config.json', 'wb') as file:
    file.truncate(10**9)
  with pytest.raises(UserError, match='more than 10,000,000 bytes'):
    peft_adapter.read_adapter(folder, CONFIG)


def test_expressions_that_could_run_for_long_are_not_run():
  names = 'encoder.block.0.layer.0.SelfAttention.q', 'a' * 60
  quick = r'.*decoder.*(SelfAttention|EncDecAttention).*(q|v)$', r'(.*\.)?(q)', '.*', r'[a-z]+\.q'
  for expression in quick:
    assert peft_settings.matcher(expression) is not None
  assert peft_settings.matcher(quick[1])(names[0])
  for expression in (r'(a+)+$', r'(a+|\\)+$', '(?x)(a+) +$', 'a?' * 30 + 'a' * 30, '(a|a)' * 30,
                     '.*' * 9, '(', 'x{99999999999}', 'a' * 1001, None, ['q']):
    assert peft_settings.matcher(expression) is None


WRITTEN = {
    'prompt': ((SoftPrompt(length=3),), {names.PROMPT: numbers(3, 12)}),
    'bfloat16': ((SoftPrompt(length=3),), {names.PROMPT: numbers(3, 12, dtype=ml_dtypes.bfloat16)}),
    'prefix': ((PrefixTuning(length=2, encoder=False, cross=False),),
               {f'decoder/layers_{i}/self_attention/core/prefix/{leaf}': numbers(2, 3, 5) + i + j
                for i in range(3) for j, leaf in enumerate(['key', 'value'])}),
    'lora': ((LoRA(targets='.*/wo', rank=2, alpha=0.5, rank_stabilized=True),),
             {f'{stack}/layers_{i}/mlp/wo/lora/{leaf}': numbers(*shape) + i
              for stack, depth in (('encoder', 2), ('decoder', 3)) for i in range(depth)
              for leaf, shape in (('a', (20, 2)), ('b', (2, 12)))}),
    'one_layer': ((LoRA(targets='encoder/layers_1/mlp/wi_1', rank=2),),
                  {'encoder/layers_1/mlp/wi_1/lora/a': numbers(12, 2),
                   'encoder/layers_1/mlp/wi_1/lora/b': numbers(2, 20)}),
}


@pytest.mark.parametrize('name', WRITTEN)
def test_round_trip_is_bit_exact(tmp_path, name):
  methods, leaves = WRITTEN[name]
  given = {path: jnp.asarray(leaf) for path, leaf in leaves.items()}
  peft_adapter.write_adapter(tmp_path / 'a', methods, given, CONFIG, base_name='my/t5')
  assert sorted(p.name for p in tmp_path.rglob('*')) == [
      'a', 'adapter_config.json', 'adapter_model.safetensors']
  adapter = peft_adapter.read_adapter(tmp_path / 'a', CONFIG)
  same(adapter.leaves, leaves)
  assert adapter.metadata['base_model_name_or_path'] == 'my/t5'
  peft_adapter.write_adapter(tmp_path / 'b', adapter.methods, adapter.leaves, CONFIG,
                             base_name='my/t5')
  for file in ('adapter_config.json', 'adapter_model.safetensors'):
    assert (tmp_path / 'a' / file).read_bytes() == (tmp_path / 'b' / file).read_bytes()


def test_target_modules_are_short_only_where_that_says_all(tmp_path):
  found = {}
  for name in ('lora', 'one_layer'):
    peft_adapter.write_adapter(tmp_path / name, *WRITTEN[name], CONFIG)
    found[name] = json.loads((tmp_path / name / 'adapter_config.json').read_text())
  assert found['lora']['target_modules'] == ['wo']
  assert found['one_layer']['target_modules'] == [
      'encoder.block.1.layer.1.DenseReluDense.wi_1']
  assert (found['lora']['use_rslora'], found['lora']['lora_alpha']) == (True, 0.5)
  assert found['one_layer']['lora_alpha'] == 16 and not found['one_layer']['use_rslora']


def test_prefix_is_written_to_slots_of_its_own(tmp_path):
  for depth, slots in ((3, 3), (4, 5)):
    config = T5Config(**{**vars(CONFIG), 'num_decoder_layers': depth})
    leaves = {f'decoder/layers_{i}/self_attention/core/prefix/{leaf}': numbers(2, 3, 5) + i + j
              for i in range(depth) for j, leaf in enumerate(['key', 'value'])}
    folder = tmp_path / str(depth)
    peft_adapter.write_adapter(folder, WRITTEN['prefix'][0], leaves, config)
    assert stored(folder)['prompt_embeddings'].shape == (2, slots * 2 * 15)
    same(peft_adapter.read_adapter(folder, config).leaves, leaves)


@pytest.mark.parametrize('methods, leaves, message', [
    ((SoftPrompt(length=3, placement='suffix'),), WRITTEN['prompt'][1], "placement is 'suffix'"),
    ((PrefixTuning(length=2, encoder=False),), {}, "decoder's self-attention alone.*cross=True"),
    ((SoftPrompt(length=3), LoRA()), WRITTEN['prompt'][1], 'cannot be one PEFT adapter'),
    ((ModelTuning(),), {}, 'cannot be one PEFT adapter'),
    ((), {}, 'cannot be one PEFT adapter'),
    ((SoftPrompt(length=4),), WRITTEN['prompt'][1], r'prompt is \[3, 12\] and the .* \[4'),
    ((SoftPrompt(length=3),), {}, 'encoder/prompt/prompt/prompt is absent'),
    ((SoftPrompt(length=3),), {**WRITTEN['prompt'][1], 'x': numbers(2)}, 'x is .2. .* no such'),
    (WRITTEN['lora'][0], without(WRITTEN['lora'][1], 'decoder/layers_2/mlp/wo/lora/a'),
     'decoder/layers_2/mlp/wo/lora/a is absent'),
    ((LoRA(targets='.*/wo', rank=3),), WRITTEN['lora'][1], r'lora/a is \[20, 2\]'),
    (WRITTEN['one_layer'][0], {**WRITTEN['lora'][1], **WRITTEN['one_layer'][1]},
     'belong to no module of this base that'),
    ((LoRA(targets='nothing'),), {}, 'belong to no module'),
])
def test_what_peft_has_no_counterpart_for_is_not_written(tmp_path, methods, leaves, message):
  with pytest.raises(UserError, match=message):
    peft_adapter.write_adapter(tmp_path / 'a', methods, leaves, CONFIG)
  assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
  (tmp_path / 'mine').write_text('mine')
  with pytest.raises(UserError, match='not an empty folder'):
    peft_adapter.write_adapter(tmp_path, *WRITTEN['prompt'], CONFIG)
  assert [p.name for p in tmp_path.iterdir()] == ['mine']


def test_log_tells_when_targets_are_not_followed(tmp_path, caplog):
  folder = make(tmp_path / 'a', {**LORA, 'exclude_modules': ['k']}, tensors(lora_arrays()))
  with caplog.at_level(logging.INFO):
    peft_adapter.read_adapter(folder, CONFIG)
  assert 'the tensors tell what is adapted' in caplog.text
