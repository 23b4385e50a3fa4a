"""Every registered task of the golden files: strings, ids, labels, postprocessing."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from prompt_tuning import vocabulary
from prompt_tuning.data import cache, postprocessors, preprocessors, sources, task, text_forms
from prompt_tuning.errors import UserError

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / 'golden' / 'data'
PREPROCESS = json.loads((GOLDEN / 'text' / 'preprocess.json').read_text())
POSTPROCESS = json.loads((GOLDEN / 'text' / 'postprocess.json').read_text())
LENGTHS = {'inputs': None, 'targets': None}


@pytest.fixture(scope='module')
def vocab(shared_dir):
  return vocabulary.load_vocabulary(shared_dir / 'data' / 'vocab' / 't5.sentencepiece.model')


def with_examples(name, raw):
  """A registered task that reads these raw examples."""
  return dataclasses.replace(
      task.get(name), source=sources.ListSource({'train': tuple(PREPROCESS['raw'][raw])}))


@pytest.mark.parametrize('name', PREPROCESS['tasks'])
def test_strings_equal_the_reference(name):
  wanted = PREPROCESS['tasks'][name]
  found = [example for _, example in with_examples(name, wanted['raw']).examples('train')]
  assert len(found) == len(wanted['examples']) > 0
  for ours, theirs in zip(found, wanted['examples'], strict=True):
    assert ours['inputs'] == theirs['inputs_pretokenized']
    assert ours['targets'] == theirs['targets_pretokenized']
    others = set(theirs) - {'inputs', 'targets', 'inputs_pretokenized', 'targets_pretokenized'}
    assert {key: ours[key] for key in others} == {key: theirs[key] for key in others}


@pytest.mark.parametrize('name', PREPROCESS['tasks'])
def test_ids_equal_the_reference(name, vocab, tmp_path):
  wanted = PREPROCESS['tasks'][name]
  built = cache.build(with_examples(name, wanted['raw']), 'train', vocab, LENGTHS, tmp_path)
  assert len(built) == len(wanted['examples'])
  for theirs, (inputs, targets) in zip(
      wanted['examples'], built.tokens(range(len(built))), strict=True):
    assert inputs.tolist() == theirs['inputs']
    assert targets.tolist() == theirs['targets']


def test_forms_that_are_no_task():
  theirs = PREPROCESS['preprocessors']
  rows = PREPROCESS['raw']['super_glue/wsc.fixed']
  forms = {
      'wsc (span marking)': text_forms.WscMarked(),
      'wsc_simple correct_referent_only=True': text_forms.WscReferent(only_correct=True),
      'wsc_simple correct_referent_only=False': text_forms.WscReferent(only_correct=False)}
  for name, form in forms.items():
    # The third text has words where its marks cannot stand: the reference leaves it out.
    given = rows[:2] if 'marking' in name else rows
    made = [{**row, **example} for row in given for example in form(row)]
    assert len(made) == len(theirs[name]) > 0
    for ours, wanted in zip(made, theirs[name], strict=True):
      assert {key: ours[key] for key in wanted} == wanted
  assert len(theirs['anchor.remove_first_text_token']) > 5
  for text, wanted in theirs['anchor.remove_first_text_token']:
    assert text_forms.without_first_word(text) == wanted


def test_label_classes():
  compared = 0
  for config, labels in POSTPROCESS['label_classes'].items():
    benchmark, name = config.split('/')
    if name in ('record', 'wsc.fixed'):
      continue  # answers are free text
    version = 'v102' if benchmark == 'super_glue' else 'v200'
    found = task.get(f'{benchmark}_{name}_{version}')
    assert found.labels == (None if labels is None else tuple(labels))
    compared += 1
  assert compared > 15


def test_postprocessing():
  label_id = postprocessors.LabelId(('not_entailment', 'entailment'))
  for text, wanted in POSTPROCESS['string_label_to_class_id']:
    assert label_id(text) == wanted
  multirc = task.get('super_glue_multirc_v102').postprocess_fn
  assert multirc('True', {'idx/question': 5}, is_target=True) == POSTPROCESS['multirc']['target']
  for text, wanted in POSTPROCESS['multirc']['predictions']:
    assert multirc(text) == wanted
  record = task.get('super_glue_record_v102').postprocess_fn
  target = POSTPROCESS['record']['target']
  example = {'answers': target['value'], 'idx/passage': 3, 'idx/query': 4}
  assert record('', example, is_target=True) == {**target, 'group': tuple(target['group'])}
  assert record('pigeon') == POSTPROCESS['record']['prediction']
  squad = task.get('squad_v010_allanswers').postprocess_fn
  assert squad('', example, is_target=True) == POSTPROCESS['qa']['target']
  assert squad('pigeon') == POSTPROCESS['qa']['prediction']
  wsc = task.get('super_glue_wsc_v102_simple_eval').postprocess_fn
  assert len(POSTPROCESS['wsc_simple']) > 40
  for predicted, wanted, result in POSTPROCESS['wsc_simple']:
    assert wsc(predicted, {'targets': wanted, 'label': 0}) == result, (predicted, wanted)
  assert wsc('', {'targets': 'x', 'label': 1}, is_target=True) == 1
  assert postprocessors.Text(lower=True)('aBc') == POSTPROCESS['lower_text']


def test_similarity_rounds_in_float32_half_to_even():
  form = text_forms.Similarity()
  row = {'sentence1': 'a', 'sentence2': 'b'}
  for label, wanted in ((2.1, '2.0'), (0.1, '0.0'), (2.3, '2.4'), (3, '3.0'),
                        (np.float32(4.75), '4.8'), (-1.0, '-1.0')):
    assert form({**row, 'label': label}) == [
        {'inputs': 'stsb sentence1: a sentence2: b', 'targets': wanted}]
  with pytest.raises(UserError, match="'label' is '2.1'; a number"):
    form({**row, 'label': '2.1'})
  number = postprocessors.Number()
  assert [number(text) for text in ('2.4', ' 3', 'three', '')] == [2.4, 3.0, -1.0, -1.0]


def test_a_prompt_of_one_dataset_on_the_other():
  mrpc, qqp = (task.get(f'glue_{name}_v002') for name in ('mrpc_from_qqp', 'qqp_from_mrpc'))
  assert [mrpc.postprocess_fn(x) for x in ('not_duplicate', 'duplicate', 'equivalent', 'x')] == [
      0, 1, 1, -1]
  assert [qqp.postprocess_fn(x) for x in ('not_equivalent', 'equivalent', 'duplicate')] == [0, 1, 1]
  assert mrpc.labels == ('not_duplicate', 'duplicate')
  assert mrpc.splits == ('validation',)


def test_task_index_stands_before_the_tokens(tmp_path):
  vocab = vocabulary.ByteVocabulary(100)
  raw = 'super_glue/axb'
  built = {name: cache.build(with_examples(name, raw), 'train', vocab, LENGTHS, tmp_path)
           for name in ('taskless_super_glue_axb_v102', 'task_index_super_glue_axb_v102')}
  (plain, _), (indexed, _) = (b.tokens([0])[0] for b in built.values())
  assert indexed.tolist() == [vocab.sentinel(5), *plain.tolist()]  # axb counts as rte


def test_definite_pronouns():
  rows = PREPROCESS['raw']['definite_pronoun_resolution']
  made = [example for _, example in with_examples(
      'taskless_dpr_v001_simple', 'definite_pronoun_resolution').examples('train')]
  assert [(m['inputs'], m['targets']) for m in made] == [
      ('Bob asked Tom if *he* can lend some money, he said.', 'Tom'),
      ('The fish ate the worm; *it* was tasty.', 'the worm')]
  with pytest.raises(UserError, match="'label' is 2; the number of a candidate"):
    text_forms.DprReferent()({**rows[0], 'label': 2})


def test_wsc_whose_index_or_word_is_off():
  form = text_forms.WscReferent(only_correct=False)
  row = {'span1_text': 'Ann', 'span2_text': 'it', 'label': 0, 'text': 'Ann may use it now.'}
  assert form({**row, 'span2_index': 2})[0]['inputs'] == 'wsc: Ann may use *it* now.'
  row = {**row, 'text': 'Good for it," said Ann. '}
  assert form({**row, 'span2_index': 2})[0]['inputs'] == 'wsc: Good for *it* ," said Ann.'
  for index, match in ((0, "word 0 of .* is 'Good', and not the pronoun 'it'"), (99, 'word 99'),
                       (-1, "'span2_index' is -1"), (None, 'None; the number of a word')):
    with pytest.raises(UserError, match=match):
      form({**row, 'span2_index': index})


def test_lists_of_texts():
  row = {'question': 'q?', 'context': 'c', 'id': '1'}
  form = text_forms.QuestionAndContext()
  for answers, wanted in ((['a', 'b'], 'a'), ([], preprocessors.UNLABELLED),
                          ({'text': ['a.']}, 'a . ')):
    assert form({**row, 'answers': answers})[0]['targets'] == wanted
  assert form({**row, 'answers': ['a'], 'detected_answers': {'text': ['b']}})[0]['targets'] == 'b'
  assert form({**row, 'answers': ['a'], 'answer': 'c'})[0]['targets'] == 'c'
  first = task.get('spot_mrqa_news_qa_v100').preprocess
  assert first({**row, 'answers': ['a'], 'answer': 'c'})[0]['targets'] == 'a'
  with pytest.raises(UserError, match="'answers' is 'a'; a list of texts"):
    form({**row, 'answers': 'a'})
