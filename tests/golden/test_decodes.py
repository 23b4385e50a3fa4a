"""Greedy and beam decodes equal to T5X's on the same weights, sequences and scores."""

import re

import numpy as np

from prompt_tuning import params as params_lib
from prompt_tuning.decoding.generate import DecodeConfig, generate_jit
from prompt_tuning.models.t5 import T5, T5Config
from prompt_tuning.peft.model import PeftModel
from prompt_tuning.peft.soft_prompt import SoftPrompt

PROMPT = 'encoder/prompt/prompt/prompt'
SHAPE = {'vocab_size': 256, 'emb_dim': 32, 'num_heads': 4, 'head_dim': 8, 'mlp_dim': 64,
         'num_encoder_layers': 2, 'num_decoder_layers': 2}


def load(golden_dir, case, scan_layers=False):
  """(model, params, reference arrays) of 'prompt' or 'noprompt'."""
  folder = golden_dir / 't5x_small'
  flat = dict(np.load(folder / 'small_params.npz', allow_pickle=False))
  reference = dict(np.load(folder / f'small_{case}.npz', allow_pickle=False))
  methods = (SoftPrompt(length=6),)
  if case == 'noprompt':
    del flat[PROMPT]
    methods = ()
  params = params_lib.unflatten(flat)
  if scan_layers:
    params = params_lib.stack_layers(params)
  model = PeftModel(backbone=T5(T5Config(scan_layers=scan_layers, **SHAPE)), methods=methods)
  return model, params, reference


def read_key(name):
  """'max8_eos7_beam4_alpha0_seqs' -> DecodeConfig; None for a key that is no decode."""
  found = re.fullmatch(
      r'max(\d+)_(?:eos(\d+)_)?(greedy|beam(\d+))(_best)?(_alpha0)?_seqs', name)
  if not found:
    return None
  length, eos_id, strategy, beam_size, best, alpha0 = found.groups()
  config = {'max_decode_length': int(length), 'eos_id': int(eos_id or 1)}
  if strategy == 'greedy':
    return DecodeConfig(strategy='greedy', **config)
  return DecodeConfig(strategy='beam', beam_size=int(beam_size), alpha=0.0 if alpha0 else 0.6,
                      num_return=1 if best else None, **config)


def compare(model, params, reference, keys):
  """Decodes with the settings of every key and compares; returns how many were compared."""
  compared = 0
  for name in keys:
    config = read_key(name)
    if config is None:
      continue
    decoded = generate_jit(model, params, reference, config)
    scores = reference[name.replace('_seqs', '_scores')]
    # The reference keeps the worst beam first; single answers have no beam axis.
    ours = (decoded.sequences[:, ::-1], decoded.scores[:, ::-1])
    if scores.ndim == 1:
      ours = (decoded.sequences[:, 0], decoded.scores[:, 0])
    np.testing.assert_array_equal(ours[0], reference[name], err_msg=name)
    np.testing.assert_allclose(ours[1], scores, rtol=1e-5, err_msg=name)
    compared += 1
  return compared


def test_decodes_with_a_prompt_equal_t5x(golden_dir):
  model, params, reference = load(golden_dir, 'prompt')
  assert compare(model, params, reference, reference) == 10


def test_decodes_without_a_prompt_equal_t5x(golden_dir):
  model, params, reference = load(golden_dir, 'noprompt')
  keys = [f'max8_{name}_seqs' for name in ('greedy', 'eos7_beam2', 'beam4')]
  assert compare(model, params, reference, keys) == 3


def test_decodes_of_a_scanned_model_equal_t5x(golden_dir):
  model, params, reference = load(golden_dir, 'prompt', scan_layers=True)
  keys = [f'max8_{name}_seqs' for name in ('greedy', 'eos7_beam2', 'beam4')]
  assert compare(model, params, reference, keys) == 3
