"""What there is in a split: counted on small examples, and on the published files."""

import numpy as np
import pytest

from prompt_tuning import vocabulary
from prompt_tuning.data import preprocessors, sources, statistics, task
from prompt_tuning.diagnosis import split_checks
from prompt_tuning.errors import UserError

ROWS = {
    'train': ({'inputs': 'a b c', 'targets': 'yes', 'label': 1},
              {'inputs': 'a b', 'targets': 'no', 'label': 0},
              {'inputs': 'a b', 'targets': 'no', 'label': 0},
              {'inputs': '', 'targets': 'maybe so', 'label': 0}),
    'validation': ({'inputs': 'a b', 'targets': 'no', 'label': 0},
                   {'inputs': 'd', 'targets': 'no', 'label': 0}),
    'test': ({'inputs': 'e', 'targets': '<unk>', 'label': -1},)}


def a_task(**kwargs):
  return task.Task(**{'name': 'small', 'source': sources.ListSource(ROWS),
                      'labels': ('yes', 'no', 'never'), **kwargs})


def test_words():
  found = statistics.gather(a_task(), 'train')
  assert (found.rows, len(found), found.repeated, found.unit) == (4, 4, 1, 'words')
  assert found.lengths.tolist() == [[3, 1], [2, 1], [2, 1], [0, 2]]
  assert found.targets == {'yes': 1, 'no': 2, 'maybe so': 1}
  assert found.empty == {'inputs': 1}
  assert found.first == 'train example 0'
  assert found.truncated({'inputs': 1, 'targets': 1}) == {}
  assert {example.inputs for example in found.rendered} <= {'a b c', 'a b', ''}
  assert len(found.rendered) == 3


def test_tokens_and_what_would_be_cut():
  found = statistics.gather(a_task(), 'train', vocabulary.ByteVocabulary())
  assert found.lengths.tolist() == [[6, 4], [4, 3], [4, 3], [1, 9]]
  assert found.truncated({'inputs': 4, 'targets': None}) == {
      'inputs': {'examples': 1, 'tokens': 2, 'longest': 6}}


def test_tokens_are_those_of_the_cache():
  """Rows that give several examples, sentinels, ids from outside."""
  several = a_task(preprocess=lambda ex: [ex, {**ex, 'inputs': 'more'}], task_index=0)
  found = statistics.gather(several, 'validation', vocabulary.ByteVocabulary(2))
  assert (found.rows, len(found)) == (2, 4)
  assert found.lengths[:, 0].tolist() == [5, 6, 3, 6]
  given = task.Task(name='ids', source=sources.ListSource(
      {'train': ({'inputs': np.asarray([100, 101, 1]), 'targets': [102]},)}))
  found = statistics.gather(given, 'train', vocabulary.ByteVocabulary())
  assert found.lengths.tolist() == [[3, 1]]
  assert found.rendered[0].inputs == 'ab' and found.rendered[0].targets == 'c'
  corpus = a_task(source=sources.ListSource({'train': ({'text': 'plain text ' * 9},)}),
                  objective=preprocessors.SpanCorruption())
  assert len(statistics.gather(corpus, 'train').lengths) == 1
  lengths = {'inputs': 32, 'targets': 16}
  assert statistics.gather(
      corpus, 'train', vocabulary.ByteVocabulary(100), lengths).truncated(lengths)[
          'inputs']['examples'] == 0


def test_summary():
  assert statistics.summary(np.arange(101)) == {'mean': 50.0, 'p50': 50.0, 'p95': 95.0, 'max': 100}
  assert statistics.summary(np.zeros(0)) == {}


def test_all_rows_are_drawn_alike():
  rows = tuple({'inputs': str(i), 'targets': 'x'} for i in range(3000))
  drawn = statistics.gather(
      a_task(source=sources.ListSource({'train': rows})), 'train').rendered
  assert len({example.example_id for example in drawn}) == 3
  assert max(int(example.example_id) for example in drawn) > 300


def test_free_text_is_not_kept():
  rows = tuple({'inputs': 'x', 'targets': str(i % 1500)} for i in range(3000))
  free = a_task(source=sources.ListSource({'train': rows}), labels=None)
  found = statistics.gather(free, 'train').targets
  assert len(found) == 1000 and set(found.values()) == {2}


def test_checks():
  the_task = a_task()
  splits = [statistics.gather(the_task, name) for name in ROWS]
  assert statistics.shared(splits) == {('train', 'validation'): 1}
  found = {(f.severity, f.topic): f.found for f in split_checks.check_splits(
      the_task, splits, {}, None)}
  assert "'maybe so'" in found['problem', 'unknown labels']
  assert found['problem', 'one class'].startswith('All 2 examples of validation')
  assert found['warning', 'missing classes'] == (
      "1 of 3 labels have no training example: 'never'.")
  assert found['warning', 'duplicates'].startswith('1 of 2 examples of validation have the input')
  assert found['warning', 'empty texts'] == '25.0 % of the inputs of train give no tokens.'
  assert found['note', 'class balance'] == 'test: the labels are not published.'


def test_errors():
  with pytest.raises(UserError, match="no split 'dev'"):
    statistics.gather(a_task(), 'dev')


# ../shared/data/INDEX.md; WebNLG's rows are sets of triples with several references each.
PUBLISHED = {
    ('superglue', 'super_glue_boolq_v102'): {'train': 2000, 'validation': 3270},
    ('superglue', 'super_glue_cb_v102'): {'train': 250, 'validation': 56},
    ('superglue', 'super_glue_copa_v102'): {'train': 400, 'validation': 100},
    ('superglue', 'super_glue_rte_v102'): {'train': 2490, 'validation': 277},
    ('superglue', 'super_glue_wic_v102'): {'train': 5428, 'validation': 638},
    ('glue', 'glue_sst2_v200'): {'train': 67349, 'validation': 872},
    ('glue', 'glue_mrpc_v200'): {'train': 3667, 'validation': 408, 'test': 1725},
    ('glue', 'glue_qqp_v200'): {'train': 8999, 'validation': 1000},
    ('mrqa', 'mrqa_squad_v001'): {'validation': 2910, 'xquad': 1190},
    ('mrqa', 'mrqa_duorc_v001'): {'train': 127, 'validation': 126},
    ('mrqa', 'mrqa_race_v001'): {'train': 127, 'validation': 128},
    ('mrqa', 'mrqa_relation_extraction_v001'): {'train': 127, 'validation': 128},
    ('nlg', 'e2e_nlg_v001'): {'validation': 4672, 'test': 4693},
    ('nlg', 'web_nlg_v001'): {'train': 6940, 'validation': 872, 'test': 1862},
    ('nlg', 'samsum_v100'): {'validation': 818, 'test': 819},
}


@pytest.mark.parametrize(('folder', 'name'), PUBLISHED, ids=[name for _, name in PUBLISHED])
def test_published_files_have_as_many_rows_as_their_index_says(shared_dir, folder, name):
  found = task.get(name, data_dir=str(shared_dir / 'data' / folder))
  wanted = PUBLISHED[folder, name]
  splits = [statistics.gather(found, split) for split in wanted]
  assert {split.split: split.rows for split in splits} == wanted
  assert all(len(split) >= split.rows for split in splits)
  problems = [f for f in split_checks.check_splits(found, splits, {}, None)
              if f.severity == 'problem']
  assert not problems
