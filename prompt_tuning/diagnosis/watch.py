"""Warnings of a run while it trains: each kind once, with its cause and next step.

The watch is a writer: it gets the numbers that metrics.jsonl gets, and nothing in the loop knows
of it.
"""

import collections
import logging
import math
from collections.abc import Callable, Mapping, Sequence

from prompt_tuning.diagnosis.findings import Finding, log_all, percent, problem, warning
from prompt_tuning.training.writers import Writer

log = logging.getLogger(__name__)

# A prompt that moves less than this a step, in shares of its norm, does no more than twice what
# Adafactor's weight decay does by itself; and one that is so far from its start has moved.
LEAST_MOVE, MOVED = 2e-5, 0.02
EARLY_WRITES = 3  # the first ones, where a prompt moves fastest
# A prompt may grow far at the reference's rate and be the better for it; only together with a loss
# that has risen to so many times its least is that running away.
RUNAWAY, RISEN = 10.0, 2.0  # times the norm at the start; times the least loss
FLAT_EVALUATIONS = 5
FLAT = 0.02  # the losses of so many evaluations lie within this share of their mean
FALLEN = 0.1  # a loss that has fallen by this share since the start is not flat but done
SMALL_LOSS = 0.1  # a token
AT_MAJORITY = 0.5  # percentage points
IN_A_ROW = 3  # evaluations at the majority's score, and before answers have to be labels
OUTSIDE = 0.2  # share of the answers that are no labels


class Watch(Writer):
  """Reads what is written and warns.

  Args:
    first_step: the step that the run (not its resumption) started at.
    start: {'NAME/norm': norm} of the prompts before the first step, as metrics.prompt_metrics
      names them.
    labels: texts that an answer can be; None where answers are free.
    majority: metrics of a constant answer, {} where there are none.
    answers: () -> texts of the latest evaluation.
    say: takes a Finding; by default it is logged.
  """

  def __init__(self, *, first_step: int = 0, start: Mapping[str, float] | None = None,
               labels: Sequence[str] | None = None, majority: Mapping[str, float] | None = None,
               answers: Callable[[], Sequence[str]] = tuple,
               say: Callable[[Finding], None] | None = None):
    self._first_step, self._start = first_step, dict(start or {})
    self._labels, self._majority, self._answers = labels, dict(majority or {}), answers
    self._say = say or (lambda finding: log_all([finding], log))
    self._given: set[str] = set()
    self._writes = 0
    self._losses: list[float] = []  # since the latest evaluation
    self._least_loss = math.inf
    self._means: list[float] = []  # of the stretches between evaluations
    self._at_majority = 0
    self._evaluations = 0
    self._learned = False

  def write(self, step, values):
    """Takes {name: float} of a step, with names as train/loss and eval/accuracy."""
    train = {name.removeprefix('train/'): value for name, value in values.items()
             if name.startswith('train/')}
    evaluated = {name.removeprefix('eval/'): value for name, value in values.items()
                 if name.startswith('eval/')}
    if train:
      self._see_training(step, train)
    if evaluated:
      self._see_evaluation(step, evaluated)

  def _see_training(self, step, values):
    self._writes += 1
    loss, norm = values.get('loss_per_token', math.nan), values.get('grad_norm', math.nan)
    if math.isfinite(loss):
      self._losses.append(loss)
      self._least_loss = min(self._least_loss, loss)
    if 'grad_norm' in values and not 0 < norm < math.inf:  # nor is NaN in between
      self._warn(problem, 'gradient', f'At step {step} its norm is {norm:g} and the loss a token '
                 f'{loss:.4g}.')
    for name in values:
      if name.endswith('/norm'):
        self._see_prompt(step, name.removesuffix('/norm'), values)

  def _see_prompt(self, step, prompt, values):
    """Distance and norm of one prompt."""
    norm, distance = values[f'{prompt}/norm'], values.get(f'{prompt}/distance', math.nan)
    least = min(LEAST_MOVE * (step - self._first_step), MOVED)
    if self._writes <= EARLY_WRITES and distance <= least * norm:
      self._warn(warning, 'prompt not moving', f'After step {step} it is {distance:.3g} away from '
                 f'its start, {percent(distance, norm)} of its norm.')
    start = self._start.get(f'{prompt}/norm')
    loss = values.get('loss_per_token', math.nan)
    risen = loss > max(RISEN * self._least_loss, SMALL_LOSS)
    if start and norm > RUNAWAY * start and risen:
      self._warn(warning, 'norm runs away', f'At step {step} it is {norm:.4g}, {norm / start:.0f} '
                 f'times that at the start, and the loss a token {loss:.4g}, after '
                 f'{self._least_loss:.4g}.')

  def _see_evaluation(self, step, values):
    self._evaluations += 1
    self._see_score(step, values)
    self._see_answers(step)
    self._see_loss(step)

  def _see_score(self, step, values):
    """Whether the score is that of a constant answer."""
    name = 'accuracy' if 'accuracy' in self._majority else next(iter(self._majority), None)
    score, constant = values.get(name, math.nan), self._majority.get(name, 0.0)
    if not constant or math.isnan(score):
      return
    self._learned = self._learned or score > constant + 5
    self._at_majority = self._at_majority + 1 if abs(score - constant) <= AT_MAJORITY else 0
    if self._at_majority == IN_A_ROW:
      self._warn(warning, 'majority answer', f'At step {step} {name} is {score:.1f}, for the '
                 f'{IN_A_ROW}rd time in a row that of a constant answer, {constant:.1f}.')

  def _see_answers(self, step):
    """Whether the answers are labels."""
    answers = self._answers()
    if not self._labels or not answers or self._evaluations < IN_A_ROW:
      return
    outside = collections.Counter(text for text in answers if text not in self._labels)
    count = sum(outside.values())
    if count > OUTSIDE * len(answers):
      common = ', '.join(f'{text!r} ({n})' for text, n in outside.most_common(5))
      self._warn(warning, 'answers outside the labels', f'At step {step} '
                 f'{percent(count, len(answers))} of {len(answers)} answers are no labels; the '
                 f'most common: {common}.')

  def _see_loss(self, step):
    """Whether the training loss has stayed where it was since the start."""
    if not self._losses:
      return
    self._means.append(sum(self._losses) / len(self._losses))
    self._losses = []
    latest = self._means[-FLAT_EVALUATIONS:]
    mean = sum(latest) / len(latest)
    if (len(latest) < FLAT_EVALUATIONS or self._learned or mean < SMALL_LOSS or
        mean < (1 - FALLEN) * self._means[0]):
      return
    if max(latest) - min(latest) <= FLAT * mean:
      self._warn(warning, 'loss is flat', f'Up to step {step} the loss a token stayed between '
                 f'{min(latest):.4g} and {max(latest):.4g} over {FLAT_EVALUATIONS} evaluations.')

  def _warn(self, kind, topic, found):
    if topic not in self._given:
      self._given.add(topic)
      self._say(kind(topic, found))
