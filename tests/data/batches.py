"""What the tests of plans, packing and the loader share."""

import numpy as np

from prompt_tuning.data import loader


def random_lengths(count, seed):
  """[count, 2] input lengths of 1 to 100 and target lengths of 1 to 12."""
  rng = np.random.default_rng(seed)
  return np.stack([rng.integers(1, 101, count), rng.integers(1, 13, count)], 1)


def for_training(cache, batch_size, **options):
  """The TrainLoader of a plan with these options."""
  return loader.TrainLoader(cache, loader.training_plan(cache, batch_size, **options))
