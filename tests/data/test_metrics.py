"""Metrics against the reference's results."""

import json
import math

import pytest

from prompt_tuning.data import metrics
from prompt_tuning.errors import UserError


@pytest.fixture(scope='module')
def golden(golden_dir):
  return json.loads((golden_dir / 'text' / 'metrics.json').read_text())


@pytest.mark.parametrize('case, metric', [
    ('accuracy_int', metrics.accuracy),
    ('accuracy_str', metrics.accuracy),
    ('sequence_accuracy', metrics.sequence_accuracy),
    ('f1_score_with_invalid', metrics.f1),
    ('mean_3class_f1_cb', metrics.MeanMulticlassF1(3)),
    ('mean_3class_f1_cb_missing_class', metrics.MeanMulticlassF1(3)),
    ('multirc_f1a', metrics.OfValues(metrics.f1)),
    ('multirc_em', metrics.MeanOverGroups(metrics.exact_group)),
    ('record', metrics.FirstOfGroup(metrics.squad)),
    ('squad', metrics.squad),
    ('pearson_stsb', metrics.pearson),
    ('spearman_stsb', metrics.spearman),
    ('bleu_short', metrics.bleu),
])
def test_equals_the_reference(golden, case, metric):
  wanted = golden[case]
  result = metric(wanted['targets'], wanted['predictions'])
  assert result.keys() == wanted['result'].keys()
  for name, value in result.items():
    assert value == pytest.approx(wanted['result'][name], abs=1e-9)


def test_normalize_answer(golden):
  for text, expected in golden['normalize_squad'].items():
    assert metrics.normalize_answer(text) == expected
  assert metrics.exact_match(['The cat.', 'b'], ['cat', 'c']) == {'exact_match': 50.0}


def test_f1_equals_scikit_learn():
  import numpy as np
  from sklearn.metrics import f1_score, matthews_corrcoef
  rng = np.random.default_rng(0)
  t, p = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
  assert metrics.f1(t, p)['f1'] == pytest.approx(100 * f1_score(t, p))
  for predictions in (p, rng.integers(-1, 2, 200)):  # -1 is an invalid one
    assert metrics.Matthews()(t, predictions)['matthews_corrcoef'] == pytest.approx(
        100 * matthews_corrcoef(t, predictions))
  assert metrics.Matthews()([1, 1], [0, 1])['matthews_corrcoef'] == 0.0
  t, p = rng.integers(0, 4, 200), rng.integers(-1, 4, 200)
  assert metrics.MeanMulticlassF1(4)(t, p)['mean_4class_f1'] == pytest.approx(
      100 * f1_score(t, p, labels=range(4), average='macro'))


def test_by_name():
  assert metrics.by_name('accuracy', None) == (metrics.accuracy,)
  assert metrics.by_name(['macro_f1', 'accuracy'], ('a', 'b', 'c'))[0](
      [0, 1, 2], [0, 1, 2]) == {'mean_3class_f1': 100.0}
  with pytest.raises(UserError, match="'f1'; for a task of 3 classes choose from accuracy"):
    metrics.by_name(['f1'], ('a', 'b', 'c'))
  with pytest.raises(UserError, match="'f1'; for a task of free text"):
    metrics.by_name(['f1'], None)


def test_empty_and_uneven():
  assert metrics.accuracy([], []) == {'accuracy': 0.0}
  with pytest.raises(ValueError, match='2 targets but 1'):
    metrics.accuracy([1, 2], [1])


def test_every_golden_metric_is_compared(golden):
  [mark] = test_equals_the_reference.pytestmark
  assert {case for case, _ in mark.args[1]} == set(golden) - {'normalize_squad'}


def test_correlations_equal_scipys():
  import numpy as np
  from scipy import stats
  rng = np.random.default_rng(0)
  t, p = rng.integers(0, 6, 50) / 5, rng.normal(size=50).round(1)
  assert metrics.pearson(t, p)['pearson_corrcoef'] == pytest.approx(100 * stats.pearsonr(t, p)[0])
  assert metrics.spearman(t, p)['spearman_corrcoef'] == pytest.approx(
      100 * stats.spearmanr(t, p)[0])
  assert np.isnan(metrics.pearson([1, 1], [0, 1])['pearson_corrcoef'])


def test_squad_without_answers():
  assert metrics.squad([[], ['']], ['a', '']) == {'em': 50.0, 'f1': 0.0}
  assert metrics.squad([], []) == {'em': 0.0, 'f1': 0.0}


def test_bleu_of_several_references():
  targets = [['the cat sat on the mat'], ['a dog ran over there', 'a dog ran away from here']]
  predictions = ['the cat sat on the mat', 'a dog ran away from here']
  assert metrics.bleu(targets, predictions)['bleu'] == pytest.approx(100)
  assert metrics.bleu([t[0] for t in targets], predictions)['bleu'] < 90
  assert metrics.bleu(targets, ['x', 'y'])['bleu'] < 5


def test_ter_and_chrf():
  targets = [['a b c d', 'a b x'], ['e f']]
  assert metrics.ter(targets, ['a b x', 'e f']) == {'ter': 0.0}
  # One shift and one deletion for (3.5 + 2) words; of one reference alone: one insertion more.
  assert metrics.ter(targets, ['b a c d', 'e f g'])['ter'] == pytest.approx(200 / 5.5)
  assert metrics.ter(['e f'], ['e'])['ter'] == 50.0
  assert metrics.chrf(targets, ['a b x', 'e f'])['chrf'] == pytest.approx(100)
  assert metrics.chrf(['abc'], [''])['chrf'] == 0.0


def test_rouge():
  result = metrics.Rouge()(['a b c', ['x y', 'a b']], ['a b', 'a b'])
  assert result == pytest.approx({'rouge1': 90, 'rouge2': 250 / 3, 'rougeLsum': 90})
  assert metrics.Rouge(('rougeL',))([], []) == {'rougeL': 0.0}


def test_a_library_that_is_absent(monkeypatch):
  import sys
  metrics._library.cache_clear()
  monkeypatch.setitem(sys.modules, 'sacrebleu', None)
  with pytest.raises(UserError, match="needs sacrebleu.*prompt-tuning.metrics"):
    metrics.bleu(['a'], ['a'])


def test_answers_of_trivia_qa():
  targets = [['The \u2018Cat\u2019'], ['a.b'], ['U_S']]
  assert metrics.trivia_qa(targets, ["'cat", 'A b', 'u s']) == {'em': 100.0, 'f1': 100.0}
  assert metrics.squad(targets, ["'cat", 'A b', 'u s'])['em'] == 0.0


@pytest.mark.parametrize('metric', [metrics.bleu, metrics.chrf, metrics.ter, metrics.Rouge()])
def test_an_example_without_references_is_wrong(metric):
  assert metric([[], ['a b c d']], ['x', 'a b c d']) == metric(['', 'a b c d'], ['x', 'a b c d'])


def test_average_of_a_benchmark():
  results = {'cb': {'f1': 60.0, 'accuracy': 80.0}, 'rte': {'accuracy': 90.0}}
  assert metrics.average(results) == 80.0
  results['web_nlg'] = {'web_nlg/ter': 300.0, 'web_nlg/bleu': 50.0}  # of TER less is better
  assert metrics.average(results) == 70.0
  assert math.isnan(metrics.average({'web_nlg': {'ter': 300.0}}))
