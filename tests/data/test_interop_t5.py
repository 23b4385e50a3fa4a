"""Strings, token ids and metrics of T5 itself, where t5 and seqio are installed."""

import copy
import dataclasses
import importlib.util
import json

import numpy as np
import pytest
from data import t5_reference

from prompt_tuning import vocabulary
from prompt_tuning.data import cache, metrics, sources, task

HAS_T5 = all(importlib.util.find_spec(name) for name in ('t5', 'seqio'))
pytestmark = [
    pytest.mark.skipif(not HAS_T5, reason='t5 and seqio are not installed'),
    # TensorFlow and seqio raise warnings of their own while they are imported.
    pytest.mark.filterwarnings('default')]


@pytest.fixture(scope='module')
def vocabulary_file(shared_dir):
  return shared_dir / 'data' / 'vocab' / 't5.sentencepiece.model'


@pytest.mark.parametrize('lengths', [{'inputs': 512, 'targets': 64}, {'inputs': 9, 'targets': 16}],
                         ids=['whole', 'cut'])
@pytest.mark.parametrize('name', t5_reference.TASKS)
def test_text_and_ids(name, lengths, vocabulary_file, tmp_path):
  given = t5_reference.rows()[t5_reference.TASKS[name]]
  theirs = t5_reference.examples(name, given, vocabulary_file, lengths)
  ours = dataclasses.replace(
      task.get(name), source=sources.ListSource({'train': tuple(given)}))
  built = cache.build(
      ours, 'train', vocabulary.load_vocabulary(vocabulary_file), lengths, tmp_path)
  if name == 'trivia_qa_v010' and lengths['inputs'] < 512:
    return  # random windows
  assert len(theirs) == len(built) > 0
  for wanted, pair, record in zip(
      theirs, built.tokens(range(len(built))), built.records(range(len(built))), strict=True):
    for feature, ids in zip(t5_reference.FEATURES, pair, strict=True):
      np.testing.assert_array_equal(ids, wanted[feature])
      text = wanted.get(f'{feature}_pretokenized')  # TriviaQA drops them
      assert text is None or record[f'{feature}_pretokenized'] == text.decode()


def test_goldens_are_t5s(golden_dir, vocabulary_file):
  """What runs everywhere (test_t5_tasks.py) is compared with what T5 gives."""
  wanted = json.loads((golden_dir / 'text' / 't5_tasks.json').read_text())
  made = {name: t5_reference.golden(name, vocabulary_file) for name in (
      'squad_v010_allanswers_span', 'glue_wnli_v002_simple_eval', 'wmt16_enro_v003')}
  assert {name: wanted[name] for name in made} == made


RNG = np.random.default_rng(0)
CLASSES = RNG.integers(0, 2, 60).tolist(), RNG.integers(-1, 2, 60).tolist()
THREE = RNG.integers(0, 3, 60).tolist(), RNG.integers(-1, 3, 60).tolist()
SCORES = (RNG.integers(0, 26, 60) / 5).tolist(), (RNG.integers(-5, 26, 60) / 5).tolist()
ANSWERS = ([['The Cat!', 'a dog'], ['caf\u00e9\u2014bar'], ['\u2018x\u2019'], [''], ['U.S.'],
            ['an']], ['cat', 'cafe\u0301-bar', "x'", '', 'us', 'the'])
TEXTS = (['the cat sat on the mat . it slept .', 'Two words', 'caf\u00e9 \u20ac5.50, please'],
         ['the cat sat . it slept on the mat .', '', 'caf\u00e9 5.50 please!'])
GROUPED = ([{'group': i // 4, 'value': t} for i, t in enumerate(CLASSES[0])],
           [{'value': p} for p in CLASSES[1]])


@pytest.mark.parametrize('theirs, ours, given', [
    ('accuracy', metrics.accuracy, CLASSES), ('accuracy', metrics.accuracy, TEXTS),
    ('sequence_accuracy', metrics.sequence_accuracy, TEXTS),
    ('f1_score_with_invalid', metrics.f1, CLASSES),
    ('f1_score_with_invalid', metrics.f1, ([0, 0], [0, 0])),
    ('f1_score_with_invalid', metrics.f1, ([0, 1], [-1, -1])),
    ('pearson_corrcoef', metrics.pearson, SCORES), ('spearman_corrcoef', metrics.spearman, SCORES),
    ('pearson_corrcoef', metrics.pearson, ([1.0, 2.0], [3.0, 3.0])),
    ('spearman_corrcoef', metrics.spearman, ([1.0, 1.0], [3.0, 4.0])),
    ('squad', metrics.squad, ANSWERS), ('trivia_qa', metrics.trivia_qa, ANSWERS),
    ('bleu', metrics.bleu, TEXTS), ('bleu', metrics.bleu, (['a b'], [''])),
    ('multirc_f1_over_all_answers', metrics.OfValues(metrics.f1), GROUPED),
    ('span_squad', metrics.span_squad, (
        [{'answers': ['It was.'], 'context': 'Once, it was so.'}] * 4,
        ['start: 1 end: 2', 'start: a end: 2', 'start 1', 'start: 9 end: 12'])),
])
@pytest.mark.filterwarnings('ignore')
def test_metrics(theirs, ours, given):
  from t5.evaluation import metrics as t5_metrics
  assert ours(*given) == pytest.approx(
      getattr(t5_metrics, theirs)(*map(copy.deepcopy, given)), nan_ok=True, abs=1e-9)


@pytest.mark.filterwarnings('ignore')
def test_metrics_that_are_made():
  from t5.evaluation import metrics as t5_metrics
  matthews = t5_metrics.sklearn_metrics_wrapper(
      'matthews_corrcoef', metric_post_process_fn=lambda x: 100 * x)
  for given in (CLASSES, THREE, ([1, 1], [1, 1]), ([0, 1, 1], [-1, -1, -1])):
    assert metrics.Matthews()(*given) == pytest.approx(matthews(*given))
  for given in (THREE, ([0, 0], [0, 0]), ([0, 1], [-1, 2])):
    assert metrics.MeanMulticlassF1(3)(*given) == pytest.approx(
        t5_metrics.mean_multiclass_f1(num_classes=3)(*given))
  groups = t5_metrics.mean_group_metric(t5_metrics.all_match)
  assert metrics.MeanOverGroups(metrics.exact_group)(*GROUPED) == pytest.approx(groups(*GROUPED))
  answers = ([{'group': (0, i // 2), 'value': a} for i, a in enumerate(ANSWERS[0])],
             [{'value': p} for p in ANSWERS[1]])
  assert metrics.FirstOfGroup(metrics.squad)(*answers) == pytest.approx(
      t5_metrics.deduplicate_metric(t5_metrics.squad)(*answers))


def test_rouge_is_what_the_bootstrap_scatters_around():
  from t5.evaluation import metrics as t5_metrics
  targets = [f'{TEXTS[0][0]} {i}' for i in range(200)]
  predictions = [f'{TEXTS[1][0]} {i % 7}' for i in range(200)]
  wanted, found = t5_metrics.rouge(targets, predictions), metrics.Rouge()(targets, predictions)
  assert found.keys() == wanted.keys()
  assert found == pytest.approx(wanted, abs=0.3)


def test_mixtures():
  """Every mixture of T5, with its tasks and rates."""
  import seqio
  import t5.data.mixtures  # noqa: F401
  words = {'rate_num_examples': 'by examples', 'rate_unsupervised': 1e6}
  names = set(seqio.MixtureRegistry.names()) & set(task.mixture_names())
  for name in names:
    theirs = seqio.MixtureRegistry.get(name)._task_to_rate  # callables are not resolved
    ours = {member.name: 'by examples' if callable(rate) else rate
            for member, rate in task.get(name).parts}
    assert ours == {member: words[rate.__name__] if callable(rate) else rate
                    for member, rate in theirs.items()}, name
  assert len(names) == 20
