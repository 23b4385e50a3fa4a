"""Prompt files: both formats, every way they are found in the wild, and what is refused."""

import json
import os
import pathlib
import pickle
import struct

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors

from prompt_tuning import params as params_lib
from prompt_tuning import version
from prompt_tuning.checkpoints import safetensors_file, t5x, t5x_writer
from prompt_tuning.checkpoints.names import PROMPT
from prompt_tuning.checkpoints.prompt_file import load_prompt, save_prompt
from prompt_tuning.errors import UserError
from prompt_tuning.peft import description
from prompt_tuning.peft.soft_prompt import SoftPrompt

ARRAY = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
METADATA = {'method': 'soft_prompt', 'base_fingerprint': 'a' * 64, 'vocabulary_hash': '1' * 64,
            'task': 'sst2', 'metric': {'accuracy': 0.5}, 'seed': 3}


def same(a, b):
  return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize('suffix', ['.npy', '.safetensors'])
def test_round_trip(tmp_path, suffix):
  save_prompt(tmp_path / f'p{suffix}', jnp.asarray(ARRAY), METADATA)
  prompt = load_prompt(str(tmp_path / f'p{suffix}'))
  assert same(prompt.array, ARRAY) and prompt.length == 5
  expected = {**METADATA, 'length': 5, 'library_version': version.__version__}
  assert prompt.metadata == ({} if suffix == '.npy' else expected)
  assert [p.name for p in tmp_path.iterdir()] == [f'p{suffix}']


def test_metadata_is_plain_text_for_other_tools(tmp_path):
  save_prompt(tmp_path / 'p.safetensors', ARRAY, METADATA)
  with safetensors.safe_open(tmp_path / 'p.safetensors', 'numpy') as file:
    assert file.metadata()['task'] == 'sst2' and file.metadata()['length'] == '5'
    assert list(file.keys()) == [PROMPT]


def test_npy_is_what_numpy_writes(tmp_path):
  save_prompt(tmp_path / 'p.npy', ARRAY)
  np.save(tmp_path / 'q.npy', ARRAY)
  assert (tmp_path / 'p.npy').read_bytes() == (tmp_path / 'q.npy').read_bytes()


def test_bfloat16(tmp_path):
  half = ARRAY.astype(ml_dtypes.bfloat16)
  save_prompt(tmp_path / 'p.safetensors', half)
  assert same(load_prompt(tmp_path / 'p.safetensors').array, half)
  save_prompt(tmp_path / 'p.npy', half)
  assert same(load_prompt(tmp_path / 'p.npy').array, half.astype(np.float32))


@pytest.mark.parametrize('name', ['v2.npy', 'encoder.prompt.prompt.prompt'])
def test_bfloat16_as_v2_of_another_tool(tmp_path, name):
  half = ARRAY.astype(ml_dtypes.bfloat16)
  with (tmp_path / name).open('wb') as file:
    np.save(file, half.view('V2'))
  assert same(load_prompt(tmp_path / name).array, half)


@pytest.mark.parametrize('layout', ['ckpt_prompt_gzip', 'ckpt_prompt_raw'])
def test_suffixless_file_of_a_reference_run(golden_dir, layout):
  folder = golden_dir / 't5x_small' / layout / 'numpy_checkpoints' / 'checkpoint_7'
  with np.load(golden_dir / 't5x_small' / 'ckpt_prompt_expected.npz') as arrays:
    expected = arrays['target/' + PROMPT]
  assert same(load_prompt(folder / 'encoder.prompt.prompt.prompt').array, expected)
  assert same(load_prompt(folder).array, expected)
  whole = golden_dir / 't5x_small' / layout
  assert same(load_prompt(whole).array, expected)
  assert load_prompt(whole).source.endswith('checkpoint_7')


@pytest.mark.parametrize('task', ['sst2', 'mrpc', 'rte'])
def test_released_prompts(shared_dir, task):
  path = shared_dir / 'data' / 'released_prompts' / f'{task}.npy'
  if not path.is_file():
    pytest.skip(f'no file {path}')
  prompt = load_prompt(path)
  assert prompt.array.shape == (100, 768) and prompt.array.dtype == np.float32
  assert np.isfinite(prompt.array).all() and prompt.array.std() > 0.1
  prompt.check(emb_dim=768, length=100, base_fingerprint='a' * 64, vocabulary_hash='b' * 64)


TREE = {'encoder': {f'layers_{i}': {'attention': {'query': {'lora': {
    'a': np.full((4, 2), i, np.float32), 'b': np.full((2, 4), 10 + i, np.float32)}}}}
    for i in range(12)}}


@pytest.mark.parametrize('written', ['looped', 'scanned'])
@pytest.mark.parametrize('read', ['looped', 'scanned'])
def test_leaves_of_other_methods(tmp_path, written, read):
  scanned = params_lib.stack_layers(TREE)
  save_prompt(tmp_path / 'p.safetensors', scanned if written == 'scanned' else TREE,
              {'method': 'lora'})
  prompt = load_prompt(tmp_path / 'p.safetensors')
  assert prompt.metadata == {'method': 'lora', 'library_version': version.__version__}
  assert prompt.leaves.keys() == params_lib.flatten(TREE).keys()
  wanted = params_lib.flatten(scanned if read == 'scanned' else TREE)
  filled = params_lib.flatten(prompt.fill(scanned if read == 'scanned' else TREE))
  assert filled.keys() == wanted.keys()
  assert sum(same(filled[path], wanted[path]) for path in wanted) == len(wanted) > 1
  with pytest.raises(UserError, match='no single soft prompt but the leaves of lora'):
    prompt.array  # noqa: B018


@pytest.mark.parametrize('change, message', [
    (lambda flat: flat.pop('encoder/layers_3/attention/query/lora/a'),
     r'layers_3/attention/query/lora/a is \[4, 2\] in the file and absent in the model'),
    (lambda flat: flat.update({'extra/a': np.zeros(3, np.float32)}),
     r'extra/a is absent in the file and \[3\] in the model'),
    (lambda flat: flat.update({'encoder/layers_3/attention/query/lora/a': np.zeros((4, 3))}),
     r'is \[4, 2\] in the file and \[4, 3\] in the model'),
])
def test_leaves_that_do_not_fit(tmp_path, change, message):
  save_prompt(tmp_path / 'p.safetensors', TREE)
  flat = params_lib.flatten(TREE)
  change(flat)
  with pytest.raises(UserError, match=message):
    load_prompt(tmp_path / 'p.safetensors').fill(params_lib.unflatten(flat))


def test_half_a_stack_does_not_fit_a_scanned_model(tmp_path):
  flat = params_lib.flatten(TREE)
  save_prompt(tmp_path / 'p.safetensors', params_lib.unflatten(
      {path: leaf for path, leaf in flat.items() if 'layers_3/' not in path}))
  with pytest.raises(UserError, match='does not fit a scanned model'):
    load_prompt(tmp_path / 'p.safetensors').fill(params_lib.stack_layers(TREE))


def test_checks(tmp_path):
  save_prompt(tmp_path / 'p.safetensors', ARRAY, METADATA)
  prompt = load_prompt(tmp_path / 'p.safetensors')
  prompt.check(emb_dim=8, length=5, base_fingerprint='a' * 64, vocabulary_hash='1' * 64)
  with pytest.raises(UserError, match='width 8 and the model has emb_dim 16'):
    prompt.check(emb_dim=16, allow_mismatch=True)
  with pytest.raises(UserError, match='length 5 and PROMPT_LENGTH is 7.*Set PROMPT_LENGTH = 5'):
    prompt.check(length=7, allow_mismatch=True)
  match = 'the base aaaaaaaaaaaaaaaa.* is bbbbbbbbbbbbbbbb.*--gin.ALLOW_MISMATCH=True'
  with pytest.raises(UserError, match=match):
    prompt.check(base_fingerprint='b' * 64)
  prompt.check(base_fingerprint='b' * 64, allow_mismatch=True)
  with pytest.raises(UserError, match='the vocabulary 1111111111111111.* is 2222222222222222'):
    prompt.check(vocabulary_hash='2' * 64, allow_mismatch=True)


class Trap:
  def __reduce__(self):
    return pathlib.Path.touch, (pathlib.Path('/tmp/prompt_tuning_was_unpickled'),)


def write_pickled_npy(path):
  np.save(path, np.array([Trap()], object), allow_pickle=True)


def write_lying_npy(path):
  header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 768), }\n"
  path.write_bytes(b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header)) + header + b'\0' * 64)


@pytest.mark.parametrize('write', [
    lambda path: path.write_bytes(pickle.dumps(Trap())),
    write_pickled_npy,
    write_lying_npy,
    lambda path: path.write_bytes(b''),
    lambda path: path.write_bytes(b'\x93NUMPY'),
    lambda path: path.write_bytes(b'\x93NUMPY\x01\x00\x08\x00{(((((((('),
    lambda path: path.write_bytes(struct.pack('<Q', 90) + b'{' + b' ' * 20),
    lambda path: np.save(path, ARRAY[0]),
    lambda path: np.save(path, ARRAY[:0]),
    lambda path: np.save(path, ARRAY.astype(np.int32)),
    lambda path: np.save(path, ARRAY.astype(np.complex64)),
    lambda path: None,
])
def test_refused(tmp_path, write):
  write(tmp_path / 'p.npy')
  with pytest.raises(UserError, match=r'p\.npy'):
    load_prompt(tmp_path / 'p.npy')
  assert not pathlib.Path('/tmp/prompt_tuning_was_unpickled').exists()


@pytest.mark.parametrize('leaves', [
    {PROMPT: ARRAY[0]}, {PROMPT: ARRAY.astype(np.int32)}, {'x/lora/a': ARRAY.astype(np.int8)}])
def test_safetensors_that_holds_no_trained_leaves(tmp_path, leaves):
  safetensors_file.write(tmp_path / 'p.safetensors', leaves)
  with pytest.raises(UserError, match='expected are floating-point numbers'):
    load_prompt(tmp_path / 'p.safetensors')


@pytest.mark.parametrize('name', [
    'prompt_embeddings', 'shared.weight', 'base_model.model.encoder.block.0.q.lora_A.weight'])
def test_one_file_of_a_folder_of_other_tools(tmp_path, name):
  safetensors_file.write(tmp_path / 'model.safetensors', {name: ARRAY})
  with pytest.raises(UserError, match=f'model.safetensors .*{name}.* Give that folder'):
    load_prompt(tmp_path / 'model.safetensors')


@pytest.mark.parametrize('name', ['decoder/prompt/prompt/prompt', 'encoder/prompt/shared_prompt'])
def test_checkpoint_with_another_prompt(golden_dir, tmp_path, name):
  reference = t5x.open_checkpoint(golden_dir / 't5x_small' / 'ckpt_prompt_raw')
  arrays = {path: array for path, array in reference.arrays.items() if path != PROMPT}
  t5x_writer.write_checkpoint(tmp_path, {**arrays, name: reference.arrays[PROMPT]})
  with pytest.raises(UserError, match=f'checkpoint_0 .*without {PROMPT}.*{name}'):
    load_prompt(tmp_path)


def test_method_of_leaves_that_are_no_prompt(tmp_path):
  save_prompt(tmp_path / 'p.safetensors', TREE)
  assert 'method' not in load_prompt(tmp_path / 'p.safetensors').metadata


def test_prompt_beside_other_leaves(tmp_path):
  tree = params_lib.merge(TREE, params_lib.unflatten({PROMPT: ARRAY}))
  save_prompt(tmp_path / 'p.safetensors', tree, {'method': 'soft_prompt,lora'})
  prompt = load_prompt(tmp_path / 'p.safetensors')
  prompt.check(emb_dim=8, length=5)
  with pytest.raises(UserError, match='width 8'):
    prompt.check(emb_dim=9)
  assert len(params_lib.flatten(prompt.fill(tree))) == 25


def test_folder_with_several(tmp_path):
  save_prompt(tmp_path / 'a.npy', ARRAY)
  assert same(load_prompt(tmp_path).array, ARRAY)
  save_prompt(tmp_path / 'b.safetensors', ARRAY)
  with pytest.raises(UserError, match='2 prompt files'):
    load_prompt(tmp_path)


@pytest.mark.parametrize('name, array, message', [
    ('p.pt', ARRAY, r'ends in \.safetensors or \.npy'),
    ('p', ARRAY, r'ends in \.safetensors or \.npy'),
    ('p.npy', TREE, r'\.npy holds one soft prompt'),
    ('p.npy', ARRAY[0], r'a \[P, H\] array; this one has shape \[8\]'),
])
def test_not_written(tmp_path, name, array, message):
  with pytest.raises(UserError, match=message):
    save_prompt(tmp_path / name, array)
  assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  save_prompt(tmp_path / 'p.safetensors', ARRAY)
  before = (tmp_path / 'p.safetensors').read_bytes()

  def full(*_):
    raise OSError(28, 'No space left on device')
  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(UserError, match='No space left'):
    save_prompt(tmp_path / 'p.safetensors', ARRAY + 1)
  assert (tmp_path / 'p.safetensors').read_bytes() == before
  assert [p.name for p in tmp_path.iterdir()] == ['p.safetensors']


def test_metadata_of_another_tool_stays_text(tmp_path):
  safetensors_file.write(tmp_path / 'p.safetensors', {PROMPT: ARRAY},
                         {'format': 'pt', 'task': '12', 'config': json.dumps({'a': 1})})
  assert load_prompt(tmp_path / 'p.safetensors').metadata == {
      'format': 'pt', 'task': '12', 'config': {'a': 1}}


def test_a_file_tells_its_methods(tmp_path):
  path = tmp_path / 'p.safetensors'
  method = SoftPrompt(length=3, placement='suffix')
  save_prompt(path, np.ones((3, 4), np.float32), {'methods': description.describe([method])})
  prompt = load_prompt(path)
  assert prompt.methods == (method,)
  prompt.check(length=3, methods=(method,))
  with pytest.raises(UserError, match="placement is 'suffix' in the file and 'prefix' in the conf"):
    prompt.check(length=3, methods=(SoftPrompt(length=3),))


def test_methods_of_a_file_without_settings(tmp_path):
  np.save(tmp_path / 'p.npy', np.ones((3, 4), np.float32))
  assert load_prompt(tmp_path / 'p.npy').methods == (SoftPrompt(length=3),)
  save_prompt(tmp_path / 'p.safetensors', TREE, {'method': 'LoRA'})
  with pytest.raises(UserError, match='does not tell the settings'):
    _ = load_prompt(tmp_path / 'p.safetensors').methods


@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize('value', [np.nan, -np.inf])
def test_a_prompt_of_a_failed_run_is_refused(tmp_path, dtype, value):
  array = ARRAY.astype(dtype)
  array[1, 2] = value
  save_prompt(tmp_path / 'p.safetensors', array)
  with pytest.raises(UserError, match='1 of the 40 numbers of .*NaN or infinite'):
    load_prompt(tmp_path / 'p.safetensors')
