"""A user's own file as a task."""

import json

import pytest

from prompt_tuning.data.tasks import local_text
from prompt_tuning.errors import UserError

ROWS = [{'review': f'film {i}', 'stars': i % 2} for i in range(20)]


@pytest.fixture
def train_file(tmp_path):
  path = tmp_path / 'train.jsonl'
  path.write_text(''.join(json.dumps(r) + '\n' for r in ROWS))
  return str(path)


def make(train_file, **kwargs):
  kwargs = {'input_template': 'review: {review}', 'target_field': 'stars',
            'class_labels': {0: 'bad', 1: 'good'}} | kwargs
  return local_text.make(train_file=train_file, **kwargs)


def test_classes(train_file):
  task = make(train_file)
  assert task.labels == ('bad', 'good')
  examples = [ex for split in task.splits for _, ex in task.examples(split)]
  assert len(examples) == 20
  for ex in examples:
    assert ex['inputs'] == f'review: {ex["review"]}'
    assert ex['targets'] == ('bad', 'good')[ex['stars']]
  assert task.postprocess_fn('good', example=examples[0]) == 1
  assert task.postprocess_fn('fine') == -1
  assert task.metrics([0, 1], [0, -1]) == {'accuracy': 50.0}


def test_free_text_and_eval_file(train_file, tmp_path):
  (tmp_path / 'dev.csv').write_text('review,stars\n"a, b",five\n')
  task = make(train_file, eval_file=str(tmp_path / 'dev.csv'), class_labels=None)
  assert [ex['targets'] for _, ex in task.examples('validation')] == ['five']
  assert sum(1 for _ in task.examples('train')) == 20
  assert task.labels is None
  assert task.metrics([' x'], ['x']) == {'exact_match': 100.0}


def test_metrics_by_name(train_file):
  assert list(make(train_file, metrics=['f1', 'macro_f1']).metrics([0, 1], [0, 1])) == [
      'f1', 'mean_2class_f1']


@pytest.mark.parametrize('wrong, match', [
    ({'input_template': '{text}'},
     r"train.jsonl:\d+: INPUT_TEMPLATE names the field 'text'.*'review', 'stars'"),
    ({'target_field': 'label'}, r"TARGET_FIELD names the field 'label'.*'review', 'stars'"),
    ({'class_labels': {3: 'bad', 4: 'good'}}, r"field 'stars' is '[01]', which is none of"),
    ({'class_labels': 'good'}, 'is one text; give a list'),
    ({'class_labels': ['good']}, 'at least two'),
    ({'class_labels': ['a', 'a']}, 'at least two different'),
    ({'class_labels': ['a', 'b', 'a']}, "'a' twice"),
    ({'class_labels': {'0': 'a', 0: 'b', 1: 'c'}}, "'0' twice"),
    ({'class_labels': [['a'], ['b']]}, 'each a text'),
    ({'class_labels': 3}, 'is no list; give a list'),
    ({'class_labels': {None: 'a', 1: 'b'}}, "'CLASS_LABELS' is None"),
    ({'class_labels': ['a', ' ']}, 'not empty'),
    ({'class_labels': {0: 'a', 1: 2}}, 'each a text'),
    ({'metrics': ['bleu']}, "METRICS names 'bleu'"),
    ({'eval_file': 'absent.jsonl'}, "no file 'absent.jsonl'"),
])
def test_mistakes_end_in_one_message(train_file, wrong, match):
  with pytest.raises(UserError, match=match):
    make(train_file, **wrong)


def test_without_files_there_are_no_splits(train_file):
  assert make('').splits == ()
  assert make(None, eval_file=train_file).splits == ('validation',)


def test_unknown_label_names_the_line(train_file):
  with open(train_file, 'a') as f:
    f.write('{"review": "x", "stars": 7}\n')
  task = make(train_file, eval_file=train_file)
  with pytest.raises(UserError, match=r"train.jsonl:21: field 'stars' is '7'.*CLASS_LABELS"):
    list(task.examples('train'))
