"""The cache: what is in it, what it is keyed by, what it says about truncation."""

import dataclasses
import json
import logging
import pickle

import numpy as np
import pytest

from prompt_tuning import vocabulary
from prompt_tuning.data import cache, cache_key, preprocessors, sources, task
from prompt_tuning.errors import UserError

VOCAB = vocabulary.ByteVocabulary(100)
LENGTHS = {'inputs': 16, 'targets': 4}


def a_task(rows=5, **kwargs):
  examples = tuple({'inputs': 'x' * (4 * i), 'targets': 'ab' * i, 'n': i} for i in range(rows))
  return task.Task(**{
      'name': 'a/task', 'source': sources.ListSource({'train': examples, 'empty': ()})} | kwargs)


def build(tmp_path, the_task=None, vocab=VOCAB, lengths=None, **kwargs):
  return cache.build(the_task or a_task(), 'train', vocab, lengths or LENGTHS, tmp_path, **kwargs)


def test_content_truncation_and_end_of_sequence(tmp_path, caplog):
  with caplog.at_level(logging.WARNING):
    built = build(tmp_path)
  assert len(built) == 5
  assert built.lengths.tolist() == [[1, 1], [5, 3], [9, 4], [13, 4], [16, 4]]
  x, a, b = (ord(c) + 3 for c in 'xab')
  inputs, targets = built.tokens([4])[0]
  assert inputs.tolist() == [x] * 15 + [1]
  assert targets.tolist() == [a, b, a, 1]
  assert built.info['truncated'] == {
      'inputs': {'examples': 1, 'tokens': 1, 'longest': 17},
      'targets': {'examples': 3, 'tokens': 1 + 3 + 5, 'longest': 9}}
  text = caplog.text
  assert '1 of 5 inputs were cut to 16 tokens (1 tokens lost; the longest had 17)' in text
  assert '3 of 5 targets were cut to 4' in text
  assert 'TASK_FEATURE_LENGTHS' in text


def test_records_keep_what_evaluation_needs(tmp_path):
  assert build(tmp_path).records([1, 0]) == [
      {'id': '1', 'inputs_pretokenized': 'xxxx', 'targets_pretokenized': 'ab',
       'example': {'n': 1}},
      {'id': '0', 'inputs_pretokenized': '', 'targets_pretokenized': '', 'example': {'n': 0}}]


def test_read_in_any_order(tmp_path):
  built = pickle.loads(pickle.dumps(build(tmp_path)))
  assert [len(i) for i, _ in built.tokens([3, 0, 3])] == [13, 1, 13]
  assert [len(i) for i, _ in built.tokens(np.arange(5))] == built.lengths[:, 0].tolist()


def test_second_build_reads_the_first(tmp_path, monkeypatch):
  first = build(tmp_path)
  monkeypatch.setattr(cache, '_write', lambda *a: pytest.fail('built again'))
  assert build(tmp_path).path == first.path


def test_everything_that_matters_is_in_the_key(tmp_path):
  def upper(ex):
    return [{**ex, 'inputs': ex['inputs'].upper()}]

  def closed(c):
    return lambda ex: [{**ex, 'inputs': c}]

  span = preprocessors.SpanCorruption
  variants = [
      build(tmp_path),
      build(tmp_path, a_task(rows=4)),
      build(tmp_path, a_task(preprocess=upper)),
      build(tmp_path, a_task(preprocess=closed('c'))),
      build(tmp_path, a_task(preprocess=closed('d'))),
      build(tmp_path, a_task(preprocess=preprocessors.Template('{n}', 'targets'))),
      build(tmp_path, a_task(preprocess=preprocessors.Template('{n}!', 'targets'))),
      build(tmp_path, a_task(objective=span())),
      build(tmp_path, a_task(objective=span(seed=1))),
      build(tmp_path, vocab=vocabulary.ByteVocabulary(5)),
      build(tmp_path, lengths={'inputs': 15, 'targets': 4}),
      build(tmp_path, lengths={'inputs': 16, 'targets': 5}),
      build(tmp_path, lengths={'inputs': 16}),
  ]
  assert len({v.path for v in variants}) == len(variants)
  assert build(tmp_path, a_task(metric_fns=(len,))).path == variants[0].path


def test_rebuild_writes_anew(tmp_path):
  path = build(tmp_path).path
  with open(f'{path}/extra', 'w'):
    pass
  again = build(tmp_path, rebuild=True)
  assert again.path == path and len(again.tokens([0])) == 1
  assert sorted(p.name for p in tmp_path.iterdir()) == [path.rpartition('/')[2]]
  assert 'extra' not in {p.name for p in (tmp_path / path).iterdir()}


def test_a_failure_leaves_nothing_behind(tmp_path):
  broken = a_task(preprocess=lambda ex: [{'input': ''}] if ex['n'] == 3 else [ex])
  broken = dataclasses.replace(broken, source=sources.ListSource({'train': ({'n': 3},)}))
  with pytest.raises(UserError, match="has no 'inputs'.*It has 'n', 'input'"):
    build(tmp_path, broken)
  assert list(tmp_path.iterdir()) == []


def test_errors(tmp_path):
  with pytest.raises(UserError, match="Split 'empty' of task 'a/task' gives no examples"):
    cache.build(a_task(), 'empty', VOCAB, LENGTHS, tmp_path)
  with pytest.raises(UserError, match="no split 'dev'; it has train, empty"):
    cache.build(a_task(), 'dev', VOCAB, LENGTHS, tmp_path)
  with pytest.raises(UserError, match='targets=0'):
    build(tmp_path, lengths={'inputs': 3, 'targets': 0})
  with pytest.raises(UserError, match='names input;'):
    build(tmp_path, lengths={'input': 3})
  with pytest.raises(UserError, match='brings its own vocabulary'):
    build(tmp_path, a_task(vocabulary=vocabulary.ByteVocabulary(1)))
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='Cannot write to'):
    build(tmp_path / 'file')


def test_labels_are_checked(tmp_path, shared_dir, caplog):
  with pytest.raises(UserError, match="Label '' .* gives no tokens"):
    build(tmp_path, a_task(labels=('a', '')))
  pieces = vocabulary.load_vocabulary(shared_dir / 'data' / 'vocab' / 't5.sentencepiece.model')
  with pytest.raises(UserError, match="'中' and '国' .* same tokens"):
    cache.check_labels(a_task(labels=('中', '国')), pieces)
  with caplog.at_level(logging.WARNING):
    cache.check_labels(a_task(labels=('a  b', 'c')), pieces)
  assert "reads back as 'a b'" in caplog.text


def test_labels_have_to_fit(tmp_path):
  labels = ('ab', 'abcd')
  with pytest.raises(UserError, match="'abcd' .* is 5 tokens .* cuts targets to 4: give 5 or more"):
    build(tmp_path, a_task(labels=labels))
  cache.check_labels(a_task(labels=labels), VOCAB, 5)
  cache.check_labels(a_task(labels=labels), VOCAB, None)


def test_what_gives_no_tokens_is_counted(tmp_path, caplog):
  with caplog.at_level(logging.WARNING):
    built = build(tmp_path)
  assert built.info['empty'] == {'inputs': [1, 'train example 0'],
                                 'targets': [1, 'train example 0']}
  assert '1 of 5 targets give no tokens (the first: train example 0)' in caplog.text


def test_long_texts_are_tokenised_a_few_at_a_time(tmp_path, monkeypatch):
  calls = []
  encode_batch = VOCAB.encode_batch

  def counted(texts):
    calls.append(sum(map(len, texts)))
    return encode_batch(texts)
  monkeypatch.setattr(VOCAB, 'encode_batch', counted)
  rows = tuple({'inputs': 'x' * 10**6, 'targets': 'y', 'text': 'not asked for'} for _ in range(10))
  built = build(tmp_path, a_task(source=sources.ListSource({'train': rows})))
  assert len(built) == 10
  assert sum(calls) == 10 * (10**6 + 1) and max(calls) <= 5 * 10**6


def test_given_ids_are_kept(tmp_path):
  rows = ({'inputs': np.asarray([5, 6, 7, 1]), 'targets': [8, 9], 'inputs_pretokenized': 'raw'},)
  the_task = task.Task(name='ids', source=sources.ListSource({'train': rows}))
  built = build(tmp_path, the_task, lengths={'inputs': 3, 'targets': 3})
  inputs, targets = built.tokens([0])[0]
  assert inputs.tolist() == [5, 6, 1] and targets.tolist() == [8, 9]
  record = built.records([0])[0]
  assert record['inputs_pretokenized'] == 'raw'
  assert record['targets_pretokenized'] == VOCAB.decode([8, 9])
  assert built.info['truncated']['inputs'] == {'examples': 1, 'tokens': 1, 'longest': 4}


def test_corpus_with_an_objective(tmp_path):
  rows = tuple({'text': 'some plain text ' * (3 + i)} for i in range(4)) + (
      {'inputs': 'kept', 'targets': 'so'},)
  the_task = task.Task(
      name='corpus', source=sources.ListSource({'train': rows}),
      objective=preprocessors.SpanCorruption(samples=2))
  lengths = {'inputs': 48, 'targets': 24}
  built = build(tmp_path / 'a', the_task, lengths=lengths)
  assert built.info['truncated']['inputs']['examples'] == 0
  ids = [r['id'] for r in built.records(range(len(built)))]
  assert len(set(ids)) == len(ids) and ids[-1] == '4' and {'0.0', '0.1'} <= set(ids)
  again = build(tmp_path / 'b', the_task, lengths=lengths)
  for (a, b), (c, d) in zip(
      built.tokens(range(len(built))), again.tokens(range(len(again))), strict=True):
    assert a.tolist() == c.tolist() and b.tolist() == d.tolist()
    assert a[-1] == b[-1] == 1


def test_info_is_readable(tmp_path):
  built = build(tmp_path)
  with open(f'{built.path}/info.json') as f:
    info = json.load(f)
  assert info['task'] == 'a/task' and info['key']['lengths'] == LENGTHS


def test_identity_of_arrays_and_partials():
  import functools
  a, b = np.zeros(5000), np.zeros(5000)
  b[2500] = 1
  assert cache_key.identity(a) != cache_key.identity(b)
  make = functools.partial(build, rebuild=True)
  assert cache_key.identity(make) == cache_key.identity(functools.partial(build, rebuild=True))
  assert cache_key.identity(make) != cache_key.identity(functools.partial(build, rebuild=False))
