"""Backbones and expected trees: nothing filled silently, everything cast and placed on the way."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prompt_tuning import params as params_lib
from prompt_tuning import partitioning
from prompt_tuning.checkpoints import hf, restore, t5x
from prompt_tuning.errors import UserError
from prompt_tuning.models import int8
from prompt_tuning.models.t5 import T5, T5Config
from prompt_tuning.peft.model import PeftModel, abstract_params
from prompt_tuning.peft.soft_prompt import SoftPrompt
from prompt_tuning.vocabulary import ByteVocabulary

PROMPT = 'encoder/prompt/prompt/prompt'
CONFIG = T5Config(vocab_size=256, emb_dim=32, num_heads=4, head_dim=8, mlp_dim=64,
                  num_encoder_layers=2, num_decoder_layers=2)


@pytest.fixture(scope='module')
def folder(golden_dir):
  return golden_dir / 't5x_small' / 'ckpt_prompt_raw'


@pytest.fixture(scope='module')
def expected(golden_dir):
  with np.load(golden_dir / 't5x_small' / 'ckpt_prompt_expected.npz') as arrays:
    return {name.removeprefix('target/'): arrays[name]
            for name in arrays if name.startswith('target/')}


def arrays(config):
  """Parameters of any shape, without compiling an initialisation."""
  rng = np.random.default_rng(0)
  return params_lib.unflatten({
      path: rng.normal(size=leaf.shape).astype(np.float32)
      for path, leaf in params_lib.flatten(abstract_params(T5(config=config))).items()})


def same(a, b):
  a, b = np.asarray(a), np.asarray(b)
  return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_backbone_from_t5x(folder, expected):
  backbone = restore.load_backbone(folder)
  assert backbone.config == CONFIG and backbone.base_step == 7 and backbone.vocabulary is None
  flat = params_lib.flatten(backbone.params)
  assert flat.keys() == expected.keys() - {PROMPT}
  assert sum(same(flat[path], expected[path]) for path in flat) == 52


def test_backbone_gives_the_reference_logits(folder, golden_dir):
  backbone = restore.load_backbone(folder)
  with np.load(golden_dir / 't5x_small' / 'small_noprompt.npz') as golden:
    targets = golden['decoder_target_tokens']
    logits = jax.jit(backbone.module.apply)(
        {'params': backbone.params}, golden['encoder_input_tokens'],
        golden['decoder_input_tokens'], targets)
    valid = targets > 0
    assert valid.sum() > 10
    np.testing.assert_allclose(np.asarray(logits)[valid], golden['logits'][valid], atol=1e-5)


@pytest.mark.parametrize('source', ['t5x', 'hf'])
def test_scan_stacks_in_memory_alone(folder, expected, tmp_path, source):
  looped = restore.load_backbone(folder)
  if source == 'hf':
    hf.write_folder(tmp_path, looped.config, looped.params)
    folder = tmp_path
  scanned = restore.load_backbone(folder, scan_layers=True)
  flat = params_lib.flatten(scanned.params)
  assert all('layers_' not in path for path in flat)
  stacked = flat['decoder/layers/mlp/wo/kernel']
  assert stacked.shape == (2, 64, 32)
  unstacked = params_lib.flatten(params_lib.unstack_layers(scanned.params))
  assert sum(same(unstacked[path], expected[path]) for path in unstacked) == 52
  assert scanned.fingerprint == looped.fingerprint


def test_params_as_bfloat16(folder, expected):
  backbone = restore.load_backbone(folder, param_dtype='bfloat16', dtype='bfloat16')
  assert backbone.config.dtype == 'bfloat16'
  flat = params_lib.flatten(backbone.params)
  assert sum(same(flat[path], expected[path].astype(ml_dtypes.bfloat16)) for path in flat) == 52


def test_a_prompt_in_the_checkpoint(folder, expected):
  model = PeftModel(backbone=T5(config=CONFIG), methods=(SoftPrompt(length=6),))
  params, report = restore.read_params(folder, abstract_params(model), param_dtype='bfloat16',
                                       optional=model.trainable)
  assert len(report.kept) == 53 and not (report.new or report.unused or report.missing)
  assert same(params_lib.flatten(params)[PROMPT], expected[PROMPT])  # a method's leaf is not cast


def test_a_model_without_the_prompt_reports_it_unused(folder):
  _, report = restore.read_params(folder, abstract_params(T5(config=CONFIG)))
  assert report.unused == (PROMPT,) and len(report.kept) == 52
  assert f'52 kept, 0 new, 0 missing, 1 unused; unused: {PROMPT}' in str(report)


def test_new_leaves_are_left_to_initialise(tmp_path):
  hf.write_folder(tmp_path, CONFIG, arrays(CONFIG))
  model = PeftModel(backbone=T5(config=CONFIG), methods=(SoftPrompt(length=6),))
  params, report = restore.read_params(tmp_path, abstract_params(model), optional=model.trainable)
  assert report.new == (PROMPT,) and PROMPT not in params_lib.flatten(params)
  assert len(report.kept) == len(params_lib.flatten(params)) == 52


def test_prompt_of_another_length_is_refused(folder):
  model = PeftModel(backbone=T5(config=CONFIG), methods=(SoftPrompt(length=5),))
  with pytest.raises(UserError, match=rf'{PROMPT} is \[6, 32\] in the file and \[5, 32\] in the m'):
    restore.read_params(folder, abstract_params(model), optional=model.trainable)


@pytest.mark.parametrize('scan', [False, True])
def test_missing_is_an_error(folder, scan):
  deeper = dataclasses.replace(CONFIG, num_decoder_layers=3, scan_layers=scan)
  with pytest.raises(UserError, match=r'does not hold 14 parameters.*decoder/layers_2/'):
    restore.read_params(folder, abstract_params(T5(config=deeper)))


def test_optional_does_not_excuse_half_a_stack(folder):
  deeper = dataclasses.replace(CONFIG, num_decoder_layers=3, scan_layers=True)
  with pytest.raises(UserError, match='does not hold 14 parameters'):
    restore.read_params(folder, abstract_params(T5(config=deeper)), optional=('.*',))


@pytest.mark.parametrize('scan', [False, True])
def test_wrong_shape_names_both(folder, scan):
  wider = dataclasses.replace(CONFIG, mlp_dim=65, scan_layers=scan)
  with pytest.raises(UserError) as error:
    restore.read_params(folder, abstract_params(T5(config=wider)))
  assert 'layers_0/mlp/wi_0/kernel is [32, 64] in the file and [32, 65] in the model' in str(
      error.value)


def test_configuration_that_disagrees(folder):
  with pytest.raises(UserError, match='emb_dim is 64 in the configuration and 32 in the file'):
    restore.load_backbone(folder, config=dataclasses.replace(CONFIG, emb_dim=64))


def test_options_of_a_configuration_hold(folder):
  config = dataclasses.replace(CONFIG, dropout_rate=0.0, relative_attention_max_distance=64)
  assert restore.load_backbone(folder, config=config).config == config


def test_step_of_a_folder(folder):
  assert restore.load_backbone(folder, step=7).base_step == 7
  with pytest.raises(UserError, match='no checkpoint of step 8'):
    restore.load_backbone(folder, step=8)


def test_step_needs_t5x(tmp_path):
  hf.write_folder(tmp_path, CONFIG, arrays(CONFIG))
  assert restore.load_backbone(tmp_path).base_step is None
  with pytest.raises(UserError, match='no T5X checkpoint, so it has no step 3'):
    restore.load_backbone(tmp_path, step=3)


def test_placed_on_their_shardings(folder, expected):
  mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ('data', 'model'))
  abstract = abstract_params(T5(config=dataclasses.replace(CONFIG, scan_layers=True)))
  shardings = {path: NamedSharding(mesh, PartitionSpec(*[None] * (leaf.ndim - 1), 'model'))
               for path, leaf in params_lib.flatten(abstract).items()}
  params, _ = restore.read_params(folder, abstract, shardings=shardings)
  flat = params_lib.flatten(params)
  assert all(flat[path].sharding == shardings[path] for path in flat)
  kernel = flat['encoder/layers/mlp/wi_0/kernel']
  assert kernel.addressable_shards[0].data.shape == (2, 32, 32)
  assert same(kernel[1], expected['encoder/layers_1/mlp/wi_0/kernel'])


def test_random_is_loud_and_repeatable(caplog):
  config = dataclasses.replace(CONFIG, num_encoder_layers=1, num_decoder_layers=1)
  with caplog.at_level(logging.WARNING):
    a = restore.load_backbone('random', config=config, seed=1, param_dtype='bfloat16')
  assert 'RANDOM' in caplog.text
  b = restore.load_backbone('random', config=config, seed=1, param_dtype='bfloat16')
  small = restore.load_backbone('random', config=config, seed=1, param_dtype='int8')
  assert a.fingerprint == b.fingerprint == small.fingerprint
  assert {leaf.dtype for leaf in jax.tree.leaves(a.params)} == {jnp.dtype('bfloat16')}
  mesh = Mesh(np.array(jax.devices()), ('data',))
  shardings = dict.fromkeys(params_lib.flatten(a.params), NamedSharding(mesh, PartitionSpec()))
  other = restore.load_backbone('random', config=config, seed=2, shardings=shardings)
  assert a.fingerprint != other.fingerprint
  assert {leaf.sharding for leaf in jax.tree.leaves(other.params)} == set(shardings.values())


def test_random_needs_a_configuration():
  with pytest.raises(UserError, match="'random' model needs a configuration"):
    restore.load_backbone('random')


def test_nothing_there(tmp_path):
  (tmp_path / 'notes.txt').write_text('')
  for path, found in ((tmp_path, r'holds \[.notes.txt.\]'), (tmp_path / 'x', 'does not exist'),
                      (tmp_path / 'notes.txt', 'is a file')):
    with pytest.raises(UserError, match=f'No model at .*{found}'):
      restore.load_backbone(path)


def test_param_dtype_is_checked(folder):
  with pytest.raises(UserError, match="param_dtype is 'float16'"):
    restore.load_backbone(folder, param_dtype='float16')


def test_int8_keeps_the_fingerprint_of_what_was_read(folder):
  wide = restore.load_backbone(folder)
  small = restore.load_backbone(folder, param_dtype='int8')
  mesh = Mesh(np.asarray(jax.devices()[:4]).reshape(2, 2), ('data', 'model'))
  config = dataclasses.replace(CONFIG, scan_layers=True)
  abstract = int8.abstract(abstract_params(T5(config=config)))
  scanned = restore.load_backbone(
      folder, param_dtype='int8', scan_layers=True,
      shardings=params_lib.flatten(partitioning.parameter_shardings(abstract, mesh)))
  assert wide.fingerprint == small.fingerprint == scanned.fingerprint
  flat = params_lib.flatten(params_lib.unstack_layers(scanned.params))
  assert flat.keys() == params_lib.flatten(small.params).keys() > params_lib.flatten(
      wide.params).keys()
  for name, leaf in params_lib.flatten(small.params).items():
    assert same(leaf, flat[name])
  kernel = 'decoder/layers_1/mlp/wo/kernel'
  np.testing.assert_allclose(
      flat[kernel].astype(jnp.float32) * flat[kernel + '_scale'],
      params_lib.flatten(wide.params)[kernel], atol=float(flat[kernel + '_scale'].max()))


def test_int8_never_holds_the_model_in_float(folder):
  model = t5x.open_checkpoint(folder)
  floats = lambda: sum(x.nbytes for x in jax.live_arrays() if x.dtype == jnp.float32)
  before, seen = floats(), []

  def watched(array):
    def reader(dtype):
      seen.append(floats() - before)
      return array.read(dtype)
    return dataclasses.replace(array, reader=reader)
  watching = dataclasses.replace(
      model, arrays={name: watched(array) for name, array in model.arrays.items()})
  restore.read_params(watching, abstract_params(T5(config=CONFIG)), param_dtype='int8')
  assert len(seen) == 52 and max(seen) < 16 * 1024  # scales and norms; a kernel has 8 KB
  seen.clear()
  restore.read_params(watching, abstract_params(T5(config=CONFIG)))
  assert max(seen) > 200 * 1024


def test_vocabularies(folder, tmp_path):
  with pytest.raises(UserError, match='259 ids and the model 256 embeddings'):
    restore.load_backbone(folder, vocabulary='bytes')
  config = dataclasses.replace(CONFIG, vocab_size=384)
  hf.write_folder(tmp_path, config, arrays(config),
                  vocabulary_file='bytes')
  assert restore.load_backbone(tmp_path).vocabulary == ByteVocabulary()
  given = ByteVocabulary(extra_ids=100)
  assert restore.load_backbone(tmp_path, vocabulary=given).vocabulary is given


def test_an_opened_model_can_be_given(folder):
  opened = t5x.open_checkpoint(folder)
  _, report = restore.read_params(opened, abstract_params(T5(config=opened.config)))
  assert len(report.kept) == 52
