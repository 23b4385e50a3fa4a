"""PEFT's row of benchmarks/gpu.py: the same shape, random bfloat16 weights, checkpointing.

The batch is ours, halved until it fits.
"""

import json
import statistics
import sys
import time

import peft
import torch
import transformers
from gpu_row import SHAPES


def make(row, device):
  """(model under prompt tuning, optimizer)."""
  shape = SHAPES[row['shape']]
  config = transformers.T5Config(
      vocab_size=shape['vocab_size'], d_model=shape['emb_dim'], d_kv=shape['head_dim'],
      d_ff=shape['mlp_dim'], num_layers=shape['num_encoder_layers'],
      num_decoder_layers=shape['num_decoder_layers'], num_heads=shape['num_heads'],
      feed_forward_proj='gated-gelu', decoder_start_token_id=0, dropout_rate=0.0,
      tie_word_embeddings=False, use_cache=False)
  torch.set_default_dtype(torch.bfloat16)
  with torch.device(device):
    base = transformers.T5ForConditionalGeneration(config)
  torch.set_default_dtype(torch.float32)
  base.gradient_checkpointing_enable({'use_reentrant': False})
  model = peft.get_peft_model(base, peft.PromptTuningConfig(
      task_type='SEQ_2_SEQ_LM', num_virtual_tokens=row['prompt'], num_transformer_submodules=1))
  model.to(device).train()
  optimizer = transformers.Adafactor(
      [p for p in model.parameters() if p.requires_grad], lr=0.3, weight_decay=1e-5,
      scale_parameter=False, relative_step=False)
  return model, optimizer


def seconds_of(model, optimizer, row, rows, device):
  """Median seconds of a step."""
  draw = lambda length: torch.randint(2, 100, (rows, length), device=device)
  batch = {'input_ids': draw(row['inputs']), 'labels': draw(row['targets'])}
  batch['attention_mask'] = torch.ones_like(batch['input_ids'])
  seconds = []
  for _ in range(row['repeats'] + 1):
    start = time.perf_counter()
    optimizer.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    loss.item()
    seconds.append(time.perf_counter() - start)
  return statistics.median(seconds[1:])


def main(row):
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  model, optimizer = make(row, device)
  rows = row['batch']
  while rows:
    try:
      seconds = seconds_of(model, optimizer, row, rows, device)
      break
    except torch.OutOfMemoryError:
      optimizer.zero_grad()
      torch.cuda.empty_cache()
      rows //= 2
  else:
    return {'batch': 0}
  peak = torch.cuda.max_memory_allocated() if device == 'cuda' else None
  return {'batch': rows, 'seconds': seconds, 'tokens': rows * (row['inputs'] + row['targets']),
          'peak_bytes': peak}


if __name__ == '__main__':
  print(json.dumps(main(json.loads(sys.argv[1]))))
