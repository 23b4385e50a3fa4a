"""A training step of prompt tuning on random weights, for benchmarks that need no peer."""

import jax
import numpy as np

from prompt_tuning import params as params_lib
from prompt_tuning.models.t5 import T5
from prompt_tuning.peft import model as peft_model
from prompt_tuning.peft.prompt_init import Uniform
from prompt_tuning.peft.soft_prompt import SoftPrompt
from prompt_tuning.training import optimizer as optimizer_lib
from prompt_tuning.training import state as state_lib
from prompt_tuning.training import step as step_lib


class RandomStep:
  """Compiled steps of one model, by the shape of the batch.

  Args:
    config: T5Config.
    prompt: prompt length P.
  """

  def __init__(self, config, prompt):
    model = peft_model.PeftModel(T5(config), (SoftPrompt(length=prompt, init=Uniform()),))
    params = jax.jit(lambda key: peft_model.init_params(model, key))(jax.random.key(0))
    trainable, self._frozen = params_lib.split(params, model.trainable)
    optimizer = optimizer_lib.adafactor(0.3)
    self._state = state_lib.create(trainable, optimizer)
    self._step = step_lib.make_train_step(model, optimizer)

  def flops(self, batch):
    """FLOPs of a step as the compiler counts them; it counts scanned layers once."""
    lowered = self._step.lower(self._state, self._frozen, batch, jax.random.key(0))
    return lowered.compile().cost_analysis()['flops']

  def start(self, batch):
    """Dispatches a step; returns its loss as an array that may not be there yet."""
    self._state, metrics = self._step(self._state, self._frozen, batch, jax.random.key(0))
    return metrics['loss'][0]


def random_batch(rows, inputs, targets):
  """A full batch of random tokens, nothing padded."""
  rng = np.random.default_rng(0)
  draw = lambda length: rng.integers(2, 32000, size=(rows, length), dtype=np.int32)
  tokens = draw(targets)
  return {'encoder_input_tokens': draw(inputs), 'decoder_target_tokens': tokens,
          'decoder_input_tokens': np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]}
