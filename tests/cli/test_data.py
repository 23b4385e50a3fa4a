"""Names of metrics are found for every kind of task."""

import dataclasses

from prompt_tuning import vocabulary
from prompt_tuning.cli import data
from prompt_tuning.data import cache as cache_lib
from prompt_tuning.data import metrics, sources
from prompt_tuning.data.task import Task

BYTES = vocabulary.ByteVocabulary()


@dataclasses.dataclass(frozen=True)
class Tokens(sources.Source):
  """Tokenised examples, as SeqIO gives them; the targets' texts are not among them."""
  splits = ('train', 'validation')

  def read(self, split):
    for row in range(4):
      yield str(row), {name: [*BYTES.encode(f'{name} {row}'), 1] for name in ('inputs', 'targets')}

  def fingerprint(self, split):
    return split


def upper(text, example=None, is_target=False):
  return text.upper()


def needs_two(targets, predictions):
  if len(targets) < 2:
    raise ValueError('too few')
  return {'two': 1.0}


def fails(targets, predictions):
  raise ZeroDivisionError


def names(tmp_path, *metric_fns):
  task = Task(name='tokens', source=Tokens(), postprocess_fn=upper, metric_fns=metric_fns)
  cache = cache_lib.build(task, 'validation', BYTES, {'inputs': 20, 'targets': 20}, tmp_path)
  return data.metric_names(task, cache)


def test_metrics_see_texts(tmp_path):
  seen = []

  def watching(targets, predictions):
    seen.extend(targets)
    return {'watched': 1.0}

  assert names(tmp_path, watching, metrics.accuracy) == ('watched', 'accuracy')
  assert seen == [f'TARGETS {row}' for row in range(4)]


def test_metrics_of_several_examples(tmp_path):
  assert names(tmp_path, needs_two) == ('two',)


def test_metrics_that_fail_on_targets(tmp_path):
  assert names(tmp_path, fails) is None
