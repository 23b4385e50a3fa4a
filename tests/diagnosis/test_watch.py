"""Each warning is given where it should be, once, and not on a run that learns."""

import math

import pytest

from prompt_tuning.diagnosis.watch import Watch

LABELS = ('yes', 'no')


@pytest.fixture
def run():
  """Feeds a watch; returns what it said: run(steps, answers, **its arguments)."""
  def feed(writes, answers=(), **options):
    said = []
    watch = Watch(labels=LABELS, majority={'accuracy': 50.0}, start={'prompt/norm': 10.0},
                  answers=lambda: answers, say=said.append, **options)
    for step, values in writes:
      watch.write(step, values)
    return {finding.topic: finding.found for finding in said}, len(said)
  return feed


def train(loss=1.0, norm=10.0, distance=None, grad_norm=1.0):
  distance = norm / 10 if distance is None else distance
  return {'train/loss_per_token': loss, 'train/prompt/norm': norm,
          'train/prompt/distance': distance, 'train/grad_norm': grad_norm}


def evaluations(losses, accuracies):
  writes = []
  for i, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True), 1):
    writes += [(100 * i, train(loss)), (100 * i, {'eval/accuracy': accuracy})]
  return writes


def test_a_run_that_learns_is_left_alone(run):
  writes = evaluations([2, 1, 0.5, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3], [0, 50, 70] + [90] * 6)
  assert run(writes, ['yes', 'no', 'yes', 'no', 'no', 'perhaps']) == ({}, 0)


def test_a_prompt_that_does_not_move(run):
  topics, count = run([(100, train(distance=0.0)), (200, train(distance=0.0))])
  assert list(topics) == ['prompt not moving'] and count == 1
  assert 'After step 100' in topics['prompt not moving']
  # As far as weight decay moves it.
  assert 'prompt not moving' in run([(100, train(distance=0.01))])[0]
  assert run([(100, train(distance=0.1))])[1] == 0


def test_steps_count_from_the_start_of_the_run(run):
  far = 1_000_000
  assert run([(far + 100, train(distance=0.1))], first_step=far)[1] == 0
  assert run([(far + 100, train(distance=0.01))], first_step=far)[1] == 1


def test_a_prompt_that_has_arrived_is_left_alone(run):
  writes = [(step, train(distance=1.0)) for step in range(1000, 1_000_000, 100_000)]
  assert run(writes)[1] == 0


def test_a_norm_that_runs_away(run):
  topics, count = run([(100, train(0.5, norm=20.0)), (200, train(1.5, norm=400.0)),
                       (300, train(3.0, norm=900.0))])
  assert topics == {'norm runs away': 'At step 200 it is 400, 40 times that at the start, and the '
                                      'loss a token 1.5, after 0.5.'}
  assert count == 1


def test_a_norm_that_grows_while_the_loss_falls(run):
  assert run([(100, train(2.0, norm=200.0)), (200, train(1.0, norm=400.0))])[1] == 0
  assert run([(100, train(0.01, norm=200.0)), (200, train(0.05, norm=400.0))])[1] == 0


@pytest.mark.parametrize('norm', [0.0, math.nan, math.inf])
def test_gradient(norm, run):
  topics, count = run([(100, train(grad_norm=norm)), (200, train(grad_norm=norm))])
  assert list(topics) == ['gradient'] and count == 1


def test_a_flat_loss(run):
  topics, _ = run(evaluations([2.0, 2.01, 2.0, 1.99, 2.0], [0, 0, 0, 0, 0]))
  assert list(topics) == ['loss is flat']
  assert 'Up to step 500' in topics['loss is flat'] and '5 evaluations' in topics['loss is flat']


@pytest.mark.parametrize(('losses', 'accuracies'), [
    ([2.0] * 4, [0] * 4),  # too early to tell
    ([3.0, 2.0, 2.0, 2.0, 2.0, 2.0], [0] * 6),  # it has fallen
    ([0.05] * 6, [0] * 6),  # there is nothing left to learn
    ([2.0] * 6, [60] * 6),  # better than a constant
])
def test_a_loss_that_is_flat_for_good_reasons(losses, accuracies, run):
  assert run(evaluations(losses, accuracies))[1] == 0


def test_the_score_of_a_constant(run):
  falling = [2.0, 1.5, 1.0, 0.8, 0.6]
  topics, count = run(evaluations(falling, [0, 50.2, 50.0, 49.8, 50]), ['yes'] * 5)
  assert list(topics) == ['majority answer'] and count == 1
  assert 'At step 400 accuracy is 49.8' in topics['majority answer']
  assert run(evaluations(falling, [0, 50.2, 48.0, 50.0, 50.0]), ['yes'] * 5)[1] == 0


def test_answers_outside_the_labels(run):
  answers = ['oh'] * 4 + ['no', 'yes'] + [f'{i}' for i in range(6)]
  writes = evaluations([3.0, 2.0, 1.0, 0.5], [10, 10, 10, 10])
  topics, count = run(writes, answers)
  assert list(topics) == ['answers outside the labels'] and count == 1
  text = topics['answers outside the labels']
  assert "At step 300 83.3 % of 12 answers are no labels" in text
  assert "'oh' (4), '0' (1), '1' (1), '2' (1), '3' (1)." in text
  assert run(writes[:4], answers)[1] == 0  # the first evaluations may be so


def test_free_text_has_no_labels():
  said = []
  watch = Watch(answers=lambda: ['a', 'b'], say=said.append)
  for step, values in evaluations([3.0, 2.0, 1.0], [0, 0, 0]):
    watch.write(step, values)
  assert said == []


def test_what_it_says_is_logged_with_cause_and_next_step(caplog):
  Watch().write(1, train(grad_norm=0.0))
  assert 'Cause:' in caplog.text and 'Next:' in caplog.text
