"""The checks that `train` does at its start and while it runs; `doctor` does these and more."""

import dataclasses
import logging

import jax

from prompt_tuning import processes
from prompt_tuning.data.mixture import Mixture
from prompt_tuning.diagnosis import data_checks, findings, model_checks, step_checks
from prompt_tuning.diagnosis.watch import Watch
from prompt_tuning.training import metrics, writers

log = logging.getLogger(__name__)


def cheap(config, model, train, dev, first_step: int, last_step: int) -> list[findings.Finding]:
  """Everything that takes less than a training step and compiles nothing large.

  Args:
    config: cli.train.TrainConfig.
    model: cli.model.Model.
    train: the examples to train on.
    dev: those that are evaluated.
    first_step: of the run.
    last_step: of the run.
  """
  trainable, frozen = model.split()
  found = model_checks.check_trainable(model.peft.methods, trainable, frozen)
  if trainable:
    steps = step_checks.sampled_steps(first_step, last_step)
    found += step_checks.check_rate(step_checks.step_sizes(config.optimizer, trainable, steps))
  return found + _data(config.data.task, model.vocabulary, train, dev)


def _data(task, vocabulary, train, dev):
  """The checks of the examples, of a mixture for each task that has both splits."""
  if not isinstance(task, Mixture):
    return data_checks.check_data(task, vocabulary, train, dev)
  return [finding for member in task.members
          if member.name in train.parts and member.name in dev.parts
          for finding in of_member(task, member.name, data_checks.check_data(
              member, vocabulary, train.parts[member.name], dev.parts[member.name]))]


def of_member(task, name: str, found: list[findings.Finding]) -> list[findings.Finding]:
  """Findings of one task; where it is one of a mixture they say which."""
  if not isinstance(task, Mixture):
    return found
  return [dataclasses.replace(finding, found=f'{name}: {finding.found}') for finding in found]


def log_cheap(*args):
  """Logs what `cheap` finds; the run goes on, whatever it is."""
  found = cheap(*args)
  if processes.is_first():
    findings.log_all(found, log)


def watched(writer: writers.Writer, config, evaluate, start, first_step: int) -> writers.Writer:
  """The run's writer, and, in the first process, beside it one that warns.

  Args:
    writer: of the run.
    config: cli.train.TrainConfig.
    evaluate: cli.evaluation.Evaluation.
    start: the prompts before the first step, from metrics.copy_prompts.
    first_step: of the run.
  """
  # Also where nothing is watched: what one process alone computes may wait for the others.
  norms = jax.device_get(metrics.prompt_metrics(start, {}))
  if not processes.is_first():
    return writer
  task, labels, majority = config.data.task, None, {}
  if not isinstance(task, Mixture):  # whose scores and answers are those of several tasks
    labels = task.labels
    majority = data_checks.majority_scores(task, data_checks.Sample(evaluate.cache))
  return writers.Writers(writer, Watch(
      first_step=first_step, start={name: float(norm) for name, norm in norms.items()},
      labels=labels, answers=lambda: evaluate.answers, majority=majority))
