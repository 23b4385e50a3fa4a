"""Datasets that are published as text files, many files or undescribed tables, made up here."""

import gzip
import hashlib
import json
import sys

import pytest

from prompt_tuning.data import files, task
from prompt_tuning.errors import UserError


def write(folder, contents):
  for name, content in contents.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode('latin-1' if 'rt-polarity' in name else 'utf-8')
    path.write_bytes(gzip.compress(data) if path.suffix == '.gz' else data)


STORY = 'First line\n\nIt ended.\n\n@highlight\n\nOne\n\n@highlight\n\nTwo!\n'
URL = 'http://a.b/c'
SHA = hashlib.sha1(URL.encode()).hexdigest()
ENTRY = ('<benchmark><entries><entry><modifiedtripleset><mtriple>{0} | is | B</mtriple>'
         '</modifiedtripleset><lex comment="good"><text>{0} is B.</text></lex></entry></entries>'
         '</benchmark>')

# Name, files, split -> [(inputs, targets)].
LAYOUTS = [
    ('scitail_v100', {'SciTailV1.1/tsv_format/scitail_1.0_train.tsv': 'It "is.\tIs it\tentails\n',
                      'SciTailV1.1/tsv_format/scitail_1.0_dev.tsv': 'a\tb\tneutral\n'},
     {'train': [('scitail hypothesis: Is it premise: It "is.', 'entails')],
      'validation': [('scitail hypothesis: b premise: a', 'neutral')]}),
    ('spot_snli_v110', {'snli_1.0/snli_1.0_dev.jsonl.gz': json.dumps(
        {'gold_label': '-', 'sentence1': 'a', 'sentence2': 'b'})},
     {'validation': [('snli hypothesis: b premise: a', '<unk>')]}),
    ('paws_wiki_v110', {'final/train.tsv': 'id\tsentence1\tsentence2\tlabel\n7\ta\tb "\t1\n'},
     {'train': [('paws_wiki sentence1: a sentence2: b "', 'paraphrase')]}),
    ('spot_doc_nli_v100', {'DocNLI/dev.json': json.dumps(
        [{'premise': 'p', 'hypothesis': 'h', 'label': 'not_entailment'}], indent=1)},
     {'validation': [('doc_nli hypothesis: h premise: p', 'not_entailment')]}),
    ('spot_imdb_reviews_v100', {'aclImdb/train/pos/0_9.txt': 'Good<br />film', 'aclImdb/train/neg/'
                                '1_2.txt': 'Bad.', 'aclImdb/train/unsup/3_0.txt': 'x',
                                'aclImdb/test/neg/1_2.txt': 'Worse.'},
     {'train': [('imdb_reviews text: Bad.', 'negative'),
                ('imdb_reviews text: Good<br />film', 'positive')],
      'test': [('imdb_reviews text: Worse.', 'negative')]}),
    ('spot_yelp_polarity_reviews_v020', {
        'yelp_review_polarity_csv/test.csv': '"2","So ""good"",\\nyes. "\n"1","No"\n'},
     {'test': [('yelp_polarity_reviews text: So ""good"",\\nyes.', 'positive'),
               ('yelp_polarity_reviews text: No', 'negative')]}),
    ('rotten_tomatoes_v100', {'rotten_tomatoes/validation.csv': 'text,label\n"a, b",1\n'},
     {'validation': [('rotten_tomatoes text: a, b', 'positive')]}),
    ('rotten_tomatoes_v100', {'rt-polaritydata/rt-polarity.pos': ''.join(
        f'caf\u00e9 {i} \n' for i in range(10)), 'rt-polaritydata/rt-polarity.neg': 'no\n' * 10},
     {'train': [('rotten_tomatoes text: no', 'negative')] * 8 + [
         (f'rotten_tomatoes text: caf\u00e9 {i}', 'positive') for i in range(8)],
      'validation': [('rotten_tomatoes text: no', 'negative'),
                     ('rotten_tomatoes text: caf\u00e9 8', 'positive')],
      'test': [('rotten_tomatoes text: no', 'negative'),
               ('rotten_tomatoes text: caf\u00e9 9', 'positive')]}),
    ('tweet_sentiment_v100', {'tweeteval/datasets/sentiment/val_text.txt': '@user hi \nno\n',
                              'tweeteval/datasets/sentiment/val_labels.txt': '1\n0\n'},
     {'validation': [('tweet_sentiment text: @user hi', 'neutral'),
                     ('tweet_sentiment text: no', 'negative')]}),
    ('ethics_deontology_v100', {
        'ethics/deontology/deontology_train.csv': 'label,scenario,excuse\n1,"Do, it.",No.\n',
        'ethics/deontology/deontology_test.csv': 'label,scenario,excuse\n0,a,b\n'},
     {'train': [('ethics_deontology scenario: Do, it. excuse: No.', 'acceptable')],
      'test': [('ethics_deontology scenario: a excuse: b', 'unacceptable')]}),
    ('ethics_justice_v100', {'ethics/justice/justice_test_hard.csv': 'label,scenario\n0,a\n'},
     {'test_hard': [('ethics_justice scenario: a', 'unacceptable')]}),
    ('dpr_v001_simple', {'dpr/train.c.txt': 'Bob asked Tom if he can.\nhe\nBob,Tom\nTom\n\n'
                         'A saw B, it fled.\nit\nA, B\nB\n\n'},
     {'train': [('wsc: Bob asked Tom if *he* can.', 'Tom'), ('wsc: A saw B, *it* fled.', 'B')]}),
    ('xsum_v110', {
        'XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json':
            '{"train": ["7", "8"], "validation": ["9"], "test": []}',
        **{f'xsum-extracts-from-downloads/{i}.data':
           f'[XSUM]URL[XSUM]\nhttp://x\n\n[XSUM]INTRODUCTION[XSUM]\nShort {i}.\n\n'
           '[XSUM]RESTBODY[XSUM]\nTwitter\nLong.\nLonger.\n' for i in (7, 9)}},
     {'train': [('summarize: Long.\nLonger.', 'Short 7.')],
      'validation': [('summarize: Long.\nLonger.', 'Short 9.')], 'test': []}),
    ('xsum_v110', {'xsum/train.document': 'One. Two.\n', 'xsum/train.summary': 'Three. \n'},
     {'train': [('summarize: One. Two.', 'Three.')]}),
    ('cnn_dailymail_v002', {'all_val.txt': f'{URL}\n', f'cnn/stories/{SHA}.story': STORY},
     {'validation': [('summarize: First line. It ended.', 'One.\nTwo!')]}),
    ('cnn_dailymail_v310', {'train.source.gz': 'a\n', 'train.target.gz': 'b\n'},
     {'train': [('summarize: a', 'b')]}),
    ('multi_news_v100', {'val.src.cleaned': 'a NEWLINE_CHAR b\n', 'val.tgt': '– c\n'},
     {'validation': [('summarize: a \n b', '– c')]}),
    ('spot_gigaword_v120', {'org_data/train.src.txt': 'a <unk>\n', 'org_data/train.tgt.txt': 'b\n',
                            'org_data/test.src.txt': '<unk>\n', 'org_data/test.tgt.txt': 'c\n'},
     {'train': [('gigaword summarize: a UNK', 'b')],
      'test': [('gigaword summarize: <unk>', 'c')]}),
    ('spot_aeslc_v100', {'enron_subject_line/dev/a.subject':
                         'Hi\nyou\n\n@subject\nGreeting\n\n@ann0\nHello\n'},
     {'validation': [('aeslc summarize: Hi\nyou\n', 'Greeting\n')]}),
    ('spot_billsum_v300', {'us_train_data_final_OFFICIAL.jsonl': json.dumps(
        {'bill_id': 'x', 'text': 'a', 'summary': 'b', 'title': 'c'})},
     {'train': [('billsum summarize: a', 'b')]}),
    ('wmt16_enro_v003', {'ro-en/train.en': 'Good.\n', 'ro-en/train.ro': 'Bun.\n',
                         'ro-en/dev.jsonl': '{"translation": {"ro": "a", "en": "b"}}'},
     {'train': [('translate English to Romanian: Good.', 'Bun.')],
      'validation': [('translate English to Romanian: b', 'a')]}),
    ('web_nlg_v001', {'en/train/1triples/A.xml': ENTRY.format('A'), 'en/train/2triples/B.xml.gz':
                      ENTRY.format('C'), 'en/dev/1triples/A.xml': ENTRY.format('D')},
     {'train': [('web_nlg: A | is | B', 'A is B.'), ('web_nlg: C | is | B', 'C is B.')],
      'validation': [('web_nlg: D | is | B', 'D is B.')]}),
    ('dart_v001', {'dart-v1.1.1-full-test.json': json.dumps(
        [{'tripleset': [['A', 'IS', 'B'], ['B', 'HAS', 'C']],
          'annotations': [{'source': 's', 'text': 't'}, {'source': 's', 'text': 'u'}]}])},
     {'test': [('dart: A | IS | B && B | HAS | C', text) for text in 'tu']}),
    ('mrqa_race_v001', {'RACE.tsv': 'id\tcontext\tquestion\tanswer\tanswers\nx\tIt is.\tIs it?\tyes'
                        '\tyes|||so\n'},
     {'validation': [('question: Is it ? context: It is . ', 'yes')]}),
]


@pytest.mark.parametrize('name, contents, wanted', LAYOUTS,
                         ids=[f'{i}-{row[0]}' for i, row in enumerate(LAYOUTS)])
def test_layouts(tmp_path, monkeypatch, name, contents, wanted):
  for library in ('tensorflow_datasets', 'tensorflow', 'seqio'):  # DATA_DIR needs none of them
    monkeypatch.setitem(sys.modules, library, None)
  write(tmp_path, contents)
  found = task.get(f'mt5_{name}_examples', data_dir=str(tmp_path))
  assert found.splits == tuple(wanted)
  for split, pairs in wanted.items():
    examples = list(found.examples(split))
    assert [(e['inputs'], e['targets']) for _, e in examples] == pairs
    assert len({example_id for example_id, _ in examples}) == len(pairs)


def test_rows_of_many_files_say_where_they_are(tmp_path):
  write(tmp_path, {'train/1triples/A.xml': ENTRY.format('A'),
                   'train/2triples/B.xml': ENTRY.format('B')})
  source = task.get('web_nlg_v001', data_dir=str(tmp_path)).source
  places = [place for place, _ in source.read('train')]
  assert places == ['1triples/A.xml:entry 1', '2triples/B.xml:entry 1']
  assert source.where('train', places[1]) == f'{tmp_path}/train/2triples/B.xml:entry 1'
  before = source.fingerprint('train')
  write(tmp_path, {'train/2triples/B.xml': ENTRY.format('C')})
  assert source.fingerprint('train') != before


def test_both_files_of_a_pair_decide_the_cache(tmp_path):
  write(tmp_path, {'train.source': 'a\n', 'train.target': 'b\n'})
  source = task.get('xsum_v110', data_dir=str(tmp_path)).source
  before = source.fingerprint('train')
  write(tmp_path, {'train.target': 'c\n'})
  assert source.fingerprint('train') != before


@pytest.mark.parametrize('name, contents, message', [
    ('xsum_v110', {'train.source': 'a\nb\n', 'train.target': 'c\n'},
     'train.target ends before line 2, which the file of the other side has'),
    ('xsum_v110', {'train.source': 'a\n'}, 'train.source has no file train.target beside it'),
    ('xsum_v110', {'other.txt': ''}, r'no train file.*train.jsonl.*train.source.*named xsum, XSum'),
    ('cnn_dailymail_v002', {'all_train.txt': 'http://x\n'}, 'none of its stories is in .*cnn/stor'),
    ('trivia_qa_v010', {'qa/web-train.json': json.dumps({'Data': [
        {'Question': 'q', 'QuestionId': '1', 'EntityPages': [{'Filename': 'A.txt'}]}]})},
     'none of the texts that it names is in .*evidence.*triviaqa-rc.tar.gz'),
    ('dpr_v001_simple', {'train.c.txt': 'A it.\nit\nA,B\nC\n\n'}, 'txt:1: this row .*KeyErr'),
    ('spot_yelp_polarity_reviews_v020', {'train.csv': '"3","x"\n'}, 'csv:1: this row .*KeyErr'),
    ('ethics_justice_v100', {'justice_train.csv': 'label,scenario\n2,a\n'},
     "justice_train.csv:2: '2' is no label of this dataset; expected one of unacceptable"),
])
def test_mistakes(tmp_path, name, contents, message):
  write(tmp_path, contents)
  with pytest.raises(UserError, match=message):
    list(task.get(name, data_dir=str(tmp_path)).examples('train'))


def test_trivia_qa(tmp_path):
  rows = {'Data': [{
      'Question': ' Who? ', 'QuestionId': 'x', 'Answer': {'NormalizedAliases': ['ann b', 'it']},
      'EntityPages': [{'Filename': 'A.txt'}, {'Filename': 'absent.txt'}],
      'SearchResults': [{'Filename': '1/B.txt'}, {'Title': 'none'}]}], 'Version': '1.0'}
  write(tmp_path, {
      'qa/web-train.json': json.dumps(rows, indent=1), 'qa/wikipedia-train.json': json.dumps(rows),
      'evidence/wikipedia/A.txt': 'Ann B, of course.\n', 'evidence/web/1/B.txt': 'It was ANN B'})
  found = task.get('trivia_qa_v010', data_dir=str(tmp_path))
  examples = [e for _, e in found.examples('train')]
  context = 'question: Who ? context: '
  assert [(e['inputs'], e['targets']) for e in examples] == 2 * [
      (f'{context}Ann B , of course . ', 'ann b'), (f'{context}It was ANN B', 'ann b'),
      (f'{context}It was ANN B', 'it')]
  targets = [found.postprocess_fn('', e, is_target=True) for e in examples[:2]]
  assert found.metrics(targets, ['The Ann-B', 'x']) == {'em': 50.0, 'f1': 50.0}


def test_lines_are_a_format(tmp_path):
  write(tmp_path, {'x.txt': 'a\tb\r\n\n c\u2028 \n'})
  rows = list(files.read_rows(tmp_path / 'x.txt', 'lines'))
  assert rows == [('1', {'text': 'a\tb'}), ('3', {'text': ' c\u2028 '})]
