"""Hugging Face PEFT's side of the comparison: the code that its users write."""

import json
import sys

import numpy as np
import peft
import rounds
import torch
import transformers
import workload


def load(work):
  """The T5 of `weights/` under PEFT's prompt tuning, with the prompt of `prompt.npy`."""
  torch.set_num_threads(work['cores'])
  transformers.logging.set_verbosity_error()
  backbone = transformers.T5ForConditionalGeneration.from_pretrained(
      work['folder'] + '/weights', dtype=getattr(torch, work['dtype']),
      dropout_rate=work['dropout'] / 100)
  # One transformer submodule: the prompt stands before the encoder only, as in the paper.
  model = peft.get_peft_model(backbone, peft.PromptTuningConfig(
      task_type='SEQ_2_SEQ_LM', num_virtual_tokens=work['prompt'], num_transformer_submodules=1))
  with torch.no_grad():
    model.prompt_encoder['default'].embedding.weight.copy_(
        torch.from_numpy(np.load(work['folder'] + '/prompt.npy')))
  return model


def tensors(inputs, targets):
  """Arrays [B, T], [B, L] padded with 0 -> the keyword arguments of the model's call."""
  inputs, targets = torch.from_numpy(inputs).long(), torch.from_numpy(targets).long()
  return {'input_ids': inputs, 'attention_mask': (inputs != 0).long(),
          'labels': targets.masked_fill(targets == 0, -100)}


def trainer(model):
  """Returns step(batch) -> loss, with the optimizer of the reference recipe."""
  model.train()
  optimizer = transformers.Adafactor(
      [p for p in model.parameters() if p.requires_grad], lr=0.3, weight_decay=1e-5,
      scale_parameter=False, relative_step=False)

  def step(batch):
    optimizer.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    return loss.item()

  return step


def train(work):
  model = load(work)
  step, batch = trainer(model), tensors(*workload.batch(work))

  def check():
    """Loss and prompt gradient at the starting prompt."""
    fresh = load(work)
    loss = fresh(**batch).loss
    loss.backward()
    np.save(work['folder'] + '/gradient_peft.npy',
            fresh.prompt_encoder['default'].embedding.weight.grad.float().numpy())
    return {'loss': loss.item()}

  return {'run': lambda: {'loss': step(batch)}, 'check': check}


def decode(work):
  model = load(work).eval()
  batch = tensors(*workload.batch(work))
  del batch['labels']

  def run():
    with torch.inference_mode():
      ids = model.generate(**batch, max_new_tokens=work['targets'], do_sample=False)
    return {'sequences': ids[:, 1:].tolist()}

  return {'run': run}


def real_lengths(work):
  """Rounds over shuffled batches, each padded to its longest example."""
  step = trainer(load(work))
  stored = np.load(work['folder'] + '/examples.npz')
  lengths = stored['lengths']
  ends = lengths.cumsum(axis=0)
  ids = {'inputs': stored['inputs'], 'targets': stored['targets']}
  epochs = iter(range(work['rounds']))

  def pad(rows, side):
    column = ('inputs', 'targets').index(side)
    padded = np.zeros((len(rows), lengths[rows, column].max()), np.int32)
    for place, row in enumerate(rows):
      end, length = ends[row, column], lengths[row, column]
      padded[place, :length] = ids[side][end - length:end]
    return padded

  def shuffled(epoch):
    order = np.random.default_rng(epoch).permutation(len(lengths))
    return order[:len(order) // work['batch'] * work['batch']].reshape(-1, work['batch'])

  def warm():
    longest = lengths[:, 0].argsort()[-work['batch']:]
    step(tensors(pad(longest, 'inputs'), pad(longest, 'targets')))

  def run():
    chosen = workload.spread(
        list(shuffled(next(epochs))), lambda rows: lengths[rows, 0].max(), work['batches'])
    for rows in chosen:
      step(tensors(pad(rows, 'inputs'), pad(rows, 'targets')))
    return {'examples': sum(len(rows) for rows in chosen)}

  return {'warm': warm, 'run': run}


if __name__ == '__main__':
  options = json.loads(sys.argv[1])
  jobs = {'train': train, 'decode': decode, 'real_lengths': real_lengths}
  rounds.serve(jobs[options['job']](options))
