"""The benchmark for GPUs, at a tiny shape on a CPU: that it runs, and what it counts."""

import json

import jax
import jax.numpy as jnp
import pytest
from contracts.rows import METHODS, backbone, compare, logits_of, reference_logits, trained

from benchmarks import gpu, gpu_row
from prompt_tuning.peft import model as peft_model


@pytest.mark.parametrize('true', [0, 7, 8, 9, 63, 100, 640, 5000])
def test_the_largest_batch(true):
  asked = []
  found = gpu_row.largest(lambda n: asked.append(n) or n <= true, 8, 1024)
  assert found <= min(true, 1024) and (found == 0) == (true < 8)
  if found:
    assert found == 1024 or found + max(1, found // 8) >= min(true, 1023)
  assert len(asked) == len(set(asked)) <= 13


@pytest.mark.parametrize('mlp_dim, num_heads, targets', [(512, 2, 16), (32, 8, 2)])
def test_flops_are_those_of_the_products(mlp_dim, num_heads, targets):
  """Against XLA's count of a forward pass, which has elementwise work beside the products."""
  shape = {**gpu_row.SHAPES['tiny'], 'emb_dim': 256, 'mlp_dim': mlp_dim, 'num_heads': num_heads,
           'vocab_size': 2048}
  row = {'shape': 'wide', 'scan': False, 'remat': 'none', 'attention': 'xla', 'prompt': 4}
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(gpu_row.SHAPES, 'wide', shape)
    model = gpu_row.make_model(row)
  shapes = peft_model.abstract_params(model)
  tokens = [jax.ShapeDtypeStruct((2, length), jnp.int32) for length in (60, targets, targets)]
  lowered = jax.jit(lambda p, *t: model.apply({'params': p}, *t)).lower(shapes, *tokens)
  ratio = lowered.cost_analysis()['flops'] / gpu_row.step_flops(shape, 2, 64, targets)
  assert 0.45 < ratio < 0.55  # backward costs what forward does, but for attention's products


def test_fused_attention_is_the_same_attention():
  methods = (*METHODS['prompt'], gpu_row.FusedAttention(implementation='xla'))
  model = peft_model.PeftModel(backbone(), methods)
  compare(logits_of(model, trained('prompt')), reference_logits('prompt'), 1e-5)


def test_a_tiny_run(capsys):
  gpu.main(['--shape=tiny', '--jobs=train', '--frozen=int8', '--remat=full', '--memory_gb=1',
            '--first_batch=1', '--most_batch=1', '--repeats=1', '--product=64', '--inputs=8',
            '--targets=2', '--prompt=2'])
  out = capsys.readouterr().out
  assert '| tiny | train | int8 | scanned | full | xla | 1 |' in out
  assert 'cuDNN needs a GPU' in out and 'Best utilisation' in out
  ours, skipped = json.loads(out.splitlines()[-1])[:2]
  assert ours['finite'] and ours['batch'] == 1 and ours['tokens'] == 10
  assert skipped['attention'] == 'cudnn' and 'batch' not in skipped
