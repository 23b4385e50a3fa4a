"""This project's side of the comparison: the public pieces that `prompt-tuning train` uses."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import rounds
import workload

import prompt_tuning as pt
from prompt_tuning import losses
from prompt_tuning import params as params_lib
from prompt_tuning.cli import process
from prompt_tuning.data import cache as cache_lib
from prompt_tuning.data import loader, packing
from prompt_tuning.decoding import generate
from prompt_tuning.training import optimizer as optimizer_lib
from prompt_tuning.training import state as state_lib
from prompt_tuning.training import step as step_lib


def load(work):
  """(model, trainable, frozen): the T5 of `weights/` with the prompt of `prompt.npy`."""
  remat = work.get('remat', 'none')
  # Recomputation saves memory on a CPU only in scanned layers; see docs/benchmarks.md.
  backbone = pt.load_backbone(work['folder'] + '/weights', param_dtype=work['dtype'],
                              scan_layers=remat != 'none')
  config = dataclasses.replace(
      backbone.config, dtype=work['dtype'], dropout_rate=work['dropout'] / 100,
      remat_policy=remat)
  start = pt.FromArray(np.load(work['folder'] + '/prompt.npy'))
  model = pt.PeftModel(
      backbone=pt.T5(config), methods=(pt.SoftPrompt(length=work['prompt'], init=start),))
  params = pt.initialize(model, jax.random.key(0), backbone.params)
  return model, *params_lib.split(params, model.trainable)


def features(inputs, targets):
  """Arrays [B, T], [B, L] -> the batch of a training step."""
  return {
      'encoder_input_tokens': inputs, 'decoder_target_tokens': targets,
      'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1]}


def trainer(model, trainable, frozen):
  """Returns step(batch) -> loss, with the optimizer of the reference recipe."""
  optimizer = optimizer_lib.adafactor(0.3)
  state = state_lib.create(trainable, optimizer)
  train_step = step_lib.make_train_step(model, optimizer)

  def step(batch):
    nonlocal state
    state, metrics = train_step(state, frozen, batch, jax.random.key(0))
    return float(metrics['loss'][0])

  return step


def train(work):
  step = trainer(*load(work))
  batch = features(*workload.batch(work))

  def check():
    """Mean loss without z_loss and its prompt gradient, at the starting prompt."""
    model, trainable, frozen = load(work)

    @jax.jit
    @jax.value_and_grad
    def mean_loss(trainable):
      logits = model.apply(
          {'params': params_lib.merge(trainable, frozen)}, batch['encoder_input_tokens'],
          batch['decoder_input_tokens'], batch['decoder_target_tokens'])
      total, _, weight = losses.token_cross_entropy(logits, batch['decoder_target_tokens'])
      return total / weight

    loss, gradient = mean_loss(trainable)
    (gradient,) = jax.tree.leaves(gradient)
    np.save(work['folder'] + '/gradient_ours.npy', np.asarray(gradient))
    return {'loss': float(loss)}

  return {'run': lambda: {'loss': step(batch)}, 'check': check}


def decode(work):
  model, trainable, frozen = load(work)
  params = params_lib.merge(trainable, frozen)
  batch = {'encoder_input_tokens': jnp.asarray(workload.batch(work)[0])}
  config = generate.DecodeConfig(strategy='greedy', max_decode_length=work['targets'])

  def run():
    decoded = generate.generate_jit(model, params, batch, config)
    return {'sequences': np.asarray(decoded.sequences)[:, 0].tolist()}

  return {'run': run}


def real_lengths(work):
  """Rounds over batches of the plan: length buckets, or examples that share rows."""
  step = trainer(*load(work))
  cache = cache_lib.load(work['cache'])
  layout = {
      'buckets': lambda: {
          'buckets': loader.buckets_of(cache, prompt_length=work['prompt'])},
      'packed': lambda: {'packing': packing.choose_packing(
          cache.lengths, work['batch'], packing.row_cost(pt.T5Config()),
          prompt_length=work['prompt'])}}[work['layout']]()
  plan = loader.training_plan(cache, work['batch'], remainder='drop', **layout)
  epochs = iter(range(work['rounds'] + 1))

  def epoch():
    first = next(epochs) * plan.epoch_length
    return [plan[n] for n in range(first, first + plan.epoch_length)]

  def train_on(batch):
    arrays = loader.read(cache, batch)
    arrays.pop('decoder_loss_weights')
    step(arrays)

  def warm():
    for batch in {(len(batch.rows), *batch.shape): batch for batch in epoch()}.values():
      train_on(batch)
    return {'shapes': plan.buckets}

  def run():
    chosen = workload.spread(
        epoch(), lambda batch: len(batch.rows) * batch.shape[0], work['batches'])
    for batch in chosen:
      train_on(batch)
    return {'examples': sum((batch.rows >= 0).sum().item() for batch in chosen)}

  return {'warm': warm, 'run': run}


if __name__ == '__main__':
  options = json.loads(sys.argv[1])
  process.keep_memory()  # As every verb of the command line does.
  jobs = {'train': train, 'decode': decode, 'real_lengths': real_lengths}
  rounds.serve(jobs[options['job']](options))
