"""Evaluation with a model that repeats its input: every number is known beforehand."""

import json
import math

import jax
import pytest
from evaluation import copy_model

from prompt_tuning.data import metrics
from prompt_tuning.data.postprocessors import LabelId
from prompt_tuning.data.task import Task
from prompt_tuning.decoding.generate import DecodeConfig
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation import evaluator

LABELS = ('bad', 'good')
CONFIG = DecodeConfig(max_decode_length=8)
TASK = Task(name='copy', source=None, postprocess_fn=LabelId(LABELS), labels=LABELS,
            metric_fns=(metrics.accuracy, metrics.f1))


def batches():
  """Five examples in two batches of three: three right, one wrong, one that is no label."""
  return [
      copy_model.batch([('good', 'good'), ('bad', 'good'), ('bad', 'bad')], 3),
      copy_model.batch([('good', 'good'), ('maybe', 'bad')], 3, first=3)]


def run(task=TASK, **settings):
  return evaluator.evaluate(
      task, copy_model.CopyModel(), {}, batches(), copy_model.VOCABULARY,
      settings.pop('config', CONFIG), **settings)


def test_metrics_and_predictions():
  result = run()
  # As the metrics see it: targets 1 1 0 1 0, predictions 1 0 0 1 -1 (counted as 1 by F1).
  assert result.metrics == {'accuracy': 60.0, 'f1': pytest.approx(100 * 2 / 3)}
  assert [p['prediction'] for p in result.predictions] == ['good', 'bad', 'bad', 'good', 'maybe']
  assert [p['targets'] for p in result.predictions] == ['good', 'good', 'bad', 'good', 'bad']
  assert [p['id'] for p in result.predictions] == list('01234')
  # Each position holds e^5 for the input's token against 383 others.
  step = math.log(math.exp(5) / (math.exp(5) + 383))
  for prediction in result.predictions:
    assert prediction['score'] == pytest.approx(step * (len(prediction['prediction']) + 1))


def test_postprocessing_sees_the_raw_example():
  seen = []

  def postprocess(text, example=None, is_target=False):
    seen.append((text, example['inputs'], example['targets'], example['source'], is_target))
    return text

  task = Task(name='seen', source=None, postprocess_fn=postprocess, metric_fns=(metrics.accuracy,))
  assert run(task).metrics == {'accuracy': 60.0}
  assert ('good', 'bad', 'good', 'test', True) in seen
  assert ('bad', 'bad', 'good', 'test', False) in seen
  assert len(seen) == 10


def test_predictions_file(tmp_path):
  path = tmp_path / 'new' / 'folder' / 'step_1.jsonl'
  result = run(output_file=path)
  lines = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
  assert lines == result.predictions and len(lines) == 5
  assert set(lines[0]) == {'id', 'inputs', 'targets', 'prediction', 'score'}
  assert [p.name for p in path.parent.iterdir()] == ['step_1.jsonl']


def test_failed_write_keeps_the_old_file(tmp_path):
  path = tmp_path / 'predictions.jsonl'
  path.write_text('old\n')

  def broken():
    yield {'prediction': 'a'}
    raise RuntimeError('stop')

  with pytest.raises(RuntimeError):
    evaluator.write_predictions(path, broken())
  assert path.read_text() == 'old\n'
  assert list(tmp_path.iterdir()) == [path]


def test_place_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='Cannot write'):
    run(output_file=tmp_path / 'file' / 'predictions.jsonl')


def test_place_batch_gets_every_batch():
  seen = []

  def place(arrays):
    seen.append(arrays['encoder_input_tokens'].shape)
    return jax.device_put(arrays)

  assert run(place_batch=place).metrics['accuracy'] == 60.0
  assert seen == [(3, 16), (3, 16)]


def test_other_strategies():
  beam = run(config=DecodeConfig(strategy='beam', beam_size=2, max_decode_length=8))
  assert [p['prediction'] for p in beam.predictions][:2] == ['good', 'bad']
  sampled = run(config=DecodeConfig(strategy='sample', temperature=0.1, max_decode_length=8),
                rng=jax.random.key(0))
  assert [p['prediction'] for p in sampled.predictions][:2] == ['good', 'bad']


def test_nothing_to_evaluate():
  with pytest.raises(UserError, match='no example'):
    evaluator.evaluate(TASK, copy_model.CopyModel(), {}, [], copy_model.VOCABULARY, CONFIG)
