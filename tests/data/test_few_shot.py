"""Which examples are chosen: the same in every version, some of each class, never one twice."""

import pytest

from prompt_tuning import vocabulary
from prompt_tuning.data import cache, sources, task
from prompt_tuning.data.few_shot import FewShot
from prompt_tuning.errors import UserError

LABELS = ('no', 'yes')


@pytest.fixture(scope='module')
def examples(tmp_path_factory):
  """40 of 'no', 9 of 'yes', one of neither."""
  targets = ['yes' if i % 5 == 2 and i < 45 else 'no' for i in range(49)] + ['maybe']
  rows = tuple({'inputs': f'{i}', 'targets': text} for i, text in enumerate(targets))
  return cache.build(
      task.Task(name='few', source=sources.ListSource({'train': rows})), 'train',
      vocabulary.ByteVocabulary(), {'inputs': 4, 'targets': 6}, tmp_path_factory.mktemp('few'))


def by_target(selected):
  found = {}
  for record in selected.records(range(len(selected))):
    found.setdefault(record['targets_pretokenized'], set()).add(record['id'])
  return found


def test_the_choice_is_written_down(examples):
  """sha256 of 'SEED ID' puts the examples in order: no other version may choose others."""
  train, dev = FewShot(examples=3, seed=1, dev=True).select(examples, LABELS)
  assert by_target(train) == {'no': {'1', '47', '35'}, 'yes': {'32', '27', '17'}}
  assert by_target(dev) == {'no': {'16', '24', '20'}, 'yes': {'42', '12', '37'}}


def test_some_of_each_class(examples):
  train, none = FewShot(examples=4).select(examples, LABELS)
  assert none is None and {k: len(v) for k, v in by_target(train).items()} == {'no': 4, 'yes': 4}
  more, dev = FewShot(examples=4, dev=True).select(examples, LABELS)
  assert more.ids == train.ids and not set(dev.ids) & set(train.ids) and len(dev) == 8
  larger, _ = FewShot(examples=9).select(examples, LABELS)
  assert set(train.ids) < set(larger.ids)
  assert FewShot(examples=4, seed=1).select(examples, LABELS)[0].ids != train.ids
  assert examples.tokens(train.selection)[0][0].tolist() == train.tokens([0])[0][0].tolist()


def test_without_labels_examples_count_together(examples):
  train, dev = FewShot(examples=25, dev=True).select(examples, None)
  assert len(train) == 25 and sorted(train.ids + dev.ids) == sorted(map(str, range(50)))


@pytest.mark.parametrize(('options', 'labels', 'words'), [
    ({'examples': 10}, LABELS, "has 9 examples of 'yes'. Give at most 9"),
    ({'examples': 5, 'dev': True}, LABELS, "has 9 examples of 'yes'. Give at most 4"),
    ({'examples': 1}, ('no', 'never'), "has 0 examples of 'never'. Give another split"),
    ({'examples': 51}, None, 'has 50 examples. Give at most 50')])
def test_too_few(examples, options, labels, words):
  with pytest.raises(UserError, match=words):
    FewShot(**options).select(examples, labels)
