"""All examples are looked at before a model is loaded."""

import logging

import pytest

from prompt_tuning.data import overlap, sources, task
from prompt_tuning.errors import UserError


def a_task(train, dev, **kwargs):
  splits = {'train': tuple(train), 'validation': tuple(dev)}
  return task.Task(name='x', source=sources.ListSource(splits), **kwargs)


def pairs(*inputs):
  return [{'inputs': text, 'targets': str(n)} for n, text in enumerate(inputs)]


@pytest.mark.parametrize('train, dev, shared', [
    (pairs('a', 'b'), pairs('c', 'A'), 0),
    (pairs('a', 'b', 'b'), pairs('b', 'c'), 1),
    (pairs('a', 'b'), pairs('b', 'b', 'a', 'c'), 3),
    ([{'text': 'corpus'}], [{'text': 'corpus'}], 1),
    ([{'inputs': [3, 1]}], [{'inputs': [3, 1]}], 0),  # tokens, which no file of a user's holds
])
def test_shared_examples_are_counted(train, dev, shared, caplog):
  with caplog.at_level(logging.WARNING):
    assert overlap.check_examples(a_task(train, dev), 'train', 'validation') == shared
  assert (f'{shared} of {len(dev)} examples of validation' in caplog.text) == (shared > 0)


def test_the_place_of_the_first_is_named(caplog):
  with caplog.at_level(logging.WARNING):
    overlap.check_examples(a_task(pairs('a', 'b'), pairs('b' * 99, 'b')), 'train', 'validation')
  assert "as has train example 1: 'b'." in caplog.text


def test_one_split_alone(caplog):
  with caplog.at_level(logging.WARNING):
    assert overlap.check_examples(a_task(pairs('a'), pairs('a')), None, 'validation') == 0
    assert overlap.check_examples(a_task(pairs('a'), pairs('a')), 'train', None) == 0
    assert overlap.check_examples(a_task(pairs('a'), pairs('a')), 'train', 'train') == 0
  assert not caplog.text


def test_mistakes_are_found():
  with pytest.raises(UserError, match="Split 'validation' of task 'x' gives no examples"):
    overlap.check_examples(a_task(pairs('a'), []), 'train', 'validation')

  def refuse(example):
    if example['inputs'] == 'c':
      raise UserError('no good')
    return [example]
  with pytest.raises(UserError, match='^train example 2: no good$'):
    overlap.check_examples(a_task(pairs('a', 'b', 'c'), pairs('d'), preprocess=refuse), 'train',
                           'validation')
