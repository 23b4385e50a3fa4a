"""One training step: a pure, jitted function of state, frozen parameters and batch.

The gradient is taken with respect to the trainable parameters alone; the frozen ones are an
argument beside them, so neither gradient, norm, optimizer nor donation ever sees them.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from prompt_tuning import errors, losses
from prompt_tuning import params as params_lib
from prompt_tuning.training import metrics as metrics_lib

# What a packed batch, or one with several prompts, holds beside the tokens; the model takes them by
# these names.
_OPTIONAL_FEATURES = ('encoder_segment_ids', 'decoder_segment_ids', 'encoder_positions',
                      'decoder_positions', 'prompt_ids')


def make_train_step(model, optimizer, *, loss=None, num_microbatches=1, enable_dropout=True,
                    max_nonfinite=0, state_shardings=None):
  """Builds the jitted training step.

  Args:
    model: a PeftModel or a bare backbone.
    optimizer: optax.GradientTransformation over the trainable parameters.
    loss: losses.LossConfig; None for the reference recipe's.
    num_microbatches: the batch is worked through in this many parts, one after the other, whose
      gradients are added: the memory of a part, the numbers of the whole (with dropout, other
      random masks).
    enable_dropout: False trains without dropout, whatever the model's rate.
    max_nonfinite: so many steps with a NaN or infinite loss or gradient are left out: their number
      counts, their update does not. From the next one on the state stays as it is, its step too,
      until the caller looks: it never has to wait for a step to know that the state is good.
    state_shardings: TrainState of shardings that the new state gets, as of state.shardings; None
      leaves them to the compiler, which may choose others than the old state has, so that the
      second step is compiled again.

  Returns:
    step(state, frozen, batch, rng) -> (state, metrics): state is donated; frozen is a nested dict
    of arrays; batch holds encoder_input_tokens [B, T], decoder_input_tokens [B, L],
    decoder_target_tokens [B, L] and optionally decoder_loss_weights [B, L], the features of
    packed rows and prompt_ids; rng is the run's key, the same at every step (the step is folded
    in). metrics are device scalars (sum, weight) by name; see metrics.py.

  Raises:
    UserError: (when first called) num_microbatches does not divide the batch.
  """
  loss = losses.LossConfig() if loss is None else loss
  forward = functools.partial(_forward, model, loss, enable_dropout)
  gradient = jax.value_and_grad(forward, has_aux=True)

  @functools.partial(jax.jit, donate_argnums=0, out_shardings=(state_shardings, None))
  def step(state, frozen, batch, rng):
    rng = jax.random.fold_in(rng, state.step)
    batch, factor = _with_loss_weights(batch, loss)
    if num_microbatches == 1:
      (_, sums), grads = gradient(state.trainable, frozen, batch, factor, rng)
    else:
      sums, grads = _accumulate(gradient, num_microbatches, state.trainable, frozen, batch, factor,
                                rng)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    new_state = state.replace(
        step=state.step + 1, trainable=optax.apply_updates(state.trainable, updates),
        opt_state=opt_state)
    norm = _global_norm(grads)
    new_state, left_out = _guard(state, new_state, sums['loss'], norm, max_nonfinite)
    return new_state, _metrics(sums, batch) | {'grad_norm': (norm, jnp.float32(1)),
                                               metrics_lib.NONFINITE: (left_out, jnp.float32(1))}

  return step


def make_eval_step(model, *, loss=None):
  """Builds the jitted step(trainable, frozen, batch) -> metrics, without dropout or gradient."""
  loss = losses.LossConfig() if loss is None else loss

  @jax.jit
  def step(trainable, frozen, batch):
    batch, factor = _with_loss_weights(batch, loss)
    _, sums = _forward(model, loss, False, trainable, frozen, batch, factor, None)
    return _metrics(sums, batch)

  return step


def _with_loss_weights(batch, loss):
  """The batch with the weights that the loss is summed with, and what the sum is divided by.

  Both are made from the whole batch, before it is split: a factor of each part's own would make
  accumulated gradients differ from the large batch's.
  """
  factor, weights = losses.loss_normalizer(loss.loss_normalizing_factor, batch)
  return dict(batch, decoder_loss_weights=weights), factor


def _forward(model, loss, enable_dropout, trainable, frozen, batch, factor, rng):
  """Returns (loss, sums): the number to minimise, and float32 scalars that add up over parts."""
  features = {name: batch[name] for name in _OPTIONAL_FEATURES if name in batch}
  logits = model.apply(
      {'params': params_lib.merge(trainable, frozen)}, batch['encoder_input_tokens'],
      batch['decoder_input_tokens'], batch['decoder_target_tokens'], **features,
      enable_dropout=enable_dropout, rngs={'dropout': rng} if enable_dropout else None)
  targets, weights = batch['decoder_target_tokens'], batch['decoder_loss_weights']
  loss_sum, z_loss_sum, weight_sum = losses.token_cross_entropy(
      logits, targets, weights, z_loss=loss.z_loss, label_smoothing=loss.label_smoothing)
  correct, counted = losses.token_accuracy(jax.lax.stop_gradient(logits), targets, weights)
  sums = {'loss': loss_sum / factor, 'z_loss': z_loss_sum / factor, 'loss_sum': loss_sum,
          'weight_sum': weight_sum, 'correct': correct, 'counted': counted}
  return loss_sum / factor, sums


def _accumulate(gradient, parts, trainable, frozen, batch, factor, rng):
  """Sums over `parts` micro-batches, one after the other: (sums, gradients)."""
  rows = batch['decoder_target_tokens'].shape[0]
  if rows % parts:
    raise errors.UserError(f'A batch of {rows} rows cannot be split into {parts} micro-batches: '
                           f'give a num_microbatches that divides {rows}.')
  # Row i goes to part i % parts: where rows are sharded over devices, each part then has rows
  # on every device and nothing moves.
  split = jax.tree.map(
      lambda x: jnp.swapaxes(x.reshape(rows // parts, parts, *x.shape[1:]), 0, 1), batch)

  def add(total, part):
    index, part_batch = part
    (_, sums), grads = gradient(trainable, frozen, part_batch, factor,
                                jax.random.fold_in(rng, index))
    return jax.tree.map(jnp.add, total, (sums, grads)), None

  first = jax.tree.map(lambda x: x[0], split)
  (_, sums), grads = jax.eval_shape(gradient, trainable, frozen, first, factor, rng)
  zeros = jax.tree.map(jnp.zeros_like, (sums, grads))
  return jax.lax.scan(add, zeros, (jnp.arange(parts), split))[0]


def _guard(old, new, loss, norm, max_nonfinite):
  """(the state to go on with, float32 1 where the step was not applied and else 0)."""
  going = old.nonfinite <= max_nonfinite
  finite = jnp.isfinite(loss) & jnp.isfinite(norm)
  nonfinite = old.nonfinite + (going & ~finite).astype(jnp.int32)
  counts = going & (nonfinite <= max_nonfinite)
  # One selection an entry, which XLA fuses with the update.
  kept = jax.tree.map(functools.partial(jnp.where, going & finite),
                      (new.trainable, new.opt_state), (old.trainable, old.opt_state))
  state = new.replace(step=jnp.where(counts, new.step, old.step), trainable=kept[0],
                      opt_state=kept[1], nonfinite=nonfinite)
  return state, 1 - (going & finite).astype(jnp.float32)


def _global_norm(grads):
  return jnp.sqrt(sum(jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(grads)))


def _metrics(sums, batch):
  """Pairs (sum, weight) by name; the names are explained in metrics.py."""
  one = jnp.float32(1)
  real, filled, slots = _tokens(batch)
  return {
      'loss': (sums['loss'], one),
      'z_loss': (sums['z_loss'], one),
      'loss_per_token': (sums['loss_sum'], sums['weight_sum']),
      'accuracy': (sums['correct'], sums['counted']),
      'padding_share': (slots - filled, slots),
      'examples': (_examples(batch), one),
      'tokens': (real, one),
  }


def _tokens(batch):
  """(tokens, slots that are not padding, slots) of inputs and targets together.

  In packed rows the places of soft prompts are slots, no padding, and hold no token.
  """
  sides = [batch['encoder_input_tokens'], batch['decoder_target_tokens']]
  used = [batch.get(name, side) for name, side in zip(
      ('encoder_segment_ids', 'decoder_segment_ids'), sides, strict=True)]
  count = lambda arrays: sum(jnp.sum(x != 0, dtype=jnp.float32) for x in arrays)  # noqa: E731
  return count(sides), count(used), jnp.float32(sum(side.size for side in sides))


def _examples(batch):
  """Rows with a target, or the segments of packed rows."""
  segments = batch.get('decoder_segment_ids')
  if segments is not None:
    return jnp.sum(jnp.max(segments, axis=1)).astype(jnp.float32)
  return jnp.sum(jnp.any(batch['decoder_target_tokens'] != 0, axis=1), dtype=jnp.float32)
