"""What a check says, and the causes and next steps of every kind of finding.

docs/troubleshooting.md has the same table; a test compares the two.
"""

import dataclasses
import logging
from collections.abc import Iterable

from prompt_tuning.errors import UserError

PROBLEM, WARNING, NOTE = SEVERITIES = ('problem', 'warning', 'note')

# topic -> (cause, next step). Topics are the headings of docs/troubleshooting.md.
ADVICE = {
    # Of a run that trains.
    'prompt not moving': (
        'The learning rate is too small for a prompt, or is 0 at these steps.',
        'Raise LEARNING_RATE (0.3 with Adafactor; with AdamW begin at 0.01), or shorten the '
        'warm-up.'),
    'loss is flat': (
        'The rate is far too small or far too large, or the base cannot be prompted: T5 1.1 '
        'without LM adaptation hardly can (Lester et al. 2021, section 3.2).',
        'Run `prompt-tuning doctor` with the same flags; try a third and three times the '
        'LEARNING_RATE; use LM-adapted weights.'),
    'majority answer': (
        'The model has learned which labels there are and not yet what tells them apart.',
        'Train longer; raise LEARNING_RATE threefold; look at MODEL_DIR/predictions; check that '
        'INPUT_TEMPLATE shows the fields that decide, and that they are not cut.'),
    'answers outside the labels': (
        'The model does not generate the labels: it goes on in the words of its pre-training.',
        'Train longer; start from the class labels (PROMPT_INIT = @prompt_init.ClassLabels()); '
        'measure with RANK_LABELS=True, which always answers with a label.'),
    'norm runs away': (
        'The steps are too large: the prompt leaves the region of the embeddings, and the loss '
        'will follow.',
        'Lower LEARNING_RATE threefold, or set GRADIENT_CLIP_NORM=1.0; go back to the best '
        'checkpoint.'),
    'gradient': (
        'Where it is 0, nothing connects the loss with the trained parameters (no targets, or all '
        'of weight 0); where it is no number, an activation overflowed.',
        'Look at the targets of the examples; use ACTIVATION_DTYPE=float32 or bfloat16; lower '
        'LEARNING_RATE.'),
    # Of the configuration.
    'refused': (
        'The run cannot be built as it is configured; `train` stops with the same message.',
        'Do what the message says.'),
    'nothing is trained': (
        'No parameter is trained: the methods name none, or freeze all.',
        'Add --gin_file=peft/prompt.gin, or correct the patterns of the method.'),
    'trained parameters': (
        'More of the backbone is trained than a small method trains.',
        'If that is not meant, replace peft/model_tuning.gin or narrow the patterns.'),
    'learning rate': (
        'The rate is 0: LEARNING_RATE is 0, or the schedule is at 0 at these steps; a base of T5X '
        'starts at its own step, where a schedule that counts from 0 has long ended.',
        'Raise LEARNING_RATE; give the schedule start_step, or set INITIAL_STEP=0.'),
    'steps too small': (
        'All steps of the run together cannot change the trained parameters much.',
        'Raise LEARNING_RATE or TRAIN_STEPS_RELATIVE; recipes/ has numbers that work.'),
    'steps too large': (
        'The rate of the prompt recipe is far too large for kernels, and any rate can be for a '
        'small model.',
        'Lower LEARNING_RATE; with peft/lora.gin and peft/model_tuning.gin use runs/finetune.gin.'),
    'parameters stand still': (
        'The gradient of these parameters is 0: nothing in the model uses them.',
        'Correct the patterns of the method.'),
    'frozen parameters': (
        'A step changed parameters that are not to be trained.',
        'Report it as a bug, with the configuration.'),
    'inputs are cut': (
        'TASK_FEATURE_LENGTHS is shorter than the inputs; what is cut is never seen.',
        "Raise 'inputs' of TASK_FEATURE_LENGTHS, or put the field that decides first in "
        'INPUT_TEMPLATE.'),
    'targets are cut': (
        'TASK_FEATURE_LENGTHS is shorter than the targets, and so are the answers.',
        "Raise 'targets' of TASK_FEATURE_LENGTHS; it counts the end of sequence."),
    'text does not survive': (
        'The vocabulary cannot write these characters, or white space that it drops; a generated '
        'text never equals such a target.',
        'Choose label texts of plain words, and drop spaces at their ends.'),
    'unknown labels': (
        'Targets are not among CLASS_LABELS (case and spaces count); an answer of that kind '
        'always counts as wrong.',
        'Give CLASS_LABELS all values of TARGET_FIELD, or map values to texts.'),
    'one class': (
        'Every answer is the same, so a constant is right; the file is sorted and cut, or '
        'TARGET_FIELD is the wrong field.',
        'Check TARGET_FIELD and CLASS_LABELS; shuffle before cutting a file.'),
    'missing classes': (
        'A label has no training example: it can be learned from no other place.',
        'Add examples of it, or take it out of CLASS_LABELS.'),
    'class balance': (
        'Hardly any example is of another class, so a constant answer is almost always right.',
        'Judge by macro_f1 (METRICS, BEST_METRIC) in place of accuracy; take more examples of the '
        'rare classes.'),
    'vocabulary': (
        'The text is tokenised with another vocabulary than the base was trained on: it reads '
        'noise.',
        'Leave VOCABULARY out where the checkpoint has its own; else give the file that the base '
        'was trained with.'),
    'unknown tokens': (
        'The vocabulary has no pieces for much of the text: another language or script.',
        'Use a base of that language: mT5, or ByT5, which reads bytes.'),
    'empty texts': (
        'Fields are empty, or hold nothing but characters that the vocabulary drops.',
        'Mend these rows or leave them out.'),
    'duplicates': (
        'Training examples stand in the evaluation data too, which flatters the score.',
        'Take them out of one of the files.'),
    'score to beat': (
        'It is what answering everything with the most common label gives.',
        'Take no result below it for learning.'),
    'untuned answers': (
        'It is what the base says before anything is trained.',
        'Labels near to what it says already are learned faster.'),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
  """One result of a check.

  Attributes:
    severity: 'problem' (the run cannot work), 'warning' (it may not do what is meant) or 'note'.
    topic: a key of ADVICE.
    found: what was seen, a sentence with the numbers.
  """

  severity: str
  topic: str
  found: str

  @property
  def cause(self) -> str:
    """What is behind it."""
    return ADVICE[self.topic][0]

  @property
  def next_step(self) -> str:
    """What to do about it."""
    return ADVICE[self.topic][1]

  def __str__(self):
    if self.severity == NOTE:
      return f'{self.topic}: {self.found}'
    return f'{self.topic}: {self.found} Cause: {self.cause} Next: {self.next_step}'


def problem(topic: str, found: str) -> Finding:
  """A finding that makes the run useless."""
  return Finding(severity=PROBLEM, topic=topic, found=found)


def warning(topic: str, found: str) -> Finding:
  """A finding that is likely not meant."""
  return Finding(severity=WARNING, topic=topic, found=found)


def note(topic: str, found: str) -> Finding:
  """Something worth knowing."""
  return Finding(severity=NOTE, topic=topic, found=found)


def refused(error: UserError) -> Finding:
  """What would have stopped the run."""
  return problem('refused', str(error))


def log_all(findings: Iterable[Finding], log: logging.Logger):
  """Logs findings, notes below the level of the others."""
  for finding in findings:
    log.log(logging.INFO if finding.severity == NOTE else logging.WARNING, '%s: %s',
            finding.severity.capitalize(), finding)


def percent(part: float, whole: float) -> str:
  """A share as text, never rounded to nothing."""
  share = 100 * part / whole if whole else 0.0
  return f'{share:.1f} %' if share >= 1 or not share else f'{share:.2g} %'
