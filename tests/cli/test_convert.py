"""`import` and `export --input` between all formats, on the reference checkpoint."""

import pathlib
import shutil

import numpy as np
import pytest
from flax import serialization

from prompt_tuning import params as params_lib
from prompt_tuning.checkpoints import prompt_file, restore, stored
from prompt_tuning.checkpoints.names import PROMPT
from prompt_tuning.cli import convert as convert_lib
from prompt_tuning.cli import main
from prompt_tuning.models.t5 import T5
from prompt_tuning.peft import description
from prompt_tuning.peft.lora import LoRA
from prompt_tuning.peft.model import PeftModel, abstract_params
from prompt_tuning.peft.prefix_tuning import PrefixTuning


@pytest.fixture
def t5x(golden_dir):
  """A T5X checkpoint with a prompt of length 6, at step 7."""
  return golden_dir / 't5x_small' / 'ckpt_prompt_gzip'


@pytest.fixture(scope='module')
def prompt(golden_dir):
  with np.load(golden_dir / 't5x_small' / 'ckpt_prompt_expected.npz') as arrays:
    return arrays['target/' + PROMPT]


@pytest.fixture(scope='module')
def hf(golden_dir, tmp_path_factory):
  folder = tmp_path_factory.mktemp('hf') / 'model'
  convert(golden_dir / 't5x_small' / 'ckpt_prompt_gzip', 'hf', folder)
  return folder


def convert(source, to, output, *flags, verb='import'):
  assert main.main([verb, f'--input={source}', f'--to={to}', f'--output={output}',
                    *map(str, flags)]) == 0


def parameters(path):
  """{path: array} of a stored model without its prompt."""
  arrays = restore.open_model(path).arrays
  return {name: array.read() for name, array in arrays.items() if name != PROMPT}


def same(ours, theirs):
  assert ours.keys() == theirs.keys() and len(ours) > 40
  for path, array in ours.items():
    assert array.dtype == theirs[path].dtype
    np.testing.assert_array_equal(array, theirs[path], err_msg=path)


@pytest.mark.parametrize('verb', ['import', 'export'])
def test_model_to_hugging_face_and_back(t5x, hf, tmp_path, verb):
  same(parameters(hf), parameters(t5x))
  convert(hf, 't5x', tmp_path / 'again', '--from=hf', verb=verb)
  same(parameters(tmp_path / 'again'), parameters(t5x))
  assert restore.open_model(hf).config == restore.open_model(t5x).config
  assert restore.open_model(tmp_path / 'again' / 'checkpoint_0').step == 0


def test_t5x_to_t5x_keeps_prompt_and_step(t5x, prompt, tmp_path):
  convert(t5x, 't5x', tmp_path)
  model = restore.open_model(tmp_path)
  assert model.step == 7 and pathlib.Path(model.source).name == 'checkpoint_7'
  np.testing.assert_array_equal(model.arrays[PROMPT].read(), prompt)
  same(parameters(tmp_path), parameters(t5x))
  slots = restore.open_model(t5x).optimizer_state
  assert slots and model.optimizer_state.keys() == slots.keys()
  for path, slot in model.optimizer_state.items():
    np.testing.assert_array_equal(slot.read(), slots[path].read())


def test_state_that_does_not_fit_is_left_out_as_a_whole(t5x, tmp_path, capsys):
  shutil.copytree(t5x, tmp_path / 'a')
  index = tmp_path / 'a' / 'checkpoint_7' / 'checkpoint'
  content = serialization.msgpack_restore(index.read_bytes())
  content['optimizer']['state']['param_states']['encoder']['encoder'] = {'x': {'v': np.ones(2)}}
  index.write_bytes(serialization.msgpack_serialize(content))
  assert len(restore.open_model(tmp_path / 'a').optimizer_state) > 1
  convert(tmp_path / 'a', 't5x', tmp_path / 'b')
  assert 'state is left out' in capsys.readouterr().err
  assert restore.open_model(tmp_path / 'b').optimizer_state == {}


def test_t5x_to_t5x_says_what_it_does(t5x, tmp_path, capsys):
  convert(t5x, 't5x', tmp_path, '--dry_run')
  out = capsys.readouterr().out
  assert out.count(PROMPT) >= 1 and '53 kept, 0 new, 0 missing, 0 unused' in out
  convert(t5x, 't5x', tmp_path)
  assert '53 kept' in capsys.readouterr().err
  for flags in ([], ['--dry_run']):
    assert main.main(['import', f'--input={t5x}', '--to=t5x', f'--output={tmp_path}', *flags]) == 2
    assert 'checkpoint_7 exists' in capsys.readouterr().err


def test_prompt_through_every_format(t5x, hf, prompt, tmp_path):
  convert(t5x, 'npy', tmp_path / 'p.npy', '--step=7')
  convert(tmp_path / 'p.npy', 'safetensors', tmp_path / 'p.safetensors', f'--base={hf}')
  convert(tmp_path / 'p.safetensors', 'peft', tmp_path / 'adapter', f'--base={hf}')
  convert(tmp_path / 'adapter', 'safetensors', tmp_path / 'q.safetensors', f'--base={hf}')
  convert(tmp_path / 'q.safetensors', 't5x', tmp_path / 'whole', f'--base={hf}')
  for name in ('p.npy', 'p.safetensors', 'q.safetensors', 'whole'):
    np.testing.assert_array_equal(prompt_file.load_prompt(tmp_path / name).array, prompt, name)
  metadata = prompt_file.load_prompt(tmp_path / 'q.safetensors').metadata
  assert metadata['base_fingerprint'] == restore.load_backbone(hf).fingerprint
  assert metadata['methods'][0]['length'] == len(prompt)


@pytest.fixture(scope='module')
def lora(hf, tmp_path_factory):
  """A LoRA file for the model in `hf`."""
  method = LoRA(rank=2, targets='.*/(query|wo)')
  model = PeftModel(backbone=T5(config=restore.open_model(hf).config), methods=(method,))
  leaves = params_lib.flatten(params_lib.split(abstract_params(model), model.trainable)[0])
  rng = np.random.default_rng(0)
  leaves = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in leaves.items()}
  path = tmp_path_factory.mktemp('lora') / 'lora.safetensors'
  prompt_file.save_prompt(path, params_lib.unflatten(leaves),
                          {'methods': description.describe([method])})
  return path


@pytest.mark.parametrize('to', ['hf', 't5x'])
def test_lora_is_merged_into_its_base(hf, lora, tmp_path, to):
  convert(lora, to, tmp_path / 'merged', f'--base={hf}')
  base, merged = parameters(hf), parameters(tmp_path / 'merged')
  assert base.keys() == merged.keys()
  leaves = prompt_file.load_prompt(lora).leaves
  changed = {path for path in base if not np.array_equal(base[path], merged[path])}
  assert changed == {path.replace('/lora/a', '/kernel') for path in leaves if path.endswith('a')}
  path = 'encoder/layers_1/attention/query'
  update = leaves[f'{path}/lora/a'] @ leaves[f'{path}/lora/b'] * 8
  np.testing.assert_allclose(merged[f'{path}/kernel'], base[f'{path}/kernel'] + update, rtol=1e-5,
                             atol=1e-6)


def test_merging_reads_a_weight_when_it_is_written(hf, lora, monkeypatch):
  model, prompt, reads = restore.open_model(hf), prompt_file.load_prompt(lora), []
  read = stored.StoredArray.read
  monkeypatch.setattr(stored.StoredArray, 'read',
                      lambda array, dtype=None: reads.append(array.source) or read(array, dtype))
  fitted = convert_lib.fit('hf', model.config, prompt.methods, {**model.arrays, **prompt.leaves})
  assert not reads and fitted.keys() == model.arrays.keys()
  fitted['encoder/layers_1/attention/query/kernel'].read()
  assert reads and all('block.1.layer.0.SelfAttention.q' in source for source in reads)


def test_lora_to_peft_and_back(hf, lora, tmp_path):
  convert(lora, 'peft', tmp_path / 'adapter', f'--base={hf}')
  convert(tmp_path / 'adapter', 'safetensors', tmp_path / 'b.safetensors', f'--base={hf}')
  ours, theirs = (prompt_file.load_prompt(p) for p in (tmp_path / 'b.safetensors', lora))
  assert ours.leaves.keys() == theirs.leaves.keys()
  for path in ours.leaves:
    np.testing.assert_array_equal(ours.leaves[path], theirs.leaves[path])


@pytest.mark.parametrize(('to', 'name'), [('hf', 'm'), ('t5x', 'm'), ('npy', 'p.npy'),
                                          ('safetensors', 'p.safetensors'), ('peft', 'a')])
def test_dry_run_lists_every_parameter(t5x, hf, tmp_path, capsys, to, name):
  convert(t5x, to, tmp_path / name, f'--base={hf}', '--dry_run')
  out = capsys.readouterr().out
  assert not any(tmp_path.iterdir())
  for word in ('parameter', 'source', 'target', 'shape', 'dtype', 'checkpoint_7', 'float32'):
    assert word in out
  if to in ('hf', 't5x'):
    assert 'kept' in out and 'missing' in out
    for path in parameters(t5x):
      assert path in out
    target = {'hf': 'encoder.block.1.layer.0.SelfAttention.q.weight',
              't5x': 'target.encoder.layers_1.attention.query.kernel'}[to]
    assert target in out
  else:
    assert '[6, 32]' in out


def test_another_base_is_refused_unless_allowed(t5x, hf, tmp_path, capsys):
  path = tmp_path / 'p.safetensors'
  convert(t5x, 'safetensors', path, f'--base={hf}')
  found = prompt_file.load_prompt(path)
  prompt_file.save_prompt(path, found.array, {**found.metadata, 'base_fingerprint': 'a' * 64})
  argv = ['import', f'--input={path}', f'--base={hf}', f'--output={tmp_path / "q.safetensors"}']
  assert main.main(argv) == 2
  err = capsys.readouterr().err
  assert 'aaaa' in err and restore.load_backbone(hf).fingerprint[:16] in err
  assert '--allow_mismatch' in err
  assert main.main([*argv, '--allow_mismatch']) == 0
  assert prompt_file.load_prompt(tmp_path / 'q.safetensors').metadata['base_fingerprint'] == (
      restore.load_backbone(hf).fingerprint)


@pytest.mark.parametrize(('flags', 'words'), [
    (['--to=bin', '--output=x'], ('--to=bin', 'peft')),
    (['--from=onnx', '--to=hf', '--output=x'], ('--from=onnx', 'safetensors')),
    (['--from=hf', '--to=npy', '--output=x.npy'], ('--from=hf', 'is t5x')),
    (['--to=npy', '--output=x.safetensors'], ('.npy',)),
    (['--to=npy', '--output=x.npy', '--step=3'], ('step 3', '[7]')),
    (['--to=peft', '--output=x'], ('--base',)),
    (['--to=hf', '--output=x', '--vocabulary=bytes'], ('259', '256')),
    (['--to=hf', '--output=x', '--vocabulary=nothing.model'], ('nothing.model',)),
    (['--to=npy', '--output=x.npy', '--base=nowhere'], ('nowhere',)),
    (['--to=npy', '--output=x.npy', '--base='], ('--base=',)),
    (['--to=npy', '--output=gs://bucket/x.npy'], ('gs://bucket/x.npy', 'local')),
    (['--to=hf', '--output=gs://bucket/x'], ('gs://bucket/x', 'local')),
    (['--to=hf', '--output='], ('--output=', 'local path')),
])
def test_mistakes(t5x, flags, words, capsys, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  assert main.main(['import', f'--input={t5x}', *flags]) == 2
  err = capsys.readouterr().err
  for word in words:
    assert word in err
  assert 'Traceback' not in err and not any(tmp_path.iterdir())


def test_mistakes_with_leaves(hf, lora, tmp_path, capsys):
  def refused(*words, **flags):
    assert main.main(['import', *(f'--{name}={value}' for name, value in flags.items())]) == 2
    err = capsys.readouterr().err
    for word in words:
      assert word in err
  refused('whole model', '--to=t5x', input=hf, to='npy', output=tmp_path / 'x.npy')
  refused('trained leaves alone', '--base', input=lora, to='hf', output=tmp_path / 'x')
  refused('no single soft prompt', input=lora, to='npy', output=tmp_path / 'x.npy')
  refused('not empty', input=lora, to='hf', base=hf, output=hf)
  refused('--input=', 'nothing does not exist', input=tmp_path / 'nothing', to='hf',
          output=tmp_path / 'x')
  refused('--step=3', 'is safetensors', input=lora, step=3, output=tmp_path / 'x.safetensors')
  refused('model.safetensors names its tensors', 'Give that folder',
          input=hf / 'model.safetensors', output=tmp_path / 'x.safetensors')
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(('to', 'dry'), [('hf', ()), ('t5x', ('--dry_run',))])
def test_what_cannot_be_merged(hf, tmp_path, capsys, dry, to):
  method = PrefixTuning(length=2, encoder=False, cross=False)
  leaves = {f'decoder/layers_{i}/self_attention/core/prefix/{leaf}': np.ones((2, 4, 8), np.float32)
            for i in (0, 1) for leaf in ('key', 'value')}
  prefix = tmp_path / 'prefix.safetensors'
  prompt_file.save_prompt(prefix, params_lib.unflatten(leaves),
                          {'methods': description.describe([method])})
  assert main.main(['import', f'--input={prefix}', f'--to={to}', f'--base={hf}',
                    f'--output={tmp_path / "x"}', *dry]) == 2
  err = capsys.readouterr().err
  assert 'PrefixTuning cannot be merged' in err and '--to=safetensors' in err
  assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize(('change', 'to'), [
    ('narrow', 'hf'), ('half', 'safetensors'), ('far', 't5x'), ('far', 'peft')])
def test_leaves_of_another_base(hf, lora, tmp_path, capsys, change, to):
  path, other = 'encoder/layers_0/attention/query/lora/a', tmp_path / 'other.safetensors'
  found = prompt_file.load_prompt(lora)
  leaves = dict(found.leaves)
  leaf = leaves.pop(path)
  if change == 'narrow':
    leaves[path] = leaf[1:]
  elif change == 'far':
    leaves[path.replace('layers_0', 'layers_9')] = leaf
  prompt_file.save_prompt(other, params_lib.unflatten(leaves), found.metadata)
  output = tmp_path / ('x.safetensors' if to == 'safetensors' else 'x')
  assert main.main(['import', f'--input={other}', f'--to={to}', f'--base={hf}',
                    f'--output={output}']) == 2
  err = capsys.readouterr().err
  assert f'--base={hf} is not the model of these leaves' in err and 'other.safetensors' in err
  assert f'{path} is ' + ('[31, 2]' if change == 'narrow' else 'absent') + ' in the file' in err
  assert not output.exists()


def test_paths_that_cannot_be_opened(t5x, tmp_path, capsys):
  (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
  for name in ('loop', 'a' * 300):
    for flags in ([f'--input={tmp_path / name}', f'--output={tmp_path / "x.safetensors"}'],
                  [f'--input={t5x}', '--to=hf', f'--output={tmp_path / name}'],
                  [f'--input={t5x}', '--to=t5x', f'--output={tmp_path / name}'],
                  [f'--input={t5x}', f'--output={tmp_path / "x.safetensors"}',
                   f'--base={tmp_path / name}']):
      assert main.main(['import', *flags]) == 2, flags
      err = capsys.readouterr().err
      assert name in err and 'Traceback' not in err
  assert [path.name for path in tmp_path.iterdir()] == ['loop']


def test_flags_that_change_nothing_are_named(t5x, hf, prompt, tmp_path, capsys):
  convert(t5x, 'npy', tmp_path / 'p.npy', '--vocabulary=bytes', '--allow_mismatch')
  assert 'Not used: --vocabulary, --allow_mismatch' in capsys.readouterr().err
  np.testing.assert_array_equal(np.load(tmp_path / 'p.npy'), prompt)
  convert(hf, 't5x', tmp_path / 'x', f'--base={hf}')
  assert 'Not used: --base' in capsys.readouterr().err


def test_the_bundled_model_by_its_name(tmp_path):
  convert('demo', 't5x', tmp_path)
  same(parameters(tmp_path), parameters('demo'))


def test_export_takes_a_file_or_a_run(t5x, tmp_path, capsys):
  assert main.main(['export', f'--input={t5x}', '--gin.MODEL_DIR=runs/x',
                    f'--output={tmp_path / "x.safetensors"}']) == 2
  assert 'give one of the two' in capsys.readouterr().err
  assert not any(tmp_path.iterdir())
