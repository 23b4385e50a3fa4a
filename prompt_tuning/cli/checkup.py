"""The checks that `train` does at its start and while it runs; `doctor` does these and more."""

import logging

import jax

from prompt_tuning.diagnosis import data_checks, findings, model_checks, step_checks
from prompt_tuning.diagnosis.watch import Watch
from prompt_tuning.training import metrics, writers

log = logging.getLogger(__name__)


def cheap(config, model, train, dev, first_step: int, last_step: int) -> list[findings.Finding]:
  """Everything that takes less than a training step and compiles nothing large.

  Args:
    config: cli.train.TrainConfig.
    model: cli.model.Model.
    train: cache of the training split.
    dev: cache of the evaluation split.
    first_step: of the run.
    last_step: of the run.
  """
  trainable, frozen = model.split()
  found = model_checks.check_trainable(model.peft.methods, trainable, frozen)
  if trainable:
    steps = step_checks.sampled_steps(first_step, last_step)
    found += step_checks.check_rate(step_checks.step_sizes(config.optimizer, trainable, steps))
  found += data_checks.check_data(config.data.task, model.vocabulary, train, dev)
  return found


def log_cheap(*args):
  """Logs what `cheap` finds; the run goes on, whatever it is."""
  findings.log_all(cheap(*args), log)


def watched(writer: writers.Writer, config, evaluate, start, first_step: int) -> writers.Writer:
  """The run's writer, and beside it one that warns.

  Args:
    writer: of the run.
    config: cli.train.TrainConfig.
    evaluate: cli.evaluation.Evaluation.
    start: the prompts before the first step, from metrics.copy_prompts.
    first_step: of the run.
  """
  task = config.data.task
  norms = jax.device_get(metrics.prompt_metrics(start, {}))
  return writers.Writers(writer, Watch(
      first_step=first_step, start={name: float(norm) for name, norm in norms.items()},
      labels=task.labels, answers=lambda: evaluate.answers,
      majority=data_checks.majority_scores(task, data_checks.Sample(evaluate.cache))))
