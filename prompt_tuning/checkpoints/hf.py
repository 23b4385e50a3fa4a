"""Hugging Face folders of T5, mT5 and ByT5: config.json with safetensors, one file or several.

Configurations of transformers 4 and 5 are understood. A pickle (.bin, .pt) is never opened.
"""

import json
import logging
import pathlib
import shutil

import numpy as np

from prompt_tuning import params as params_lib
from prompt_tuning.atomic_file import write_atomically
from prompt_tuning.checkpoints import names, safetensors_file
from prompt_tuning.checkpoints import shapes as shapes_lib
from prompt_tuning.checkpoints.stored import StoredArray, StoredModel
from prompt_tuning.errors import UserError
from prompt_tuning.models.t5 import T5Config
from prompt_tuning.vocabulary import BYTES

WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
VOCABULARY = 'spiece.model'
_ACTIVATIONS = {
    'relu': ('relu',),
    'gated-gelu': ('gelu', 'linear'),
    'gated-gelu_new': ('gelu', 'linear'),
}
# Their name, our field, their default (transformers' T5Config).
_FIELDS = (
    ('vocab_size', 'vocab_size', 32128),
    ('d_model', 'emb_dim', 512),
    ('d_kv', 'head_dim', 64),
    ('d_ff', 'mlp_dim', 2048),
    ('num_layers', 'num_encoder_layers', 6),
    ('num_heads', 'num_heads', 8),
    ('relative_attention_num_buckets', 'relative_attention_num_buckets', 32),
    ('relative_attention_max_distance', 'relative_attention_max_distance', 128),
    ('dropout_rate', 'dropout_rate', 0.1),
    ('layer_norm_epsilon', 'layer_norm_epsilon', 1e-6),
)
_log = logging.getLogger(__name__)


def is_folder(path) -> bool:
  """Whether `path` looks like a Hugging Face folder."""
  return (pathlib.Path(path) / 'config.json').is_file()


def open_folder(path) -> StoredModel:
  """Opens a folder without reading its arrays.

  Args:
    path: folder with config.json and model.safetensors, or an index and its shards.

  Raises:
    UserError: another architecture, weights only as a pickle, or a damaged file.
  """
  folder = pathlib.Path(path)
  settings = _read_json(folder / 'config.json')
  if settings.get('model_type') not in ('t5', 'mt5'):
    raise UserError(f'{folder} holds a model of type {settings.get("model_type")!r}; read are '
                    "'t5' (T5 1.0, 1.1, LM-adapted, Flan-T5, ByT5) and 'mt5'.")
  arrays = _rename(_weights(folder), settings)
  found = shapes_lib.config_from_shapes(
      {path: array.shape for path, array in arrays.items()}, str(folder))
  config = _config(settings, tied=names.HEAD not in arrays)
  shapes_lib.check_config(config, found, shapes_lib.ASSUMED, str(folder))
  vocabulary, extra_ids = _vocabulary(folder, settings)
  return StoredModel(source=str(folder), arrays=arrays, config=config, vocabulary=vocabulary,
                     extra_ids=extra_ids)


def _read_json(path) -> dict:
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
    if not isinstance(value, dict):
      raise ValueError('it is not a JSON object')
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f'Cannot read {path}: {error}') from error
  return value


def _weights(folder) -> dict[str, StoredArray]:
  """{Hugging Face name: array} of one file or of every shard."""
  if (folder / WEIGHTS).is_file():
    return safetensors_file.read(folder / WEIGHTS)[0]
  if not (folder / INDEX).is_file():
    raise UserError(_no_weights(folder))
  shards = _read_json(folder / INDEX).get('weight_map')
  if not isinstance(shards, dict):
    raise UserError(f'{folder / INDEX} has no weight_map.')
  opened, arrays = {}, {}
  for name, shard in shards.items():
    if not isinstance(shard, str) or shard in ('', '..') or pathlib.PurePath(shard).name != shard:
      raise UserError(f'{folder / INDEX}: {name} lies in {shard!r}, which is no file name of this '
                      'folder.')
    if shard not in opened:
      opened[shard] = safetensors_file.read(folder / shard)[0]
    if name not in opened[shard]:
      raise UserError(f'{folder / shard} does not hold {name}, which {INDEX} promises.')
    arrays[name] = opened[shard][name]
  return arrays


def _no_weights(folder) -> str:
  pickles = sorted(p.name for pattern in ('*.bin', '*.pt', '*.pth', '*.ckpt')
                   for p in folder.glob(pattern))
  if not pickles:
    return (f'{folder} has a config.json and no weights: expected is {WEIGHTS}, or {INDEX} with '
            'its shards.')
  return (f'{folder} holds its weights only as a pickle ({", ".join(pickles)}), which can run code '
          'when it is opened and is never read here. Convert it where you trust it: `python -c '
          '"from transformers import AutoModelForSeq2SeqLM as M; '
          f"M.from_pretrained('{folder}').save_pretrained('NEW_FOLDER')\"`, and give NEW_FOLDER.")


def _rename(weights, settings) -> dict[str, StoredArray]:
  """Gives parameters their T5X paths; settles the three forms of the head."""
  arrays = {}
  for name, array in weights.items():
    if name in names.EMBEDDING_COPIES and 'shared.weight' in weights:
      continue
    path, transposed = names.from_hf(name) or (name, False)
    arrays[path] = array.transposed() if transposed else array
  embedding = arrays.get(names.EMBEDDING)
  if embedding is None:
    return arrays
  head = arrays.get(names.HEAD)
  if not _scales_logits(settings):
    # Tied without scaling (mT5 as transformers makes it) is an untied head with equal values.
    return {**arrays, names.HEAD: embedding.transposed() if head is None else head}
  if head is None:
    return arrays
  if _same(head.transposed(), embedding):
    return {path: array for path, array in arrays.items() if path != names.HEAD}
  # T5X scales only where the table is the head: the scale goes into the kernel.
  _log.info('%s is untied and its logits are scaled: the scale is multiplied into it.', head.source)
  return {**arrays, names.HEAD: head.scaled(embedding.shape[1]**-0.5)}


def _same(a, b) -> bool:
  """Whether two arrays are equal, bit for bit."""
  return (a.shape == b.shape and a.dtype == b.dtype
          and np.array_equal(np.ascontiguousarray(a.read()).view(np.uint8),
                             np.ascontiguousarray(b.read()).view(np.uint8)))


def _scales_logits(settings) -> bool:
  """Whether logits are scaled by H^-0.5.

  transformers 4 scales where tie_word_embeddings is set. transformers 5 ties every T5 and keeps
  the old meaning in scale_decoder_outputs. mT5 never scales.
  """
  if settings['model_type'] == 'mt5':
    return False
  if 'scale_decoder_outputs' in settings:
    return bool(settings['scale_decoder_outputs'])
  return settings.get('tie_word_embeddings', True) is not False


def _config(settings, tied) -> T5Config:
  default = 'gated-gelu' if settings['model_type'] == 'mt5' else 'relu'
  activation = settings.get('feed_forward_proj', default)
  if activation not in _ACTIVATIONS:
    raise UserError(f'config.json: feed_forward_proj is {activation!r}; known are '
                    f'{list(_ACTIVATIONS)}.')
  fields = {ours: settings.get(theirs, default) for theirs, ours, default in _FIELDS}
  wrong = [theirs for theirs, ours, default in _FIELDS
           if type(fields[ours]) not in (int, type(default))]
  if wrong:
    raise UserError(f'config.json: {", ".join(wrong)} must be numbers.')
  depth = settings.get('num_decoder_layers')
  return T5Config(
      **fields, mlp_activations=_ACTIVATIONS[activation], logits_via_embedding=tied,
      num_decoder_layers=fields['num_encoder_layers'] if depth is None else depth)


def _vocabulary(folder, settings) -> tuple[str | None, int | None]:
  """(SentencePiece file, 'bytes' or None; number of sentinels or None)."""
  path = folder / 'tokenizer_config.json'
  tokenizer = _read_json(path) if path.is_file() else {}
  kind = str(tokenizer.get('tokenizer_class', settings.get('tokenizer_class')))
  if kind.startswith('ByT5'):
    # The sentinels of their tokenizer lie behind the bytes and were never trained on: ids of
    # text are the same without them.
    return BYTES, 0
  if not (folder / VOCABULARY).is_file():
    return None, None
  extra_ids = tokenizer.get('extra_ids', 0 if settings['model_type'] == 'mt5' else None)
  return str(folder / VOCABULARY), extra_ids if type(extra_ids) is int else None


def write_folder(folder, config: T5Config, params, *, vocabulary_file=None, extra_ids=None):
  """Writes a backbone as a folder that transformers loads with equal logits.

  Args:
    folder: where to; made if absent.
    config: the model's shape.
    params: the backbone's parameters, looped or scanned, nothing beside them.
    vocabulary_file: SentencePiece file to put beside the weights, or 'bytes'.
    extra_ids: sentinels of that vocabulary (None: 100; 0 for bytes).

  Raises:
    UserError: a parameter that has no counterpart, such as a prompt, or a folder that cannot be
      written.
  """
  folder = pathlib.Path(folder)
  weights = {}
  for path, array in params_lib.flatten(params_lib.unstack_layers(params)).items():
    known = names.to_hf(path)
    if known is None:
      raise UserError(f'{path} has no place in a Hugging Face T5 folder. Merge what can be merged '
                      'into the backbone, and export a prompt as a file of its own.')
    weights[known[0]] = array.T if known[1] else array
  safetensors_file.write(folder / WEIGHTS, weights, {'format': 'pt'})
  _write_vocabulary(folder, vocabulary_file, extra_ids)
  dtype = np.dtype(weights['shared.weight'].dtype).name
  _write_json(folder / 'config.json', {**_settings(config), 'dtype': dtype, 'torch_dtype': dtype})


def _settings(config) -> dict:
  """config.json of a T5, in words that transformers 4 and 5 both understand."""
  activation = {v: k for k, v in reversed(_ACTIVATIONS.items())}[config.mlp_activations]
  return {
      'architectures': ['T5ForConditionalGeneration'],
      'model_type': 't5',
      'is_encoder_decoder': True,
      **{theirs: getattr(config, ours) for theirs, ours, _ in _FIELDS},
      'num_decoder_layers': config.num_decoder_layers,
      'feed_forward_proj': activation,
      'tie_word_embeddings': config.logits_via_embedding,
      'scale_decoder_outputs': config.logits_via_embedding,
      'initializer_factor': 1.0,
      'pad_token_id': 0,
      'eos_token_id': 1,
      'decoder_start_token_id': 0,
      'use_cache': True,
  }


def _write_vocabulary(folder, vocabulary_file, extra_ids):
  if vocabulary_file is None:
    return
  if str(vocabulary_file) == BYTES:
    tokenizer = {'tokenizer_class': 'ByT5Tokenizer', 'extra_ids': extra_ids or 0}
  else:
    shutil.copyfile(vocabulary_file, folder / VOCABULARY)
    tokenizer = {'tokenizer_class': 'T5Tokenizer',
                 'extra_ids': 100 if extra_ids is None else extra_ids}
  _write_json(folder / 'tokenizer_config.json',
              {**tokenizer, 'pad_token': '<pad>', 'eos_token': '</s>', 'unk_token': '<unk>'})


def _write_json(path, value):
  text = json.dumps(value, indent=2, sort_keys=True) + '\n'
  write_atomically(path, lambda file: file.write(text.encode('utf-8')))
