"""Templates, and the laws of the token-level objectives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_tuning import vocabulary
from prompt_tuning.data import preprocessors
from prompt_tuning.errors import UserError

VOCAB = vocabulary.ByteVocabulary(100)
EXAMPLE = {'text': 'a fine film', 'n': 3, 'label': 'pos', 'flag': True, 'none': None}


def test_template_fills_fields():
  template = preprocessors.Template('{n}: {text} {{x}} {flag}', 'label')
  assert template.fields == ('n', 'text', 'flag')
  assert template(EXAMPLE) == [{'inputs': '3: a fine film {x} true', 'targets': 'pos'}]


@pytest.mark.parametrize('template, match', [
    ('{review}', "'review'.*fields are 'text', 'n'"),
    ('{none}', "'none' is None"),
    ('no field', 'names no field'),
    ('{', 'INPUT_TEMPLATE'),
    ('{}', 'plain field names'),
    ('{n:3}', 'plain field names'),
])
def test_template_errors(template, match):
  with pytest.raises(UserError, match=match):
    preprocessors.Template(template, 'label')(EXAMPLE)


def test_class_labels():
  by_value = preprocessors.Template('{text}', 'label', (('pos', 'good'), ('neg', 'bad')))
  assert by_value(EXAMPLE)[0]['targets'] == 'good'
  assert by_value.labels == ('good', 'bad')
  with pytest.raises(UserError, match="'label' is 'other'.*'pos', 'neg'"):
    by_value({**EXAMPLE, 'label': 'other'})
  with pytest.raises(UserError):  # numbers mean classes only where values are the labels
    by_value({**EXAMPLE, 'label': 1})
  by_label = preprocessors.Template('{text}', 'label', (('neg', 'neg'), ('pos', 'pos')))
  assert by_label({**EXAMPLE, 'label': 0})[0]['targets'] == 'neg'
  assert by_label({**EXAMPLE, 'label': '1'})[0]['targets'] == 'pos'
  with pytest.raises(UserError, match="'2'"):
    by_label({**EXAMPLE, 'label': 2})


@pytest.mark.parametrize('change, match', [
    ({'sentence1': None}, "'sentence1' is None; text"),
    ({'label': 2}, "'label' is 2; the number of a class is needed, 0 to 1 for 'no', 'yes'"),
    ({'label': 'yes'}, "'label' is 'yes'"), ({'label': None}, "'label' is None"),
])
def test_named_fields(change, match):
  preprocess = preprocessors.NamedFields('rte', ('sentence1', 'sentence2'), ('no', 'yes'))
  row = {'sentence1': 'a', 'sentence2': 'b', 'label': 1}
  assert preprocess(row) == [{'inputs': 'rte sentence1: a sentence2: b', 'targets': 'yes'}]
  assert preprocess({**row, 'label': -1})[0]['targets'] == preprocessors.UNLABELLED
  with pytest.raises(UserError, match=match):
    preprocess({**row, **change})
  del row['sentence2']
  with pytest.raises(UserError, match="names the field 'sentence2'.* are 'sentence1', 'label'"):
    preprocess(row)


LISTED = (('negative', 'negative'), ('positive', 'positive'))
DIGITS = (('1', '1'), ('2', '2'))
MAPPED = (('0', 'bad'), ('1', 'good'))
BOOLEAN = (('false', 'bad'), ('true', 'good'))


@pytest.mark.parametrize('labels, value, target', [
    # CLASS_LABELS as a list: the text itself, or the number of the class
    (LISTED, 'positive', 'positive'), (LISTED, 1, 'positive'), (LISTED, '0', 'negative'),
    (LISTED, 1.0, 'positive'), (LISTED, '0.0', 'negative'),
    (LISTED, 2, None), (LISTED, -1, None), (LISTED, 0.5, None), (LISTED, '01', None),
    (LISTED, '9' * 5000, None), (LISTED, 10**400, None), (LISTED, 1e300, None),
    (LISTED, '１', None), (LISTED, '', None),
    (LISTED, 'Positive', None), (LISTED, 'positive ', None),
    (LISTED, True, None), (LISTED, 'true', None),  # which class `true` is would be a guess
    (DIGITS, '1', '1'), (DIGITS, 2, '2'), (DIGITS, 2.0, '2'),
    (DIGITS, 0, None),  # not class number 0, which is '1'
    # as a mapping: the values, numbers however they are written, booleans in any case
    (MAPPED, 0, 'bad'), (MAPPED, '1', 'good'), (MAPPED, 1.0, 'good'), (MAPPED, '0.00', 'bad'),
    (MAPPED, -0.0, 'bad'), (MAPPED, 2, None), (MAPPED, True, None), (MAPPED, 'bad', None),
    (BOOLEAN, True, 'good'), (BOOLEAN, 'False', 'bad'), (BOOLEAN, 'TRUE', 'good'),
    (BOOLEAN, 1, None), (BOOLEAN, 'yes', None),
    ((('True', 'True'), ('False', 'False')), False, 'False'),
])
def test_numbers_and_booleans_as_labels(labels, value, target):
  template = preprocessors.Template('{text}', 'label', labels)
  if target is None:
    with pytest.raises(UserError, match='none of CLASS_LABELS: '):
      template({**EXAMPLE, 'label': value})
  else:
    assert template({**EXAMPLE, 'label': value})[0]['targets'] == target


def test_messages_about_labels_help_and_are_short():
  template = preprocessors.Template('{text}', 'label', LISTED)
  with pytest.raises(UserError, match="'Positive'.*Did you mean 'positive'"):
    template({**EXAMPLE, 'label': 'Positive'})
  with pytest.raises(UserError, match="'true'.*{False: ..., True: ...}"):
    template({**EXAMPLE, 'label': True})
  many = tuple((str(n), f'label {n}') for n in range(5000))
  for value in ('x' * 10**6, [1] * 10**5, float('inf'), None):
    with pytest.raises(UserError, match="'label' is ") as caught:
      preprocessors.Template('{text}', 'label', many)({**EXAMPLE, 'label': value})
    assert len(str(caught.value)) < 500


def test_target_may_be_absent_for_inference():
  template = preprocessors.Template('{text}', 'gold', required_target=False)
  assert template(EXAMPLE) == [{'inputs': 'a fine film', 'targets': ''}]
  with pytest.raises(UserError, match="TARGET_FIELD names the field 'gold'"):
    preprocessors.Template('{text}', 'gold')(EXAMPLE)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 600), st.integers(0, 10**6))
def test_span_corruption_can_be_undone(length, seed):
  rng = np.random.default_rng(seed)
  ids = rng.integers(3, 259, length).astype(np.int32)
  mask = preprocessors.noise_mask(length, 0.15, 3.0, rng)
  assert not mask[0] and mask[-1]
  assert mask.sum() == max(1, round(length * 0.15))
  inputs, targets = preprocessors.corrupt(ids, mask, VOCAB)
  spans = int((inputs >= 259).sum())
  # Sentinels count down from the top in both, in the same order.
  expected = [VOCAB.sentinel(i) for i in range(spans)]
  assert inputs[inputs >= 259].tolist() == targets[targets >= 259].tolist() == expected
  assert len(inputs) + len(targets) == length + 2 * spans
  pieces = np.split(targets, np.flatnonzero(targets >= 259))[1:]
  restored = []
  for token in inputs:
    restored += [token] if token < 259 else pieces[VOCAB.sentinel(0) - token][1:].tolist()
  assert restored == ids.tolist()


def test_span_corruption_windows_fit_the_lengths():
  objective = preprocessors.SpanCorruption(samples=2)
  ids = np.arange(3, 203, dtype=np.int32)
  lengths = {'inputs': 64, 'targets': 24}
  pairs = objective(ids, VOCAB, lengths, np.random.default_rng(0))
  window = objective.window(63, 23)
  assert len(pairs) == 2 * -(-len(ids) // window)
  assert max(len(i) for i, _ in pairs) <= 63 and max(len(t) for _, t in pairs) <= 23
  firsts, seconds = pairs[::2], pairs[1::2]
  assert any(a.tolist() != b.tolist() for (a, _), (b, _) in zip(firsts, seconds, strict=True))
  with pytest.raises(UserError, match='leave no room'):
    objective(ids, VOCAB, {'inputs': 2, 'targets': 2}, np.random.default_rng(0))


def test_t5_window_lengths():
  # T5 pre-trains on 512 and 114 tokens made of 568 (end of sequence included in the first two).
  assert preprocessors.SpanCorruption().window(511, 113) == 568


def test_too_few_sentinels():
  ids = np.arange(3, 203, dtype=np.int32)
  with pytest.raises(UserError, match='extra ids'):
    preprocessors.SpanCorruption()(
        ids, vocabulary.ByteVocabulary(2), {'inputs': 256, 'targets': 256},
        np.random.default_rng(0))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 300), st.integers(0, 10**6))
def test_prefix_lm_keeps_the_text(length, seed):
  ids = np.arange(3, 3 + length, dtype=np.int32)
  pairs = preprocessors.PrefixLM()(
      ids, VOCAB, {'inputs': 32, 'targets': 17}, np.random.default_rng(seed))
  for inputs, targets in pairs:
    assert 1 <= len(inputs) <= 31 and 1 <= len(targets) <= 16
  joined = np.concatenate([np.concatenate(p) for p in pairs]) if pairs else ids[:0]
  assert joined.tolist() == ids[:len(joined)].tolist()
  assert length - len(joined) <= 1  # one token alone is no pair
