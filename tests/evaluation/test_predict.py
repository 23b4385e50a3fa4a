"""Predictions for plain texts: order, truncation, scores."""

import jax
import pytest
from evaluation import copy_model

from prompt_tuning.decoding.generate import DecodeConfig
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.predict import predict

CONFIG = DecodeConfig(max_decode_length=12)


def run(texts, config=CONFIG, **settings):
  return predict(texts, copy_model.CopyModel(), {}, copy_model.VOCABULARY, config, **settings)


def test_answers_come_in_the_order_of_the_texts():
  texts = ['a longer text than the others', 'b', 'cc', 'a text of middle size', 'd', 'b']
  answers = run(texts, batch_size=2, config=DecodeConfig(max_decode_length=40))
  assert [a['inputs'] for a in answers] == texts
  assert [a['prediction'] for a in answers] == texts
  for answer in answers:
    assert set(answer) == {'inputs', 'prediction', 'scores'}
    assert list(answer['scores']) == [answer['prediction']]
    assert answer['scores'][answer['prediction']] < 0


def test_long_inputs_are_cut_and_reported(caplog):
  answers = run(['abcdefgh', 'abc'], inputs_length=5)
  assert [a['prediction'] for a in answers] == ['abcd', 'abc']
  assert [a['inputs'] for a in answers] == ['abcdefgh', 'abc']
  assert '1 of 2 inputs were cut to 5 tokens' in caplog.text


def test_labels_are_ranked():
  answers = run(['good', 'bat'], labels=('bad', 'good'))
  assert [a['prediction'] for a in answers] == ['good', 'bad']
  assert all(list(a['scores']) == ['bad', 'good'] for a in answers)
  assert answers[0]['scores']['good'] > answers[0]['scores']['bad']


def test_all_returned_sequences_are_scored_best_first():
  config = DecodeConfig(strategy='beam', beam_size=3, max_decode_length=4)
  answer, = run(['ab'], config)
  assert answer['prediction'] == 'ab'
  scores = list(answer['scores'].values())
  assert 1 < len(scores) <= 3 and scores == sorted(scores, reverse=True)


def test_sampling_draws_anew_in_every_batch():
  config = DecodeConfig(strategy='sample', max_decode_length=8)
  answers = run(['ab'] * 4, config, batch_size=2, rng=jax.random.key(0))
  assert len({a['prediction'] for a in answers}) == 4


def test_nothing_to_predict():
  with pytest.raises(UserError, match='no text'):
    run([])
