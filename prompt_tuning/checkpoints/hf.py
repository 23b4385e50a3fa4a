"""Hugging Face folders of T5, mT5, ByT5 and UMT5: config.json with safetensors, one or several.

Configurations of transformers 4 and 5 are understood. A pickle (.bin, .pt) is never opened.
"""

import dataclasses
import hashlib
import json
import logging
import math
import pathlib

import jax.numpy as jnp
import numpy as np

from prompt_tuning.atomic_file import new_folder
from prompt_tuning.checkpoints import (
  hf_config,
  hub_folder,
  json_file,
  names,
  safetensors_file,
  stored,
)
from prompt_tuning.checkpoints import shapes as shapes_lib
from prompt_tuning.checkpoints.stored import StoredArray, StoredModel
from prompt_tuning.errors import UserError
from prompt_tuning.models.t5 import T5, T5Config
from prompt_tuning.peft.model import abstract_params
from prompt_tuning.vocabulary import (
  BYTES,
  SentencePieceVocabulary,
  Vocabulary,
  load_vocabulary,
)

CONFIG = 'config.json'
WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
VOCABULARY = 'spiece.model'
VOCABULARY_JSON = 'tokenizer.json'  # all that transformers 5 writes of it
TOKENIZER = 'tokenizer_config.json'
MAX_SHARD_BYTES = 5_000_000_000  # one file of transformers 4; it loads files of any size
_log = logging.getLogger(__name__)


def is_folder(path) -> bool:
  """Whether `path` looks like a Hugging Face folder."""
  return (pathlib.Path(path) / CONFIG).is_file()


def open_folder(path) -> StoredModel:
  """Opens a folder without reading its arrays.

  Args:
    path: folder with config.json and model.safetensors, or an index and its shards; a snapshot in
      the cache of the Hugging Face hub is one.

  Raises:
    UserError: another architecture, weights only as a pickle, a link out of the folder, or a
      damaged file.
  """
  folder = pathlib.Path(path)
  settings = json_file.read(hub_folder.member(folder, CONFIG))
  if settings.get('model_type') not in list(hf_config.TYPES):  # a list there has no hash
    raise UserError(f'{folder} holds a model of type {repr(settings.get("model_type"))[:99]}; read '
                    "are 't5' (T5 1.0, 1.1, LM-adapted, Flan-T5, ByT5), 'mt5' and 'umt5'.")
  arrays = _rename(_weights(folder), settings)
  found = shapes_lib.config_from_shapes(
      {path: array.shape for path, array in arrays.items()}, str(folder))
  arrays = _settle_head(arrays, settings)
  found = dataclasses.replace(found, logits_via_embedding=names.HEAD not in arrays)
  config = hf_config.read(folder / CONFIG, settings, found)
  shapes_lib.check_config(
      config, found, shapes_lib.ASSUMED, str(folder),
      remedy=f'Its {CONFIG} and its weights belong to different models: copy both from one place.')
  vocabulary, extra_ids = _vocabulary(folder, settings, config)
  return StoredModel(source=str(folder), arrays=arrays, config=config, vocabulary=vocabulary,
                     extra_ids=extra_ids)


def _weights(folder) -> dict[str, StoredArray]:
  """{Hugging Face name: array} of one file or of every shard."""
  if (weights := hub_folder.member(folder, WEIGHTS)).is_file():
    return safetensors_file.read(weights)[0]
  if not hub_folder.member(folder, INDEX).is_file():
    raise UserError(_no_weights(folder))
  shards = json_file.read(hub_folder.member(folder, INDEX)).get('weight_map')
  if not isinstance(shards, dict):
    raise UserError(f'{folder / INDEX} has no weight_map.')
  opened, arrays = {}, {}
  for name, shard in shards.items():
    if not isinstance(shard, str) or shard in ('', '..') or pathlib.PurePath(shard).name != shard:
      raise UserError(f'{folder / INDEX}: {name} lies in {shard!r}, which is no file name of this '
                      'folder.')
    if shard not in opened:
      opened[shard] = safetensors_file.read(hub_folder.member(folder, shard))[0]
    if name not in opened[shard]:
      raise UserError(f'{folder / shard} does not hold {name[:200]}, which {INDEX} promises.')
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
  """Gives parameters their T5X paths and axes; what has none keeps its name."""
  arrays = {}
  for name, array in weights.items():
    if name in names.EMBEDDING_COPIES and 'shared.weight' in weights:
      continue
    known = names.from_hf(name, bias_per_layer=settings['model_type'] == 'umt5')
    if known is None:
      arrays[name] = array
      continue
    if not jnp.issubdtype(array.dtype, jnp.floating):
      raise UserError(f'{array.source} is {array.dtype}: a quantised model is not read. Give the '
                      'model that it was made from.')
    arrays[known[0]] = array.transposed() if known[1] else array
  return arrays


def _settle_head(arrays, settings) -> dict[str, StoredArray]:
  """Brings the head into one of the two forms of T5X: tied and scaled, or neither."""
  embedding, head = arrays[names.EMBEDDING], arrays.get(names.HEAD)
  if not hf_config.scales_logits(settings):
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
  """Whether two arrays are equal, bit for bit; one of them is in memory at a time."""
  return (a.shape == b.shape and a.dtype == b.dtype) and _digest(a) == _digest(b)


def _digest(array) -> bytes:
  return hashlib.sha256(np.ascontiguousarray(array.read()).reshape(-1).view(np.uint8)).digest()


def _vocabulary(folder, settings, config) -> tuple[str | None, int | None]:
  """(SentencePiece file, tokenizer.json, 'bytes' or None; number of sentinels or None)."""
  path = hub_folder.member(folder, TOKENIZER)
  tokenizer = json_file.read(path) if path.is_file() else {}
  kind = str(tokenizer.get('tokenizer_class', settings.get('tokenizer_class')))
  if kind.startswith('ByT5'):
    # The sentinels of their tokenizer lie behind the bytes and were never trained on: ids of
    # text are the same without them.
    return BYTES, 0
  file = next((name for name in (VOCABULARY, VOCABULARY_JSON)
               if hub_folder.member(folder, name).is_file()), None)
  if file is None:
    return None, None
  if file == VOCABULARY_JSON:
    return str(folder / file), None  # it holds its sentinels
  extra_ids = tokenizer.get('extra_ids', 0 if settings['model_type'] == 'mt5' else None)
  if extra_ids is not None and (
      type(extra_ids) is not int or not 0 <= extra_ids <= config.vocab_size):
    raise UserError(f'{folder / TOKENIZER}: extra_ids is {extra_ids!r}; it must be a number from 0 '
                    f'to the {config.vocab_size} rows of the embedding table.')
  return str(folder / file), extra_ids


def write_folder(
    folder,
    config: T5Config,
    params,
    *,
    vocabulary_file=None,
    extra_ids: int | None = None,
    max_shard_bytes: float = MAX_SHARD_BYTES,
):
  """Writes a backbone as a folder that transformers loads with equal logits.

  Parameters are fetched, or read, one by one.

  Args:
    folder: where to; a folder that does not exist or is empty.
    config: the model's shape.
    params: the backbone's parameters and nothing beside them: a tree, looped or scanned, or
      {per-layer path: array or StoredArray}.
    vocabulary_file: SentencePiece file to put beside the weights, or 'bytes'.
    extra_ids: sentinels of that vocabulary, see `vocabulary.load_vocabulary`.
    max_shard_bytes: weights above this are split into files of at most this size (of one
      parameter where that alone is larger).

  Raises:
    UserError: a parameter that has no counterpart, such as a prompt, one that is missing, a
      vocabulary that does not fit, or a folder that cannot be written.
  """
  arrays = stored.from_params(params)
  _check_complete(config, arrays)
  weights = _their_weights(config, arrays)
  settings = hf_config.write(config, weights['shared.weight'].dtype.name)
  vocabulary = None
  if vocabulary_file is not None:
    vocabulary = _open_vocabulary(vocabulary_file, extra_ids, config)
  with new_folder(folder) as temporary:
    _write_weights(temporary, weights, max_shard_bytes)
    _write_json(temporary / CONFIG, settings)
    _write_json(temporary / 'generation_config.json', hf_config.SPECIAL_IDS)
    if vocabulary is not None:
      _write_vocabulary(temporary, vocabulary)


def _check_complete(config, arrays):
  """Refuses parameters that are not exactly those of the model."""
  # Scanned, because one layer is traced faster than all.
  scanned = T5(config=dataclasses.replace(config, scan_layers=True))
  expected = stored.from_params(abstract_params(scanned))
  for path, array in arrays.items():
    if path not in expected:
      raise UserError(f'{path} has no place in a Hugging Face T5 folder. Merge what can be merged '
                      'into the backbone, and export a prompt as a file of its own.')
    if array.shape != expected[path].shape:
      raise UserError(f'{array.source} has shape {list(array.shape)} where the model has '
                      f'{list(expected[path].shape)}.')
  if missing := sorted(set(expected) - set(arrays)):
    raise UserError(f'{len(missing)} parameters of the model are missing, such as {missing[0]}: '
                    'a folder without them would be filled with random numbers.')


def _their_weights(config, arrays) -> dict[str, StoredArray]:
  """Parameters under their Hugging Face names, with their axes."""
  weights = {}
  for path, array in arrays.items():
    name, transposed = names.to_hf(path)
    weights[name] = array.transposed() if transposed else array
  if config.relative_attention_per_layer and not config.logits_via_embedding:
    # transformers 5 scales the logits of every UMT5: the head makes up for it.
    weights['lm_head.weight'] = weights['lm_head.weight'].scaled(config.emb_dim**0.5)
  return weights


def _write_weights(folder, weights, max_shard_bytes):
  """Writes one file, or shards with the index that transformers writes."""
  sizes = {name: math.prod(array.shape) * array.dtype.itemsize for name, array in weights.items()}
  shards = [[]]
  for name, size in sizes.items():
    if shards[-1] and sum(sizes[other] for other in shards[-1]) + size > max_shard_bytes:
      shards.append([])
    shards[-1].append(name)
  if len(shards) == 1:
    safetensors_file.write(folder / WEIGHTS, weights, {'format': 'pt'})
    return
  index = {}
  for number, shard in enumerate(shards, 1):
    file = f'model-{number:05}-of-{len(shards):05}.safetensors'
    safetensors_file.write(folder / file, {name: weights[name] for name in shard},
                           {'format': 'pt'})
    index.update(dict.fromkeys(shard, file))
  _write_json(folder / INDEX, {
      'metadata': {'total_size': sum(sizes.values()),
                   'total_parameters': sum(math.prod(a.shape) for a in weights.values())},
      'weight_map': index})


def _open_vocabulary(path, extra_ids, config) -> Vocabulary:
  """The vocabulary to put beside the weights; says what transformers 5 makes of it."""
  vocabulary = load_vocabulary(path, extra_ids)
  if vocabulary.vocab_size > config.vocab_size:
    raise UserError(f'{path} has {vocabulary.vocab_size} ids and the model {config.vocab_size} '
                    'embeddings. Give the vocabulary of this model.')
  if isinstance(vocabulary, SentencePieceVocabulary):
    if not vocabulary.is_unigram:
      _log.warning('%s is no unigram model, and transformers 5 takes every spiece.model of a T5 '
                   'for one: its tokenizer gives other ids. That of transformers 4 gives the same.',
                   path)
    if config.relative_attention_per_layer:
      _log.warning('Open the tokenizer of this UMT5 with T5Tokenizer in transformers 5, whose '
                   'AutoTokenizer wants a tokenizer.json for it, which is not written.')
  return vocabulary


def _write_vocabulary(folder, vocabulary):
  if isinstance(vocabulary, SentencePieceVocabulary):
    vocabulary.save(folder / VOCABULARY)
  kind = 'T5' if isinstance(vocabulary, SentencePieceVocabulary) else 'ByT5'
  _write_json(folder / TOKENIZER, {
      'tokenizer_class': f'{kind}Tokenizer', 'extra_ids': vocabulary.extra_ids,
      'pad_token': '<pad>', 'eos_token': '</s>', 'unk_token': '<unk>'})


def _write_json(path, value):
  path.write_text(json.dumps(value, indent=2, sort_keys=True) + '\n', encoding='utf-8')
