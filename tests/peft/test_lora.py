"""What is LoRA's own; the laws that every method obeys are in tests/contracts."""

import jax
import numpy as np
from contracts import rows

from prompt_tuning import params as trees
from prompt_tuning.peft import model as peft_model
from prompt_tuning.peft.lora import LoRA


def test_rank_stabilized_scale_in_forward_pass_and_merge():
  plain = LoRA(targets='.*/query', rank=4, alpha=6.0)
  stabilized = LoRA(targets='.*/query', rank=4, alpha=3.0, rank_stabilized=True)
  assert plain.scale == stabilized.scale == 1.5
  models = [peft_model.PeftModel(rows.backbone(), (method,)) for method in (plain, stabilized)]
  params = peft_model.initialize(models[0], jax.random.key(0), rows.backbone_params())
  params = trees.unflatten(rows.noisy(trees.flatten(params), 0.1, seed=1))
  logits = [np.asarray(rows.logits_of(model, params)) for model in models]
  assert np.abs(logits[0]).max() > 0.1
  np.testing.assert_array_equal(*logits)
  merged = rows.logits_of(rows.backbone(), peft_model.merge(models[1], params))
  rows.compare(merged, logits[0], 1e-5)
