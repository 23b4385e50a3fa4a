"""Datasets in the layouts in which their authors publish them, made up here."""

import gzip
import json
import sys
import types

import numpy as np
import pytest

from prompt_tuning.data import files, published, task
from prompt_tuning.data import lines as lines_lib
from prompt_tuning.errors import UserError


def write(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  data = content.encode()
  path.write_bytes(gzip.compress(data) if path.suffix == '.gz' else data)


def lines(*rows):
  return ''.join(json.dumps(row) + '\n' for row in rows)


def read(name, folder, split):
  """[(inputs, targets)] of a task."""
  found = task.get(name, data_dir=str(folder))
  return [(e['inputs'], e['targets']) for _, e in found.examples(split)]


@pytest.mark.parametrize('name, file, content, split, wanted', [
    ('cola', 'CoLA/train.tsv', 'gj04\t1\t\tHe ran.\nb\t0\t*\t"Ran he.\n', 'train',
     [('cola sentence: He ran.', 'acceptable'), ('cola sentence: "Ran he.', 'unacceptable')]),
    ('cola', 'CoLA/test.tsv', 'index\tsentence\n0\tHe ran.\n', 'test',
     [('cola sentence: He ran.', '<unk>')]),
    ('stsb', 'STS-B/dev.tsv', 'index\tsentence1\tsentence2\tscore\n0\ta\tb\t2.533\n', 'validation',
     [('stsb sentence1: a sentence2: b', '2.6')]),
    ('stsb', 'STS-B/test.tsv', 'index\tsentence1\tsentence2\n0\ta\tb\n', 'test',
     [('stsb sentence1: a sentence2: b', '-1.0')]),
    ('mnli', 'MNLI/dev_mismatched.tsv',
     'index\tsentence1\tsentence2\tlabel1\tgold_label\n0\ta\tb\tneutral\tcontradiction\n',
     'validation_mismatched', [('mnli hypothesis: b premise: a', 'contradiction')]),
    ('mnli_matched', 'MNLI/dev_matched.tsv',
     'index\tsentence1\tsentence2\tgold_label\n0\ta\tb\tneutral\n', 'validation',
     [('mnli hypothesis: b premise: a', 'neutral')]),
    ('mnli_mismatched', 'MNLI/test_mismatched.tsv', 'index\tsentence1\tsentence2\n0\ta\tb\n',
     'test', [('mnli hypothesis: b premise: a', '<unk>')]),
    ('qnli', 'QNLI/dev.tsv', 'index\tquestion\tsentence\tlabel\n0\tq?\ts\tnot_entailment\n',
     'validation', [('qnli question: q? sentence: s', 'not_entailment')]),
    ('wnli', 'WNLI/train.tsv', 'index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n', 'train',
     [('wnli sentence1: a sentence2: b', 'entailment')]),
    ('ax', 'AX/diagnostic.tsv', 'index\tsentence1\tsentence2\n0\ta\tb\n', 'test',
     [('mnli hypothesis: b premise: a', '<unk>')]),
])
def test_glue(tmp_path, name, file, content, split, wanted):
  write(tmp_path / 'glue' / file, content)
  assert read(f'glue_{name}_v200', tmp_path, split) == wanted
  [(inputs, _), *_] = read(f'taskless_glue_{name}_v200', tmp_path, split)
  assert inputs == wanted[0][0].split(' ', 1)[1]


def test_a_score_that_is_no_number(tmp_path):
  write(tmp_path / 'STS-B' / 'train.tsv', 'sentence1\tsentence2\tscore\na\tb\thigh\n')
  with pytest.raises(UserError, match="train.tsv:2: the label 'high' has to be a number"):
    read('glue_stsb_v200', tmp_path, 'train')


@pytest.mark.parametrize('folder', ['AX-b', 'AX-g'])
def test_superglue_diagnostics(tmp_path, folder):
  names = ('sentence1', 'sentence2') if folder == 'AX-b' else ('premise', 'hypothesis')
  row = {names[0]: 'a', names[1]: 'b', 'label': 'entailment', 'idx': 0}
  write(tmp_path / folder / f'{folder}.jsonl', lines(row))
  name = folder.replace('-', '').lower()
  assert read(f'super_glue_{name}_v102', tmp_path, 'test') == [
      ('rte hypothesis: b premise: a', 'entailment')]


def test_multirc_of_an_unlabelled_test_split(tmp_path):
  row = {'idx': 3, 'passage': {'text': '<b>Sent 1: </b>One.<br>', 'questions': [
      {'idx': 4, 'question': 'q?', 'answers': [{'idx': 5, 'text': 'x'}, {'idx': 6, 'text': 'y'}]}]}}
  write(tmp_path / 'MultiRC' / 'test.jsonl', lines(row))
  found = task.get('super_glue_multirc_v102', data_dir=str(tmp_path))
  rows = list(found.examples('test'))
  assert [(i, e['inputs'], e['targets'], e['idx/answer']) for i, e in rows] == [
      ('1.0', 'multirc question: q? answer: x paragraph: Sent 1: One. ', '<unk>', 5),
      ('1.1', 'multirc question: q? answer: y paragraph: Sent 1: One. ', '<unk>', 6)]


def test_a_row_without_its_parts(tmp_path):
  write(tmp_path / 'MultiRC' / 'train.jsonl', lines({'idx': 1, 'passage': {'text': 'p'}}))
  with pytest.raises(UserError, match="train.jsonl:1: this row does not have the parts.*'questions'"
                                      ".*It holds 'idx', 'passage'"):
    read('super_glue_multirc_v102', tmp_path, 'train')
  row = {'text': 'a it b', 'label': True, 'idx': 0, 'target': {
      'span1_index': '0', 'span2_index': 1, 'span1_text': 'a', 'span2_text': 'it'}}
  write(tmp_path / 'WSC' / 'train.jsonl', lines(row))
  with pytest.raises(UserError, match="WSC/train.jsonl:1: field 'span1_index' .* of type int"):
    read('super_glue_wsc_v102', tmp_path, 'train')


def test_wsc_spans_are_written_as_in_the_text(tmp_path):
  target = {'span1_index': 0, 'span1_text': 'the cat.', 'span2_index': 3, 'span2_text': 'It'}
  write(tmp_path / 'WSC' / 'train.jsonl', lines(
      {'text': 'The cat sat; it slept.', 'label': True, 'idx': 0, 'target': target}))
  assert read('super_glue_wsc_v102_simple_train', tmp_path, 'train') == [
      ('wsc: The cat sat; *it* slept.', 'The cat')]
  assert read('super_glue_wsc_v102', tmp_path, 'train') == [
      ('wsc text: * The cat * sat; # it # slept.', 'True')]


MRQA = lines(
    {'header': {'dataset': 'DROP', 'split': 'dev'}},
    {'id': '', 'context': 'It was\n\u00a0 red, not blue.', 'qas': [
        {'qid': 'a', 'question': 'Which colour?', 'answers': ['RED', 'red'],
         'detected_answers': [{'text': 'red', 'char_spans': [[9, 11]]}]},
        {'qid': 'b', 'question': 'Which not?', 'answers': ['blue'], 'detected_answers': []}]})
QUESTIONS = [
    ('question: Which colour ? context: It was red , not blue . ', 'red'),
    ('question: Which not ? context: It was red , not blue . ', 'blue')]


@pytest.mark.parametrize('place', ['DROP.jsonl.gz', 'dev/DROP.jsonl.gz', 'mrqa/dev/DROP.jsonl',
                                   'MRQA/out_of_domain_dev/DROP.jsonl'])
def test_mrqa(tmp_path, place):
  write(tmp_path / place, MRQA)
  assert read('mrqa_drop_v001', tmp_path, 'validation') == QUESTIONS
  found = task.get('mt5_mrqa_drop_v001_examples', module='prompt_tuning.data.qa',
                   data_dir=str(tmp_path))
  assert found.splits == ('validation',)
  targets = [found.postprocess_fn(e['targets'], e, is_target=True)
             for _, e in found.examples('validation')]
  assert targets == [['RED', 'red'], ['blue']]
  assert found.metrics(targets, ['Red', 'x']) == {'em': 50.0, 'f1': 50.0}


@pytest.mark.parametrize('indent', [None, 1])
@pytest.mark.parametrize('version_first', [False, True])
def test_squad(tmp_path, indent, version_first):
  article = {'title': 't', 'paragraphs': [{'context': 'Red, not blue.', 'qas': [
      {'id': 'a', 'question': 'Which?', 'answers': [{'text': 'Red', 'answer_start': 0}]},
      {'id': 'b', 'question': 'Why?', 'answers': []}]}]}
  content = {'data': [article, article], 'version': '1.1'}
  if version_first:
    content = dict(reversed(content.items()))
  write(tmp_path / 'dev-v1.1.json', json.dumps(content, indent=indent))
  assert read('squad_v010_allanswers', tmp_path, 'validation') == 2 * [
      ('question: Which ? context: Red , not blue . ', 'Red'),
      ('question: Why ? context: Red , not blue . ', '<unk>')]
  assert read('squad_v010_context_free', tmp_path, 'validation')[0][0] == (
      'squad trivia question: Which ? ')
  [(place, _), _] = files.read_rows(tmp_path / 'dev-v1.1.json', list_in='data')
  line, column = map(int, place.split(':'))
  text = (tmp_path / 'dev-v1.1.json').read_text().split('\n')[line - 1]
  assert text[column - 1] == '{'


def test_splits_that_have_another_name_at_tfds(monkeypatch):
  rows = {'test': [{'question': b'q?', 'context': b'c', 'answers': np.asarray([b'a'], object),
                    'detected_answers': {'text': np.asarray([b'A'], object)}}]}
  builder = types.SimpleNamespace(
      info=types.SimpleNamespace(splits=rows, full_name='x'), download_and_prepare=lambda: None,
      as_dataset=lambda split: rows[split])
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', types.SimpleNamespace(
      builder=lambda name: builder, as_numpy=lambda dataset: dataset))
  found = task.get('mrqa_drop_v001')
  assert found.splits == ('validation',)
  [(_, example)] = found.examples('validation')
  assert (example['inputs'], example['targets']) == ('question: q ? context: c', 'A')
  assert isinstance(found.source, published.TfdsSource)


def test_a_cache_of_tfds_is_named_without_tfds(monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  found = task.get('super_glue_rte_v102')
  assert {'train', 'validation'} <= set(found.splits)
  assert found.source.fingerprint('train') == 'tfds super_glue/rte:1.0.2 train'
  with pytest.raises(UserError, match='Set DATA_DIR'):
    next(found.examples('train'))


def test_web_nlg(tmp_path):
  triple = {'subject': 'A', 'property': 'is', 'object': 'B'}
  entry = {'modifiedtripleset': [triple, triple], 'lexicalisations': [{'lex': 'x'}, {'lex': 'y'}]}
  write(tmp_path / 'WebNLG' / 'dev.json', json.dumps({'entries': [{'1': entry}, {'2': entry}]}))
  found = task.get('web_nlg_v001', data_dir=str(tmp_path))
  examples = [e for _, e in found.examples('validation')]
  assert [(e['inputs'], e['targets']) for e in examples] == 2 * [
      ('web_nlg: A | is | B && A | is | B', 'x'), ('web_nlg: A | is | B && A | is | B', 'y')]
  targets = [found.postprocess_fn(e['targets'], e, is_target=True) for e in examples]
  assert targets[0] == {'value': ['x', 'y'], 'group': 0} and targets[2]['group'] == 1
  predictions = [found.postprocess_fn(text) for text in ('y', 'no', 'no', 'x')]
  assert found.metrics(targets, predictions)['rouge1'] == 50.0  # firsts of the two groups


XML = '''<?xml version='1.0' encoding='UTF-8'?>
<benchmark><entries>
  <entry category="c" eid="Id1" size="1">
    <originaltripleset><otriple>A | is | B@en</otriple></originaltripleset>
    <modifiedtripleset><mtriple>A | is | B</mtriple><mtriple>B | has | é</mtriple>
    </modifiedtripleset>
    <lex comment="good" lid="Id1"> x &amp; y </lex><lex>z</lex>
  </entry>
</entries></benchmark>'''


def test_web_nlg_as_xml(tmp_path, monkeypatch):
  file = tmp_path / 'testdata_with_lex.xml.gz'
  write(file, XML)
  inputs = 'web_nlg: A | is | B && B | has | é'
  assert read('web_nlg_v001', tmp_path, 'test') == [(inputs, 'x & y'), (inputs, 'z')]
  for content, match in (
      (XML[:-5], 'xml.gz:9: not valid XML: '), ('<a></b>', 'xml.gz:1: not valid XML: mismatched'),
      ('', 'not valid XML'), ('<a/>', 'expected <entry> elements')):
    write(file, content)
    with pytest.raises(UserError, match=match):
      read('web_nlg_v001', tmp_path, 'test')
  write(file, XML.replace(' x ', ' x ' * 100))
  monkeypatch.setattr(lines_lib, '_PIECE', 50)
  monkeypatch.setattr(lines_lib, 'MAX_ROW', 400)
  with pytest.raises(UserError, match='xml.gz:entry 1: a row of more than 400 characters'):
    read('web_nlg_v001', tmp_path, 'test')


def test_entities_of_xml_do_not_fill_the_memory(tmp_path):
  entities = ''.join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
  write(tmp_path / 'testdata_with_lex.xml',
        f'<!DOCTYPE a [<!ENTITY e0 "{"x" * 100}">{entities}]><a>&e11;</a>')
  with pytest.raises(UserError, match='not valid XML: limit on input amplification'):
    read('web_nlg_v001', tmp_path, 'test')


def test_dart(tmp_path):
  row = {'tripleset': [['A', 'is', 'B']], 'annotations': [{'source': 's', 'text': 'x'}]}
  write(tmp_path / 'dart' / 'dart-v1.1.1-full-test.json', json.dumps([row], indent=1))
  assert read('dart_v001', tmp_path, 'test') == [('dart: A | is | B', 'x')]


def test_e2e_counts_an_input_once_against_all_its_references(tmp_path):
  write(tmp_path / 'E2E' / 'devset.csv',
        'mr,ref\n"n[a], b[c]",one two\n"n[a], b[c]",three\nm,four\n')
  found = task.get('e2e_nlg_v001', data_dir=str(tmp_path))
  examples = [e for _, e in found.examples('validation')]
  assert examples[0]['inputs'] == 'e2e_nlg: n[a], b[c]'
  targets = [found.postprocess_fn(e['targets'], e, is_target=True) for e in examples]
  predictions = [found.postprocess_fn(text) for text in ('three', 'no', 'no')]
  assert found.metrics(targets, predictions)['rouge1'] == 50.0


@pytest.mark.parametrize('content', [[['s', 'd']], [{'id': '1', 'summary': 's', 'dialogue': 'd'}]])
def test_samsum(tmp_path, content):
  write(tmp_path / 'val.json', json.dumps(content))
  assert read('samsum_v100', tmp_path, 'validation') == [('summarize: d', 's')]
  write(tmp_path / 'test.json', json.dumps([['s', 'd', 'x']]))
  with pytest.raises(UserError, match="test.json:1:2: a row of 3 values; expected 2: 'summary', "):
    read('samsum_v100', tmp_path, 'test')


def test_a_dataset_that_is_files_alone():
  for use in (lambda t: t.splits, lambda t: list(t.examples('train'))):
    with pytest.raises(UserError, match='The dataset E2E .* Set DATA_DIR .* trainset.csv, devset'):
      use(task.get('e2e_nlg_v001'))


def test_nli_of_prompt_transfer(tmp_path):
  write(tmp_path / 'anli_v1.0' / 'R2' / 'dev.jsonl', lines(
      {'uid': 'u', 'context': 'a  b', 'hypothesis': 'c\nd', 'label': 'n'}))
  assert read('spot_anli_r2_v010', tmp_path, 'validation') == [
      ('anli_r2 hypothesis: c d context: a b', 'neutral')]
  row = {'sentence1': 'a', 'sentence2': 'b'}
  write(tmp_path / 'snli_1.0' / 'snli_1.0_test.jsonl', lines(
      {**row, 'gold_label': 'contradiction'}, {**row, 'gold_label': '-'}))
  assert read('spot_snli_v110', tmp_path, 'test') == [
      ('snli hypothesis: b premise: a', 'contradiction'),
      ('snli hypothesis: b premise: a', '<unk>')]


def test_the_parts_of_mnli_under_their_names_of_prompt_transfer(tmp_path):
  row = 'sentence1\tsentence2\tgold_label\na\tb\tneutral\n'
  write(tmp_path / 'MNLI' / 'train.tsv', row)
  write(tmp_path / 'MNLI' / 'dev_mismatched.tsv', row)
  for name, split in (('train', 'train'), ('validation_mismatched', 'validation')):
    assert read(f'spot_glue_mnli_{name}_v200', tmp_path, split) == [
        ('mnli hypothesis: b premise: a', 'neutral')]
  assert task.get('spot_glue_mnli_validation_matched_v200').source.renamed == (
      ('validation', 'validation_matched'),)
  assert read('spot_glue_rte_v200', write_rte(tmp_path), 'train') == [
      ('rte sentence1: a sentence2: b', 'entailment')]


def write_rte(folder):
  write(folder / 'RTE' / 'train.tsv', 'sentence1\tsentence2\tlabel\na\tb\tentailment\n')
  return folder
