"""A small model, its prompt and its adapter in every format, for tests that damage files."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization

from prompt_tuning import params as params_lib
from prompt_tuning.checkpoints import (
  hf,
  names,
  peft_adapter,
  prompt_file,
  restore,
  t5x_writer,
)
from prompt_tuning.models.t5 import T5, T5Config
from prompt_tuning.peft.lora import LoRA
from prompt_tuning.peft.model import abstract_params
from prompt_tuning.peft.soft_prompt import SoftPrompt

CONFIG = T5Config(vocab_size=24, emb_dim=8, num_heads=2, head_dim=3, mlp_dim=10,
                  num_encoder_layers=1, num_decoder_layers=1)
PROMPT = np.arange(24, dtype=np.float32).reshape(3, 8)


@functools.cache
def shapes(config):
  """{path: jax.ShapeDtypeStruct} of a model."""
  return params_lib.flatten(abstract_params(T5(config=config)))


def numbers(shape):
  return np.random.default_rng(math.prod(shape)).normal(size=shape).astype(np.float32)


def params(config=CONFIG):
  return {path: numbers(leaf.shape) for path, leaf in shapes(config).items()}


def load_model(path):
  """Reads a backbone's parameters, and whatever lies beside them."""
  model = restore.open_model(path)
  expected = shapes(model.config)
  restore.read_params(model, params_lib.unflatten(expected), param_dtype='bfloat16')
  rest = [array for path, array in model.arrays.items() if path not in expected]
  for array in (*rest, *model.optimizer_state.values()):
    array.read()


def load_prompt(path):
  prompt = prompt_file.load_prompt(path)
  prompt.check(emb_dim=CONFIG.emb_dim, base_fingerprint='0' * 64)


def load_adapter(path):
  return peft_adapter.read_adapter(path, CONFIG)


def content(folder):
  """{file: bytes}, and the folders and links among them."""
  return {path: path.read_bytes() if path.is_file() and not path.is_symlink() else None
          for path in sorted(folder.rglob('*'))}


@dataclasses.dataclass(frozen=True)
class Sample:
  """One format: `make(folder)` writes it and returns the path that `load` takes."""

  make: Callable[[pathlib.Path], pathlib.Path]
  load: Callable[[pathlib.Path], object]


def t5x(folder):
  slots = {name: np.ones(24 if name == 'v' else 1, np.float32).reshape(-1)
           for name in ('v', 'v_row', 'v_col', 'm')}
  return t5x_writer.write_checkpoint(
      folder, params() | {names.PROMPT: PROMPT}, step=3, optimizer_state={names.PROMPT: slots})


def t5x_inline(folder, arrays=None):
  """As old T5X wrote small parameters: inside the index."""
  index = {'optimizer': {'target': params_lib.unflatten(arrays or params()),
                         'state': {'step': np.int32(3), 'param_states': {}}}}
  folder.mkdir()
  (folder / 'checkpoint').write_bytes(serialization.msgpack_serialize(index))
  return folder


def t5x_scanned(folder):
  """Layers stacked on axis 1, each with its position bias."""
  config = dataclasses.replace(CONFIG, num_encoder_layers=3, num_decoder_layers=2,
                               relative_attention_per_layer=True)
  arrays = {}
  for path, leaf in shapes(dataclasses.replace(config, scan_layers=True)).items():
    stack = path.split('/')[0]
    arrays[path.replace('/layers/', f'/{stack}/')] = (
        np.moveaxis(numbers(leaf.shape), 0, 1) if '/layers/' in path else numbers(leaf.shape))
  return t5x_inline(folder, arrays)


def orbax(folder, database=False):
  tree = {'target': params_lib.unflatten(params()),
          'state': {'step': np.asarray(3), 'param_states': {}}}
  path = folder / 'checkpoint_3'
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=database)) as checkpointer:
    checkpointer.save(path, jax.tree.map(np.asarray, tree))
  return path


def hf_single(folder):
  hf.write_folder(folder, CONFIG, params())
  return folder


def hf_shards(folder):
  hf.write_folder(folder, CONFIG, params(), max_shard_bytes=2000)
  return folder


def prompt_safetensors(folder):
  prompt_file.save_prompt(folder / 'prompt.safetensors', PROMPT, {
      'base_fingerprint': '0' * 64, 'vocabulary_hash': '1' * 64, 'task': 'sst2'})
  return folder / 'prompt.safetensors'


def prompt_npy(folder):
  prompt_file.save_prompt(folder / 'prompt.npy', PROMPT)
  return folder / 'prompt.npy'


def peft_prompt(folder):
  peft_adapter.write_adapter(folder, (SoftPrompt(length=3),), {names.PROMPT: PROMPT}, CONFIG)
  return folder


def peft_lora(folder):
  method = LoRA(rank=2, targets=(r'.*attention/(query|value)',))
  leaves = {}
  for path, leaf in shapes(CONFIG).items():
    if path.endswith(('attention/query/kernel', 'attention/value/kernel')):
      module = path.removesuffix('/kernel')
      leaves[f'{module}/lora/a'] = numbers((leaf.shape[0], 2))
      leaves[f'{module}/lora/b'] = numbers((2, leaf.shape[1]))
  peft_adapter.write_adapter(folder, (method,), leaves, CONFIG)
  return folder


SAMPLES = {
    't5x': Sample(t5x, load_model),
    't5x_inline': Sample(t5x_inline, load_model),
    't5x_scanned': Sample(t5x_scanned, load_model),
    'orbax': Sample(orbax, load_model),
    'orbax_database': Sample(functools.partial(orbax, database=True), load_model),
    'hf': Sample(hf_single, load_model),
    'hf_shards': Sample(hf_shards, load_model),
    'prompt_safetensors': Sample(prompt_safetensors, load_prompt),
    'prompt_npy': Sample(prompt_npy, load_prompt),
    'peft_prompt': Sample(peft_prompt, load_adapter),
    'peft_lora': Sample(peft_lora, load_adapter),
}
