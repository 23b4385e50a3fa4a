"""Labels, lengths and examples: each mistake is named, sound data gets notes alone."""

import numpy as np
import pytest

from prompt_tuning.checkpoints import restore
from prompt_tuning.data import cache as cache_lib
from prompt_tuning.data import metrics, sources
from prompt_tuning.data.postprocessors import LabelId
from prompt_tuning.data.task import Task
from prompt_tuning.diagnosis import data_checks
from prompt_tuning.diagnosis.findings import NOTE, PROBLEM, WARNING
from prompt_tuning.vocabulary import ByteVocabulary, load_vocabulary

LABELS = ('yes', 'no')
LENGTHS = {'inputs': 16, 'targets': 4}


@pytest.fixture
def examine(tmp_path):
  """check_data on given training rows and two sound rows to evaluate; {(severity, topic): text}."""
  def run(rows, labels=LABELS, lengths=None, vocabulary=None):
    vocabulary = vocabulary or ByteVocabulary()
    files = {}
    for split, split_rows in {'train': rows, 'validation': [('b', 'yes'), ('a', 'no')]}.items():
      path = tmp_path / f'{split}.tsv'
      path.write_text('inputs\ttargets\n' + ''.join(f'{x}\t{y}\n' for x, y in split_rows))
      files[split] = str(path)
    task = Task(name='t', source=sources.FileSource(files), labels=labels,
                postprocess_fn=LabelId(labels or ()), metric_fns=(metrics.accuracy,))
    caches = [cache_lib.build(task, split, vocabulary, lengths or LENGTHS, tmp_path / 'cache')
              for split in files]
    found = data_checks.check_data(task, vocabulary, *caches)
    return {(finding.severity, finding.topic): finding.found for finding in found}
  return run


def test_sound_data(examine):
  found = examine([('good', 'yes'), ('bad', 'no')] * 3)
  assert {severity for severity, _ in found} == {NOTE}
  assert "'no'" in found[NOTE, 'score to beat'] or "'yes'" in found[NOTE, 'score to beat']
  assert 'accuracy 50.0' in found[NOTE, 'score to beat']
  assert "'yes' 50.0 %" in found[NOTE, 'class balance']


def test_labels_that_are_unknown(examine):
  found = examine([('good', 'Yes'), ('bad', 'no'), ('so', 'no'), ('bad', 'nay')])
  text = found[PROBLEM, 'unknown labels']
  assert "50.0 % of the targets of train are no labels: 'Yes', 'nay'" in text
  assert "the labels are 'yes', 'no'" in text


def test_examples_of_one_class(examine):
  found = examine([('good', 'yes'), ('bad', 'yes')])
  assert "All 2 examples of train" in found[PROBLEM, 'one class']
  assert (WARNING, 'missing classes') not in found  # said already


def test_a_class_without_examples(examine):
  found = examine([('good', 'yes'), ('bad', 'no')], labels=('yes', 'no', 'or'))
  assert "1 of 3 labels have no training example: 'or'" in found[WARNING, 'missing classes']


def test_almost_one_class(examine):
  found = examine([('good', 'yes')] * 39 + [('bad', 'no')])
  assert "'yes' 97.5 %, 'no' 2.5 %" in found[WARNING, 'class balance']


def test_labels_that_the_vocabulary_cannot_write():
  vocabulary = load_vocabulary(restore.demo_folder() / 'spiece.model')
  assert not data_checks.survives('日本', vocabulary)
  [finding] = data_checks.check_labels(('no', '日本'), vocabulary)
  assert finding.severity == PROBLEM
  assert "1 of 2 labels read back differently: '日本' becomes" in finding.found
  assert data_checks.check_labels(('no', 'yes'), vocabulary) == []


def test_text_of_another_script(examine):
  vocabulary = load_vocabulary(restore.demo_folder() / 'spiece.model')
  found = examine([('日 本 語 の 文', 'yes'), ('ま た 別 の', 'no')], vocabulary=vocabulary)
  assert 'of train are unknown' in found[PROBLEM, 'unknown tokens']


def test_inputs_that_are_cut(examine):
  found = examine([('g' * 40, 'yes'), ('bad', 'no')])
  assert found[WARNING, 'inputs are cut'] == (
      '50.0 % of the inputs of train are cut to 16 tokens; the longest has 41.')


def test_few_inputs_that_are_cut_are_a_note(examine):
  found = examine([('g' * 40, 'yes')] + [('bad', 'no'), ('good', 'yes')] * 20)
  assert (NOTE, 'inputs are cut') in found


@pytest.mark.parametrize(('rows', 'severity'), [
    ([('a', 'a long text')] * 2, PROBLEM),
    ([('a', 'a long text')] + [('a', 'b')] * 3, WARNING)])
def test_free_text_targets_that_are_cut(rows, severity, examine):
  assert (severity, 'targets are cut') in examine(rows, labels=None)


def test_free_text_that_does_not_survive(examine):
  vocabulary = load_vocabulary(restore.demo_folder() / 'spiece.model')
  found = examine([('a', '日本'), ('b', 'no')], labels=None, vocabulary=vocabulary)
  assert "50.0 % of the targets" in found[WARNING, 'text does not survive']


def test_a_large_split_is_sampled(examine, monkeypatch):
  monkeypatch.setattr(data_checks, 'MOST_EXAMPLES', 4)
  found = examine([('good', 'yes')] * 20)
  assert 'All 4 examples of train that were looked at' in found[PROBLEM, 'one class']


def test_duplicates():
  cache = cache_lib.Cache('', {'split': 'validation'}, np.zeros((8, 2), np.int32))
  [finding] = data_checks.check_duplicates(2, cache)
  assert (finding.severity, finding.topic) == (WARNING, 'duplicates')
  assert finding.found == '2 of 8 examples of validation have the input of a training example.'
  assert data_checks.check_duplicates(0, cache) == []


def test_metrics_that_cannot_take_a_constant():
  def fails(targets, predictions):
    raise ZeroDivisionError
  cache = cache_lib.Cache('', {'split': 'validation'}, np.zeros((1, 2), np.int32))
  sample = data_checks.Sample(cache)
  sample.__dict__['examples'] = [{'targets': 'yes'}]  # in place of reading them
  task = Task(name='t', source=None, labels=LABELS, metric_fns=(fails,))
  assert data_checks.majority_scores(task, sample) == {}
  assert data_checks.score_to_beat(task, sample) == []
  with_metric = Task(name='t', source=None, labels=LABELS, metric_fns=(metrics.accuracy,))
  assert data_checks.majority_scores(with_metric, sample) == {'accuracy': 100.0}
