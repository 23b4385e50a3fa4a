"""Objectives on plain text: laws, files of C4 and of one's own, sentinels, SeqIO."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest

from prompt_tuning import vocabulary
from prompt_tuning.data import (
  cache,
  objectives,
  preprocessors,
  sources,
  task,
  token_forms,
  tokenizing,
)
from prompt_tuning.data.tasks import local_text
from prompt_tuning.errors import UserError

VOCAB = vocabulary.ByteVocabulary(100)
LENGTHS = {'inputs': 24, 'targets': 24}
FIRST_SENTINEL = VOCAB.sentinel(99)


def pairs(name, count=200, lengths=LENGTHS):
  """(ids of the text, what the objective makes of it)."""
  ids = np.arange(3, 3 + count, dtype=np.int32)
  return ids, objectives.by_name(name)(ids, VOCAB, lengths, np.random.default_rng(0))


def without_sentinels(ids):
  return ids[ids < FIRST_SENTINEL].tolist()


@pytest.mark.parametrize('name', objectives.BY_NAME)
def test_every_token_is_there_and_fits(name):
  ids, made = pairs(name)
  assert len(made) > 5
  for inputs, targets in made:
    assert inputs.dtype == targets.dtype == np.int32
    assert len(inputs) < LENGTHS['inputs'] and len(targets) < LENGTHS['targets']
  texts = [sorted({*without_sentinels(i), *without_sentinels(t)}) for i, t in made]
  assert sum(texts, []) == ids.tolist()
  again = pairs(name)[1]
  assert all(np.array_equal(a, b) for p, q in zip(made, again, strict=True)
             for a, b in zip(p, q, strict=True))


def test_what_each_makes():
  for inputs, targets in pairs('causal_lm')[1]:
    assert not len(inputs) and len(targets)
  for inputs, targets in pairs('prefix_lm')[1]:
    assert without_sentinels(np.concatenate([inputs, targets])) == list(
        range(inputs[0], targets[-1] + 1))
  cuts = {len(inputs) for inputs, _ in pairs('prefix_lm', 230 * 23)[1]}
  assert cuts == set(range(1, 23))  # anywhere, as in T5
  shorter = 0
  for inputs, targets in pairs('token_deletion')[1]:
    assert set(inputs) <= set(targets) and (inputs < FIRST_SENTINEL).all()
    shorter += len(inputs) < len(targets)
  assert shorter > 5
  for inputs, targets in pairs('text_infilling')[1][:-1]:
    assert (inputs >= FIRST_SENTINEL).sum() == 1 and (targets < FIRST_SENTINEL).all()
  rng = np.random.default_rng(1)
  inputs, targets = objectives.TokenMasking(noise_density=0.5)(
      np.arange(3, 23), VOCAB, LENGTHS, rng)[0]
  kept, masked = without_sentinels(inputs), without_sentinels(targets)
  assert sorted([*kept, *masked]) == list(range(3, 23)) and kept and masked
  # Each side has a sentinel for each run of the other's tokens.
  assert [i for i in targets if i >= FIRST_SENTINEL] == [
      VOCAB.sentinel(i) for i in range((targets >= FIRST_SENTINEL).sum())]


def test_mistakes(tmp_path):
  corpus = dataclasses.replace(
      task.get('c4_v220_prefix_lm'), source=sources.ListSource({'train': ({'text': 'a'},)}))
  with pytest.raises(UserError, match="'c4_v220_prefix_lm' .* as TASK_FEATURE_LENGTHS says: give"):
    list(tokenizing.tokenize(corpus, 'train', VOCAB, {}))
  with pytest.raises(UserError, match="OBJECTIVE='lm': choose from span_corruption, prefix_lm"):
    objectives.by_name('lm')
  with pytest.raises(UserError, match='no room for a text'):
    pairs('token_deletion', lengths={'inputs': 8, 'targets': 1})
  (tmp_path / 'a.txt').write_text('a\nb\n')
  (tmp_path / 'b.jsonl').write_text('{"text": "a"}\n')
  paths = [str(tmp_path / name) for name in ('a.txt', 'b.jsonl')]
  with pytest.raises(UserError, match='one of them is a text file'):
    local_text.corpus(objective='causal_lm', train_file=paths[0], eval_file=paths[1])
  with pytest.raises(UserError, match="TEXT_FIELD names the field 'body'"):
    local_text.corpus(objective='causal_lm', train_file=paths[1], eval_file=paths[1],
                      text_field='body')


@pytest.mark.parametrize('name', ['x.txt', 'x.txt.gz', 'x.jsonl'])
def test_a_file_of_ones_own(tmp_path, name):
  import gzip
  texts = [f'Text "{i}", with a\ttab.' for i in range(20)]
  rows = [json.dumps({'text': text}) for text in texts] if 'jsonl' in name else texts
  data = ('\n'.join(rows) + '\n').encode()
  (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith('.gz') else data)
  found = local_text.corpus(objective='causal_lm', train_file=str(tmp_path / name))
  read = []
  for split, size in (('train', 18), ('validation', 2)):
    built = cache.build(found, split, VOCAB, {'inputs': 4, 'targets': 64}, tmp_path / 'cache')
    assert len(built) == size
    for inputs, targets in built.tokens(range(size)):
      assert inputs.tolist() == [1]
      read.append(VOCAB.decode(targets))
  assert sorted(read) == sorted(texts)


def test_c4_as_it_is_published(tmp_path):
  folder = tmp_path / 'c4' / 'en'
  folder.mkdir(parents=True)
  for shard in range(2):
    (folder / f'c4-train.{shard:05}-of-00002.json').write_text(''.join(
        json.dumps({'text': f'{shard} {i}', 'timestamp': 't', 'url': 'u'}) + '\n'
        for i in range(3)))
  found = task.get('c4_v220_span_corruption', module='t5.data.mixtures', data_dir=str(tmp_path))
  assert found.splits == ('train',)
  rows = list(found.examples('train'))
  assert [e['text'] for _, e in rows] == ['0 0', '0 1', '0 2', '1 0', '1 1', '1 2']
  assert rows[3][0] == 'c4-train.00001-of-00002.json:1'
  assert task.get('byt5_c4_v220_bart_text_infilling').objective == objectives.TextInfilling()
  assert task.get('c4_v220_prefix_lm').objective == preprocessors.PrefixLM(within_inputs=True)


ROWS = ({'passage': 'p' * 30, 'question': 'q', 'label': 1, 'idx': 0},
        {'passage': 'p', 'question': 'q', 'label': 0, 'idx': 1})


def with_rows(name):
  return dataclasses.replace(task.get(name), source=sources.ListSource({'train': ROWS}))


def test_sentinels(tmp_path):
  found = with_rows('mt5_super_glue_boolq_v102_2_sentinel_examples')
  assert found.name == 'super_glue_boolq_v102_2_sentinel' and found.labels == ('False', 'True')
  built = cache.build(found, 'train', VOCAB, LENGTHS, tmp_path)
  plain = cache.build(with_rows('super_glue_boolq_v102'), 'train', VOCAB, LENGTHS, tmp_path)
  sentinels = [VOCAB.sentinel(0), VOCAB.sentinel(1)]
  for (inputs, targets), (given, label) in zip(
      built.tokens(range(2)), plain.tokens(range(2)), strict=True):
    assert len(inputs) == 24 and inputs[-3:].tolist() == [*sentinels, 1]
    assert inputs[:-3].tolist() == given[:21].tolist()
    assert targets.tolist() == [*sentinels, *label]
  assert built.info['truncated']['inputs']['examples'] == 2
  read = found.postprocess_fn
  assert [read(text) for text in ('<extra_id_0> <extra_id_1> True', 'False', '<extra_id_0> True')
          ] == [1, 0, -1]
  with pytest.raises(UserError, match="Label 'False' .* is 8 tokens .* give 8 or more"):
    cache.build(found, 'train', VOCAB, {'inputs': 24, 'targets': 7}, tmp_path)
  with pytest.raises(UserError, match="no task 'x_1_sentinel'"):
    task.get('x_1_sentinel')


def test_ranked_labels_have_their_sentinels():
  from prompt_tuning.evaluation import scoring
  found = task.get('super_glue_boolq_v102_1_sentinel')
  ids = scoring.label_ids(found.labels, VOCAB, found)
  assert ids[1].tolist() == [VOCAB.sentinel(0), *VOCAB.encode('True'), 1, 0]


def test_windows_that_keep_the_answer():
  form, rng = token_forms.KeepAnswer(), np.random.default_rng(0)
  ids, answer, starts = np.arange(100, 200), np.arange(150, 153), set()
  for _ in range(200):
    inputs, _ = form(ids, answer, VOCAB, {'inputs': 11}, rng)
    assert len(inputs) == 10 and set(answer) <= set(inputs) and (np.diff(inputs) == 1).all()
    starts.add(int(inputs[0]))
  assert starts == set(range(143, 151))
  assert form(ids, answer[::-1], VOCAB, {'inputs': 11}, rng) is None
  assert form(ids, answer[::-1], VOCAB, {'inputs': None}, rng)[0] is ids


@pytest.mark.skipif(importlib.util.find_spec('seqio') is None, reason='seqio is not installed')
@pytest.mark.filterwarnings('default')
@pytest.mark.parametrize('name', ['super_glue_boolq_v102_1_sentinel', 'c4_v220_span_corruption',
                                  'task_index_super_glue_boolq_v102'])
def test_seqio_gives_the_same_ids(name, tmp_path):
  from prompt_tuning.data import seqio_bridge
  rows = ROWS if 'boolq' in name else tuple({'text': 'a text ' * i} for i in range(2, 6))
  found = dataclasses.replace(task.get(name), source=sources.ListSource({'train': rows}))
  theirs = seqio_bridge.register(found, VOCAB, name=f'ours_{name}')
  built = cache.build(found, 'train', VOCAB, LENGTHS, tmp_path)
  made = list(theirs.get_dataset(LENGTHS, 'train', shuffle=False).as_numpy_iterator())
  assert len(made) == len(built) > 0
  for (inputs, targets), row in zip(built.tokens(range(len(built))), made, strict=True):
    assert row['targets'].tolist() == targets.tolist()
    if 'sentinel' not in name:  # SeqIO's trimming knows nothing of them
      assert row['inputs'].tolist() == inputs.tolist()
