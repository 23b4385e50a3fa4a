"""Adapter folders of Hugging Face PEFT: adapter_config.json with adapter_model.safetensors.

Prompt tuning, prefix tuning and LoRA of T5 encoder-decoders, in both directions. How PEFT lays out
its prompts was found by running it (releases 0.20 and 0.21 with transformers 5) and stands at the
functions below. A pickle (.bin) is never opened.
"""

import json
import logging
import pathlib
from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np

from prompt_tuning import atomic_file
from prompt_tuning.checkpoints import (
  hub_folder,
  names,
  peft_lora,
  peft_settings,
  safetensors_file,
)
from prompt_tuning.checkpoints.prompt_file import Prompt
from prompt_tuning.errors import UserError
from prompt_tuning.models.t5 import T5Config
from prompt_tuning.peft import description
from prompt_tuning.peft.lora import LoRA
from prompt_tuning.peft.method import Method
from prompt_tuning.peft.prefix_tuning import PrefixTuning
from prompt_tuning.peft.soft_prompt import SoftPrompt

WEIGHTS = 'adapter_model.safetensors'
_PICKLE = 'adapter_model.bin'
_EMBEDDINGS = 'prompt_embeddings'
_KEPT = ('peft_type', 'peft_version', 'base_model_name_or_path')
_log = logging.getLogger(__name__)


def is_adapter(path) -> bool:
  """Whether `path` looks like an adapter folder."""
  return (pathlib.Path(path) / peft_settings.NAME).is_file()


def read_adapter(folder, config: T5Config) -> Prompt:
  """Reads an adapter for a base.

  Args:
    folder: with adapter_config.json and adapter_model.safetensors.
    config: of the base, to which every tensor has to fit.

  Returns:
    The trained leaves as stored; its `methods` go into `PeftModel(backbone, methods)`.

  Raises:
    UserError: an adapter that has no counterpart here or does not fit the base, weights only as a
      pickle, or a damaged file.
  """
  folder = pathlib.Path(folder)
  settings = peft_settings.read(hub_folder.member(folder, peft_settings.NAME))
  arrays = _weights(folder)
  read = {peft_settings.PROMPT: _read_prompt, peft_settings.PREFIX: _read_prefix,
          peft_settings.LORA: peft_lora.read}[settings.kind]
  methods, leaves = read(settings, arrays, config)
  if dropout := settings.number('lora_dropout', 0.0):
    _log.warning('%s: lora_dropout %s is left out; it matters for further training alone.',
                 settings.path, dropout)
  kept = {name: str(settings.values[name]) for name in _KEPT if settings.values.get(name)}
  return Prompt(leaves, {**description.metadata(methods), **kept}, str(folder))


def _weights(folder):
  """{PEFT's name: array}, not read yet."""
  if not (folder / WEIGHTS).is_file():
    if not (folder / _PICKLE).is_file():
      raise UserError(f'{folder} holds {peft_settings.NAME} and no {WEIGHTS}: copy both.')
    raise UserError(
        f'{folder} holds its weights only as a pickle ({_PICKLE}), which can run code when it is '
        'opened and is never read here. Convert it: `python -c "import torch; from '
        f"safetensors.torch import save_file; save_file({{k: v.contiguous() for k, v in "
        f"torch.load('{folder / _PICKLE}', weights_only=True).items()}}, "
        f"'{folder / WEIGHTS}')\"`.")
  arrays, _ = safetensors_file.read(hub_folder.member(folder, WEIGHTS))
  for array in arrays.values():
    if not (array.dtype == ml_dtypes.bfloat16 or np.issubdtype(array.dtype, np.floating)):
      raise UserError(f'{array.source} is {array.dtype}{list(array.shape)}; trained parameters are '
                      'floating-point numbers.')
  return arrays


def _embeddings(settings, arrays, shape):
  """The one tensor of a prompt or prefix, after its shape was checked."""
  source = settings.path.parent / WEIGHTS
  if set(arrays) != {_EMBEDDINGS}:
    raise UserError(f'{source} holds {sorted(arrays)[:4]}; expected is {_EMBEDDINGS} alone.')
  array = arrays[_EMBEDDINGS]
  if array.shape != shape:
    raise UserError(f'{array.source} has shape {list(array.shape)}; {settings.path.name} and this '
                    f'base need {list(shape)}. Give the base that the adapter was made for.')
  return array.read()


def _submodules(settings) -> int:
  """num_transformer_submodules, for which PEFT takes 2 in an encoder-decoder."""
  if settings.values.get('num_transformer_submodules') is None:
    return 2
  value = settings.integer('num_transformer_submodules')
  if value > 2:
    raise settings.error('num_transformer_submodules', 'an encoder-decoder has 1 or 2.')
  return value


def _read_prompt(settings, arrays, config):
  """Rows [submodules * P, H], of which PEFT puts the first P before the encoder's input.

  With 2 submodules it stores and trains P more that no forward pass reads: a decoder's prompt is
  reserved and then, for this method, not inserted.
  """
  length, submodules = settings.integer('num_virtual_tokens'), _submodules(settings)
  if settings.integer('token_dim') != config.emb_dim:
    raise settings.error('token_dim', f'this base has emb_dim {config.emb_dim}.')
  rows = _embeddings(settings, arrays, (submodules * length, config.emb_dim))
  if submodules == 2:
    _log.warning('%s: num_transformer_submodules is 2, so PEFT keeps %d rows and uses the first '
                 '%d, before the input of the encoder. The others, meant for the decoder, are '
                 'left out: PEFT never reads them.', settings.path, 2 * length, length)
  return (SoftPrompt(length=length),), {names.PROMPT: rows[:length]}


def _slot(layer: int, slots: int) -> int:
  """Which of the file's keys and values decoder layer `layer` gets.

  PEFT doubles the list of slots for an encoder-decoder, hands each layer two slots in turn (one
  for self-attention and one for cross-attention) and then empties the cross-attention's half. So
  layer i gets slot 2i modulo their number: each its own if that is odd, each even one twice else.
  """
  return 2 * layer % slots


def _prefix_path(layer: int, leaf: str) -> str:
  return f'decoder/layers_{layer}/self_attention/core/prefix/{leaf}'


def _read_prefix(settings, arrays, config):
  """Rows [P, slots * 2 * N * D]: in each slot a key and a value of N heads.

  A file made with prefix_projection holds the rows that the projection gave, in the same shape.
  """
  if _submodules(settings) == 1:
    raise settings.error(
        'num_transformer_submodules', 'with 1, PEFT gives self-attention and cross-attention one '
        'cache, so that the decoder mixes its own rows into those of the encoder and fails where '
        'inputs are padded. Prefixes made with 2 are read.')
  length, slots = settings.integer('num_virtual_tokens'), settings.integer('num_layers')
  heads, width = settings.integer('num_attention_heads'), settings.integer('token_dim')
  if (heads, width) != (config.num_heads, config.num_heads * config.head_dim):
    raise settings.error('token_dim', f'with {heads} num_attention_heads; this base has '
                         f'{config.num_heads} heads of {config.head_dim}.')
  depth = config.num_decoder_layers
  if slots < depth:
    raise settings.error('num_layers', f'this base has {depth} decoder layers, and PEFT needs a '
                         'prefix for each.')
  rows = _embeddings(settings, arrays, (length, slots * 2 * width))
  rows = rows.reshape(length, slots, 2, heads, config.head_dim)
  if len({_slot(i, slots) for i in range(depth)}) < depth:
    _log.warning('%s: num_layers is %d, so PEFT gives decoder layers i and i + %d the same prefix '
                 'and never uses every second one it stores. Here each layer gets its own copy, '
                 'and further training sets them apart.', settings.path, slots, slots // 2)
  leaves = {_prefix_path(i, leaf): rows[:, _slot(i, slots), j]
            for i in range(depth) for j, leaf in enumerate(('key', 'value'))}
  return (PrefixTuning(length=length, encoder=False, cross=False),), leaves


def write_adapter(
    folder, methods: Sequence[Method], leaves: Mapping[str, np.ndarray], config: T5Config, *,
    base_name: str = '',
):
  """Writes trained leaves as a folder that PEFT loads with equal logits.

  `PeftModel.from_pretrained(base, folder)` loads it; LoRA with `is_trainable=True` for more
  training (PEFT refuses that for prompts and prefixes of any origin).

  Args:
    folder: where to; it must not exist or be empty.
    methods: a SoftPrompt, a PrefixTuning of the decoder's self-attention, or LoRAs.
    leaves: {per-layer path: array}, all of the methods' and nothing else.
    config: of the base.
    base_name: path or name of the base, for PEFT's records.

  Raises:
    UserError: methods that PEFT has no counterpart for, leaves that are not theirs, or a folder
      that cannot be written.
  """
  settings, arrays = _writer(methods)(methods, leaves, config)
  settings = {**settings, 'task_type': peft_settings.TASK, 'inference_mode': True,
              'base_model_name_or_path': base_name or None, 'revision': None,
              'auto_mapping': None, 'peft_version': None}
  text = json.dumps(settings, indent=2, sort_keys=True) + '\n'
  with atomic_file.new_folder(folder) as temporary:
    safetensors_file.write(temporary / WEIGHTS, arrays, {'format': 'pt'})
    atomic_file.write_atomically(temporary / peft_settings.NAME,
                                 lambda file: file.write(text.encode('utf-8')))


def tensors(methods: Sequence[Method], leaves, config: T5Config) -> dict[str, np.ndarray]:
  """{PEFT's name: array}, what `write_adapter` would write; raises as it does."""
  return _writer(methods)(methods, leaves, config)[1]


def _writer(methods):
  """The function that writes these methods."""
  kinds = {type(method) for method in methods}
  if kinds == {LoRA}:
    return peft_lora.write
  if len(methods) == 1 and kinds == {SoftPrompt}:
    return _write_prompt
  if len(methods) == 1 and kinds == {PrefixTuning}:
    return _write_prefix
  raise UserError(
      f'{list(methods)} cannot be one PEFT adapter: it is one SoftPrompt, one PrefixTuning or '
      'LoRAs. Write .safetensors, or merge what can be merged and export the model.')


def _take(leaves, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
  """The leaves, after their paths and shapes were checked."""
  for path in sorted({*leaves, *shapes}):
    found, shape = leaves.get(path), shapes.get(path)
    if found is None or found.shape != shape:
      raise UserError(f'{path} is {"absent" if found is None else list(found.shape)} and the '
                      f'methods need {"no such leaf" if shape is None else list(shape)}. Give the '
                      'leaves of these methods and of this base.')
  return {path: np.asarray(leaves[path]) for path in shapes}


def _write_prompt(methods, leaves, config):
  method, = methods
  if method.placement != 'prefix':
    raise UserError(f'placement is {method.placement!r}; PEFT puts its prompt before the input, '
                    "which is 'prefix', and nowhere else.")
  rows = _take(leaves, {names.PROMPT: (method.length, config.emb_dim)})[names.PROMPT]
  return {
      'peft_type': peft_settings.PROMPT, 'num_virtual_tokens': method.length,
      'token_dim': config.emb_dim, 'num_transformer_submodules': 1,
      'num_attention_heads': config.num_heads, 'num_layers': config.num_encoder_layers,
      'modules_to_save': None, 'prompt_tuning_init': 'RANDOM', 'prompt_tuning_init_text': None,
      'tokenizer_name_or_path': None, 'tokenizer_kwargs': None,
  }, {_EMBEDDINGS: rows}


def _write_prefix(methods, leaves, config):
  """Writes an odd number of slots, so that each decoder layer has one of its own; see `_slot`."""
  method, = methods
  if method.encoder or method.cross:
    raise UserError('PEFT gives a prefix to the decoder\'s self-attention alone; this one has '
                    f'encoder={method.encoder}, cross={method.cross}. Write .safetensors.')
  depth, shape = config.num_decoder_layers, (method.length, config.num_heads, config.head_dim)
  leaves = _take(leaves, {_prefix_path(i, leaf): shape
                          for i in range(depth) for leaf in ('key', 'value')})
  slots = depth + 1 - depth % 2
  rows = np.zeros((method.length, slots, 2, *shape[1:]), leaves[_prefix_path(0, 'key')].dtype)
  for i in range(depth):
    for j, leaf in enumerate(('key', 'value')):
      rows[:, _slot(i, slots), j] = leaves[_prefix_path(i, leaf)]
  return {
      'peft_type': peft_settings.PREFIX, 'num_virtual_tokens': method.length,
      'token_dim': config.num_heads * config.head_dim, 'num_transformer_submodules': 2,
      'num_attention_heads': config.num_heads, 'num_layers': slots,
      'modules_to_save': None, 'encoder_hidden_size': None, 'prefix_projection': False,
  }, {_EMBEDDINGS: rows.reshape(method.length, -1)}
