"""Broken and hostile files of every format: one UserError, no write, no memory taken."""

import json
import math
import shutil
import struct
import tracemalloc

import msgpack
import numpy as np
import pytest
from checkpoints import samples

from prompt_tuning.checkpoints import safetensors_file
from prompt_tuning.errors import UserError

MEMORY = 16e6  # bytes; the samples have a thousandth of that
ARRAY = 'target.token_embedder.embedding'
NAME = 'token_embedder/embedding'
NAN, HUGE = math.nan, 10**9


def refuse(name, tmp_path, damage, match):
  """Damages a sample and checks how it is refused."""
  sample = samples.SAMPLES[name]
  path = sample.make(tmp_path / 'sample')
  damage(path)
  before = samples.content(tmp_path)
  tracemalloc.start()
  try:
    with pytest.raises(UserError, match=f'(?s){match}') as caught:
      sample.load(path)
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert str(tmp_path) in str(caught.value) and len(str(caught.value)) < 4000
  assert peak < MEMORY
  assert samples.content(tmp_path) == before


def edit_json(name, change):
  def damage(path):
    value = json.loads((path / name).read_text())
    change(value)
    (path / name).write_text(json.dumps(value))
  return damage


def text(name, content):
  return lambda path: (path / name).write_bytes(content)


def edit_index(change):
  """Changes the msgpack index of a T5X checkpoint."""
  def damage(path):
    file = path / 'checkpoint'
    index = msgpack.unpackb(file.read_bytes(), ext_hook=msgpack.ExtType, raw=False)
    change(index['optimizer']['target'])
    file.write_bytes(msgpack.packb(index))
  return damage


def entry(**fields):
  return edit_index(lambda target: target['token_embedder']['embedding'].update(fields))


def zarray(**fields):
  return edit_json(f'{ARRAY}/.zarray', lambda value: value.update(fields))


def both(*damages):
  return lambda path: [damage(path) for damage in damages]


def move_out(name):
  """Moves a file or folder out of the checkpoint and leaves a link to it."""
  def damage(path):
    outside = path.resolve().parent / 'outside'
    outside.mkdir()
    shutil.move(path / name, outside / 'x')
    (path / name).symlink_to(outside / 'x')
  return damage


def folder_of_chunks(path):
  """The one chunk in a folder of its own, as the other separator has it."""
  (path / ARRAY / '0').mkdir()
  (path / ARRAY / '0.0').rename(path / ARRAY / '0' / '0')


def gigantic(fill, chunks):
  """A prompt of 32 GB in a file of a hundred bytes."""
  shape = {'shape': [HUGE, 8], 'chunks': chunks}
  return both(
      edit_json('target.encoder.prompt.prompt.prompt/.zarray',
                lambda value: value.update(**shape, fill_value=fill)),
      edit_index(lambda target: target['encoder']['prompt']['prompt']['prompt'].update(
          metadata=shape)))


@pytest.mark.parametrize('damage, match', [
    (lambda path: (path / ARRAY / '0.0').write_bytes((path / ARRAY / '0.0').read_bytes()[:20]),
     'Cannot read .*' + NAME),
    (lambda path: (path / ARRAY / '0.0').unlink(), 'Cannot read .*' + NAME),
    (lambda path: (path / ARRAY / '.zarray').unlink(), 'Cannot read .*' + NAME),
    (lambda path: shutil.rmtree(path / ARRAY), 'Cannot read .*' + NAME),
    (text(f'{ARRAY}/0.0', b'\0' * 1000), 'Cannot read .*' + NAME),
    (text(f'{ARRAY}/.zarray', b'[' * 10**5), 'Cannot read .*' + NAME),
    (zarray(dtype='<f99'), 'Cannot read .*' + NAME),
    (zarray(dtype='|O'), 'Cannot read .*' + NAME),
    (zarray(shape=[24, 9]), NAME + '.*The array says'),
    (zarray(shape=[-24, 8]), 'Cannot read .*' + NAME),
    (zarray(chunks=[0, 0]), 'Cannot read .*' + NAME),
    (zarray(chunks=[HUGE, HUGE]), NAME + '.*has chunks of'),
    (zarray(compressor={'id': 'pickle'}), 'Cannot read .*' + NAME),
    (gigantic(None, [HUGE, 8]), 'encoder/prompt/prompt/prompt.*cannot hold'),
    (gigantic(0.0, [HUGE, 8]), 'encoder/prompt/prompt/prompt.*cannot hold'),
    (gigantic(0.0, [3, 8]), 'encoder/prompt/prompt/prompt.*cannot hold'),
    (move_out(f'{ARRAY}/0.0'), NAME + '.*is a link out of'),
    (both(zarray(dimension_separator='/'), folder_of_chunks, move_out(f'{ARRAY}/0')),
     NAME + '.*is a link out of'),
    (move_out('checkpoint'), "'checkpoint' is a link out of"),
    (move_out(ARRAY), 'bad entry for token_embedder/embedding.*link out of'),
    (entry(dtype='float99'), 'bad entry for token_embedder/embedding.*float99'),
    (entry(dtype='object'), 'bad entry for token_embedder/embedding.*object'),
    (entry(driver='json'), 'bad entry for token_embedder/embedding.*json'),
    (entry(metadata={'shape': [-24, 8]}), 'bad entry for token_embedder/embedding'),
    (entry(metadata={'shape': [NAN, 8]}), 'bad entry for token_embedder/embedding'),
    (entry(metadata={'shape': ['24', 8]}), 'bad entry for token_embedder/embedding'),
    (entry(metadata={'shape': 24}), 'bad entry for token_embedder/embedding'),
    (entry(metadata=None), 'bad entry for token_embedder/embedding'),
    (entry(kvstore={'driver': 'file', 'path': '../outside'}), 'bad entry for token_embedder'),
    (entry(kvstore={'driver': 'file', 'path': '/etc'}), 'bad entry for token_embedder'),
    (entry(kvstore={'driver': 'file', 'path': f'{ARRAY}/../../x'}), 'bad entry for token_embedder'),
    (entry(kvstore={'driver': 'file', 'path': 'nul\0'}), 'bad entry for token_embedder'),
    (edit_index(lambda target: target['decoder'].pop('decoder_norm')),
     'does not hold 1 parameters of the model: decoder/decoder_norm/scale'),
    (edit_index(lambda target: target.update(x=[1, 'a'])), 'target/x is a list'),
    (both(edit_index(lambda target: target['decoder']['layers_0']['mlp']['wo']['kernel'].update(
        metadata={'shape': [10, 7]}))), r'wo/kernel is \[10, 7\] in the file and \[10, 8\]'),
])
def test_t5x(tmp_path, damage, match):
  refuse('t5x', tmp_path, damage, match)


def array_entry(shape, dtype='float32', data=b'\0' * 8):
  return msgpack.packb({'optimizer': {'target': {
      'x': msgpack.ExtType(1, msgpack.packb([shape, dtype, data]))}}})


@pytest.mark.parametrize('raw', [
    b'', b'\xc1', b'\xdf\xff\xff\xff\xff', b'\xdd\xff\xff\xff\xff', b'\xc6\xff\xff\xff\xff',
    b'\x81\xa1a\xc9\xff\xff\xff\xff\x01', b'\x81\xa1a\xdb\xff\xff\xff\xff', b'\x81\xa1a' * 10**5,
    b'\x91' * 10**5, b'\x82\xa1a\x01\xa1a\x02', b'\x81\xc0\x01',
    array_entry([10**15]), array_entry([2**32, 2**32, 2**32]), array_entry([-1, -2]),
    array_entry([NAN]), array_entry([1], 'object'), array_entry([1], ['float32']),
    array_entry('12'), array_entry([2], data='12345678'),
    msgpack.packb({'x': {'__msgpack_chunked_array__': True, 'shape': {'0': HUGE}, 'chunks': {}}}),
])
def test_msgpack(tmp_path, raw):
  refuse('t5x_inline', tmp_path, text('checkpoint', raw), 'is not the msgpack index')


def edit_header(name, change):
  """Changes the header of a safetensors file and leaves its data."""
  def damage(path):
    file = path / name if path.is_dir() else path
    raw = file.read_bytes()
    start = 8 + struct.unpack('<Q', raw[:8])[0]
    header = json.loads(raw[8:start])
    new = change(header)
    new = new if isinstance(new, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack('<Q', len(new)) + new + raw[start:])
  return damage


def tensor(**fields):
  return edit_header('model.safetensors', lambda header: header['shared.weight'].update(fields))


def retensor(change):
  """Writes the file anew with other tensors: it is whole, but not the model's."""
  def damage(path):
    file = path / 'model.safetensors'
    arrays = {name: array.read() for name, array in safetensors_file.read(file)[0].items()}
    change(arrays)
    safetensors_file.write(file, arrays)
  return damage


def twice(header):
  raw = json.dumps(header).encode()
  return raw[:-1] + b', ' + json.dumps({'shared.weight': header['shared.weight']}).encode()[1:]


def length(value):
  def damage(path):
    raw = (path / 'model.safetensors').read_bytes()
    (path / 'model.safetensors').write_bytes(struct.pack('<Q', value) + raw[8:])
  return damage


ONE = 'model.safetensors'
BAD_ENTRY = r'model\.safetensors: shared\.weight: bad header entry'


@pytest.mark.parametrize('damage, match', [
    (tensor(dtype='F8'), BAD_ENTRY), (tensor(dtype={}), BAD_ENTRY), (tensor(dtype=None), BAD_ENTRY),
    (tensor(shape=[24, -8]), BAD_ENTRY), (tensor(shape=[-24, -8]), BAD_ENTRY),
    (tensor(shape=[HUGE, HUGE]), BAD_ENTRY), (tensor(shape=[NAN, 8]), BAD_ENTRY),
    (tensor(shape=[24, 7]), BAD_ENTRY), (tensor(shape='24'), BAD_ENTRY),
    (tensor(shape=[24, 8] + [1] * 100), BAD_ENTRY), (tensor(shape=[24.0, 8.0]), BAD_ENTRY),
    (tensor(shape=[10**4000] * 20), BAD_ENTRY), (tensor(shape=[[[24]], 8]), BAD_ENTRY),
    (edit_header(ONE, lambda header: header.update({'x' * 10**5: {}})), 'x: bad header entry'),
    (tensor(data_offsets=[-768, 0]), BAD_ENTRY), (tensor(data_offsets=[0, 10**12]), BAD_ENTRY),
    (tensor(data_offsets=[768, 0]), BAD_ENTRY), (tensor(data_offsets=[0]), BAD_ENTRY),
    (tensor(data_offsets=[0, 768]), 'begins at byte'),
    (tensor(shape=[0, 10**18], data_offsets=[0, 0]), 'begins at byte'),
    (edit_header(ONE, lambda header: header.pop('shared.weight')), 'begins at byte'),
    (edit_header(ONE, lambda header: header.update(x=5)), 'x: bad header entry'),
    (edit_header(ONE, twice), "'shared.weight' stands twice"),
    (edit_header(ONE, lambda _: b'{"a":' * 10**5), 'nested too deeply'),
    (edit_header(ONE, lambda _: b'[1, 2]'), 'not a JSON object'),
    (edit_header(ONE, lambda _: b'{"a": ' + b'9' * 10**5 + b'}'), 'is not a safetensors file'),
    (length(2**63), 'the header claims'), (length(HUGE), 'the header claims'),
    (length(0), 'is not a safetensors file'), (length(100), 'is not a safetensors file'),
    (text('model.safetensors', b'PK\3\4' + b'\0' * 100), 'is not a safetensors file'),
    (lambda path: (path / 'model.safetensors').write_bytes(
        (path / 'model.safetensors').read_bytes()[:-4]), 'bad header entry'),
    (retensor(lambda arrays: arrays.pop('decoder.final_layer_norm.weight')),
     'does not hold 1 parameters of the model: decoder/decoder_norm/scale'),
    (retensor(lambda arrays: arrays.update({'decoder.final_layer_norm.weight': np.ones(9)})),
     r'decoder_norm/scale is \[9\] in the file and \[8\]'),
    (retensor(lambda arrays: arrays.update(
        {f'encoder.block.{"1" * 5000}.layer.0.layer_norm.weight': np.ones(8, np.float32)})),
     'holds encoder layers'),
    (retensor(lambda arrays: arrays.update({'shared.weight': np.ones((0, 10**15), np.float32)})),
     'token_embedder/embedding has shape'),
    (retensor(lambda arrays: arrays.update({'shared.weight': np.ones((10**15, 0), np.float32)})),
     'token_embedder/embedding has shape'),
    (move_out('model.safetensors'), 'is a link out of its folder'),
    (move_out('config.json'), 'is a link out of its folder'),
    (text('config.json', b''), r'Cannot read .*config\.json'),
    (text('config.json', b'[]'), r'Cannot read .*config\.json.*object'),
    (text('config.json', b'{"a":' * 10**5), r'Cannot read .*config\.json.*nested'),
    (text('config.json', b'\xff\xfe'), r'Cannot read .*config\.json'),
    (text('config.json', b'{"d_model": 8, "d_model": 9}'), "'d_model' stands twice"),
    (edit_json('config.json', lambda value: value.update(d_model=NAN)), 'd_model is nan'),
    (edit_json('config.json', lambda value: value.update(d_model=-8)), 'd_model is -8'),
    (edit_json('config.json', lambda value: value.update(d_model='8')), "d_model is '8'"),
    (edit_json('config.json', lambda value: value.update(num_layers=HUGE)), 'num_encoder_layers'),
    (edit_json('config.json', lambda value: value.update(dropout_rate=math.inf)), 'dropout_rate'),
    (edit_json('config.json', lambda value: value.update(model_type=['t5'])), 'of type'),
])
def test_hugging_face(tmp_path, damage, match):
  refuse('hf', tmp_path, damage, match)


def shard(value):
  return edit_json('model.safetensors.index.json',
                   lambda index: index['weight_map'].update({'shared.weight': value}))


@pytest.mark.parametrize('damage, match', [
    (shard('../outside.safetensors'), 'shared.weight lies in'),
    (shard('/etc/passwd'), 'shared.weight lies in'),
    (shard('sub/model.safetensors'), 'shared.weight lies in'),
    (shard('..'), 'shared.weight lies in'), (shard(''), 'shared.weight lies in'),
    (shard(5), 'shared.weight lies in'), (shard(None), 'shared.weight lies in'),
    (shard('nul\0'), 'Cannot follow'), (shard('x' * 5000), 'Cannot follow|not a safetensors'),
    (shard('none.safetensors'), 'none.safetensors is not a safetensors file'),
    (shard('config.json'), 'config.json is not a safetensors file'),
    (edit_json('model.safetensors.index.json', lambda index: index['weight_map'].update(
        {'extra': index['weight_map']['shared.weight']})), 'does not hold extra'),
    (edit_json('model.safetensors.index.json', lambda index: index.update(weight_map=[])),
     'has no weight_map'),
    (text('model.safetensors.index.json', b'{"a":' * 10**5), 'nested too deeply'),
    (move_out('model-00002-of-00004.safetensors'), 'is a link out of its folder'),
    (lambda path: (path / 'model-00002-of-00004.safetensors').unlink(), 'not a safetensors file'),
])
def test_shards(tmp_path, damage, match):
  refuse('hf_shards', tmp_path, damage, match)


@pytest.mark.parametrize('change, match', [
    (lambda header: header['__metadata__'].update(x=5), 'not a map of strings'),
    (lambda header: header.update(__metadata__=['x']), 'not a map of strings'),
    (lambda header: header['encoder/prompt/prompt/prompt'].update(shape=[24]), r'float32\[24\]'),
    (lambda header: header['encoder/prompt/prompt/prompt'].update(dtype='I32'), 'int32'),
    (lambda header: header['encoder/prompt/prompt/prompt'].update(shape=[8, 3]), 'width 3'),
    (lambda header: header['encoder/prompt/prompt/prompt'].update(shape=[3, HUGE]), 'bad header'),
    (lambda header: header['__metadata__'].update(base_fingerprint='1' * 64), 'made for the base'),
])
def test_prompt_safetensors(tmp_path, change, match):
  refuse('prompt_safetensors', tmp_path, edit_header('', change), match)


def test_prompt_in_a_folder_that_is_a_link_out_of_it(tmp_path):
  path = samples.SAMPLES['prompt_safetensors'].make(tmp_path / 'sample')
  assert np.array_equal(samples.prompt_file.load_prompt(path.parent).array, samples.PROMPT)
  move_out(path.name)(path.parent)
  with pytest.raises(UserError, match='is a link out of its folder'):
    samples.load_prompt(path.parent)


def test_metadata_that_is_nested_deeply_stays_text(tmp_path):
  path = samples.SAMPLES['prompt_safetensors'].make(tmp_path)
  edit_header('', lambda header: header['__metadata__'].update(note='[' * 10**5))(path)
  assert samples.prompt_file.load_prompt(path).metadata['note'] == '[' * 10**5


def npy(header, version=1, data=samples.PROMPT.tobytes(), claimed=None):
  raw = header.encode('utf-8') if isinstance(header, str) else repr(header).encode() + b'\n'
  size = len(raw) if claimed is None else claimed
  form = '<H' if version == 1 else '<I'
  return b'\x93NUMPY' + bytes((version, 0)) + struct.pack(form, size) + raw + data


def described(shape=(3, 8), descr='<f4', fortran_order=False):
  return {'descr': descr, 'fortran_order': fortran_order, 'shape': shape}


@pytest.mark.parametrize('raw, match', [
    (npy(described((HUGE, HUGE))), 'Cannot read the prompt file'),
    (npy(described((2**32, 2**32))), 'Cannot read the prompt file'),
    (npy(described((2**62, 2))), 'Cannot read the prompt file'),
    (npy(described((10**400, 8))), 'Cannot read the prompt file'),
    (npy(described((-3, -8))), 'Cannot read the prompt file'),
    (npy(described((NAN, 8))), 'Cannot read the prompt file'),
    (npy(described((3, 9))), 'Cannot read the prompt file'),
    (npy(described(descr='|O')), 'Cannot read the prompt file'),
    (npy(described(descr='<f99')), 'Cannot read the prompt file'),
    (npy(described((6,), '<U4')), 'holds <U4'), (npy(described(descr='<i4')), 'holds int32'),
    (npy(described((3, 4), '<c8')), 'holds complex64'), (npy(described((3, 8), '<M8[s]', )), 'npy'),
    (npy(described((3, 4), [('a', '<f4'), ('b', '<f4')])), 'holds '),
    (npy(described((24,))), r'float32\[24\]'), (npy(described((3, 8, 1))), r'float32\[3, 8, 1\]'),
    (npy(described((4, 6))), 'width 6'), (npy({'descr': '<f4'}), 'Cannot read the prompt file'),
    (npy(described(), 9), 'Cannot read the prompt file'),
    (npy(described(), 2, claimed=2**32 - 1), 'Cannot read the prompt file'),
    (npy(described(), claimed=5), 'Cannot read the prompt file'),
    (npy("__import__('os').getcwd()\n"), 'Cannot read the prompt file'),
    (npy('(' * 9000 + '\n'), 'Cannot read the prompt file'),
    (npy('{' + "'a': " * 2000 + '\n'), 'Cannot read the prompt file'),
    (npy(described(), data=b''), 'Cannot read the prompt file'),
    (b'\x93NUMPY', 'npy'), (b'', 'neither .npy nor .safetensors'),
    (b'\x80\x04\x95\x10' + b'\0' * 20, 'neither .npy nor .safetensors. A pickle'),
])
def test_npy(tmp_path, raw, match):
  refuse('prompt_npy', tmp_path, lambda path: path.write_bytes(raw), match)


@pytest.mark.parametrize('raw', [
    npy(described(fortran_order=True), data=samples.PROMPT.tobytes(order='F')),
    npy(described(), 2), npy(described(), 3)])
def test_npy_of_another_layout_is_the_same_prompt(tmp_path, raw):
  (tmp_path / 'x.npy').write_bytes(raw)
  assert np.array_equal(samples.prompt_file.load_prompt(tmp_path / 'x.npy').array, samples.PROMPT)


def setting(**fields):
  return edit_json('adapter_config.json', lambda value: value.update(fields))


WEIGHTS = 'adapter_model.safetensors'


@pytest.mark.parametrize('name, damage, match', [
    ('peft_prompt', setting(num_virtual_tokens=10**12), 'prompt_embeddings has shape'),
    ('peft_prompt', setting(num_virtual_tokens=NAN), 'num_virtual_tokens is nan'),
    ('peft_prompt', setting(num_virtual_tokens=-3), 'num_virtual_tokens is -3'),
    ('peft_prompt', setting(token_dim=10**30), 'token_dim'),
    ('peft_prompt', setting(num_transformer_submodules=HUGE), 'num_transformer_submodules'),
    ('peft_prompt', setting(peft_type=['LORA']), 'peft_type'),
    ('peft_prompt', move_out(WEIGHTS), 'is a link out of its folder'),
    ('peft_prompt', move_out('adapter_config.json'), 'is a link out of its folder'),
    ('peft_prompt', lambda path: (path / WEIGHTS).unlink(), 'holds adapter_config.json and no'),
    ('peft_prompt', text(WEIGHTS, b'\x80\x04'), 'is not a safetensors file'),
    ('peft_prompt', text('adapter_config.json', b'{"a":' * 10**5), 'nested too deeply'),
    ('peft_prompt', edit_header(WEIGHTS, lambda header: header['prompt_embeddings'].update(
        dtype='I32')), 'prompt_embeddings is int32'),
    ('peft_lora', setting(r=HUGE), 'lora'), ('peft_lora', setting(r=0), 'r is 0'),
    ('peft_lora', setting(lora_alpha=math.inf), 'lora_alpha is inf'),
    ('peft_lora', setting(rank_pattern={'(.*)*(.*)*(.*)*(.*)*x': 3}), 'rank_pattern'),
    ('peft_lora', setting(rank_pattern={'q': 10**12}), 'lora'),
    ('peft_lora', setting(modules_to_save=['lm_head']), 'modules_to_save'),
    ('peft_lora', edit_header(WEIGHTS, lambda header: header.update(
        {'../../x': header.pop(next(name for name in header if 'lora' in name))})), 'x'),
])
def test_adapter(tmp_path, name, damage, match):
  refuse(name, tmp_path, damage, match)


def test_expression_of_an_adapter_that_would_run_for_ever_is_not_run(tmp_path):
  path = samples.SAMPLES['peft_lora'].make(tmp_path / 'sample')
  setting(target_modules='(.*)*(.*)*(.*)*(.*)*(.*)*(.*)*x')(path)
  assert len(samples.load_adapter(path).leaves) == 12
