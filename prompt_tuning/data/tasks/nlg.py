"""Generation: summaries, dialogues, data to text.

Of several references each is an example to train on; metrics count an input once, against all.
"""

import dataclasses

from prompt_tuning.data import metrics, nested_rows, text_files, text_forms
from prompt_tuning.data.postprocessors import Answers, Grouped, Text
from prompt_tuning.data.published import Layout, PublishedSource, TfdsSource
from prompt_tuning.data.task import Task, register_forms
from prompt_tuning.data.text_files import ReadPair

# Of a task_index_ form.
_INDICES = {name: i for i, name in enumerate(
    ('cnn_dailymail', 'dart', 'e2e_nlg', 'multi_news', 'samsum', 'web_nlg', 'xsum'))}
_JSON = ('{}.jsonl', '{}.json', '{}.*.jsonl')


def _files(train: tuple[str, ...] = (), validation: tuple[str, ...] = (),
           test: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
  """Split -> names of its file: special ones, then the usual ones."""
  usual = {'train': ('train',), 'validation': ('dev', 'val', 'valid', 'validation'),
           'test': ('test',)}
  special = {'train': train, 'validation': validation, 'test': test}
  return {split: special[split] + tuple(p.format(n) for n in names for p in _JSON)
          for split, names in usual.items()}


def _columns(*names: str) -> dict[str, tuple[str, ...]]:
  return {name: (name,) for name in names}


def _summaries(folders: tuple[str, ...], article: str, summary: str,
               patterns: tuple[str, ...] = (), **options) -> Layout:
  """Articles and summaries: two columns of a table or JSON, or the lines of two files.

  Args:
    folders: see Layout.
    article: name of the one feature.
    summary: name of the other.
    patterns: names of the authors' files, with {} in the place of the split.
    **options: further fields of the layout.
  """
  names = {'train': ('train',), 'validation': ('val', 'valid', 'dev', 'validation'),
           'test': ('test',)}
  usual = ('{}.jsonl', '{}.json', '{}.*.jsonl', '{}.csv', '{}.tsv', '{}.source', '{}.document',
           '{}.src.cleaned', '{}.src')
  columns = (article, summary)
  readers = {
      '.source': ReadPair('.source', '.target', columns),
      '.document': ReadPair('.document', '.summary', columns),
      # Multi-News writes a line end inside a text as a word, Gigaword two kinds of unknown words.
      '.src.cleaned': ReadPair('.src.cleaned', '.tgt', columns, ('NEWLINE_CHAR', '\n')),
      '.src': ReadPair('.src', '.tgt', columns, ('NEWLINE_CHAR', '\n')),
      'test.src.txt': ReadPair('.src.txt', '.tgt.txt', columns),
      '.src.txt': ReadPair('.src.txt', '.tgt.txt', columns, ('<unk>', 'UNK'))}
  return Layout(
      folders=folders, collections=('nlg', 'summarization'),
      files={split: tuple(p.format(n) for p in (*patterns, *usual) for n in given)
             for split, given in names.items()},
      columns=_columns(article, summary), readers={**readers, **options.pop('readers', {})},
      **options)


XSUM = _summaries(
    ('xsum', 'XSum', 'XSum-Dataset'), 'document', 'summary',
    ('XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json',), splits_in_rows=True,
    readers={'SPLIT-90-5-5.json': text_files.read_xsum})
CNN_DAILYMAIL = _summaries(
    ('cnn_dailymail', 'cnn-dailymail', 'cnn_dm'), 'article', 'highlights',
    ('url_lists/all_{}.txt', 'all_{}.txt'), readers={'.txt': text_files.read_stories})
SAMSUM = _summaries(('SAMSum', 'samsum'), 'dialogue', 'summary', header=('summary', 'dialogue'))
MULTI_NEWS = _summaries(('multi_news', 'Multi-News', 'multi-news'), 'document', 'summary')
GIGAWORD = _summaries(('gigaword',), 'document', 'summary', ('org_data/{}.src.txt', '{}.src.txt'))
AESLC = _summaries(
    ('aeslc', 'AESLC', 'enron_subject_line', 'AESLC-master'), 'email_body', 'subject_line',
    ('enron_subject_line/{}/*.subject', '{}/*.subject'), flatten=nested_rows.email, many=True,
    readers={'.subject': text_files.read_whole})
NEWSROOM = _summaries(('newsroom',), 'text', 'summary')
BILLSUM = Layout(
    folders=('billsum',), collections=('nlg', 'summarization'), columns=_columns('text', 'summary'),
    files={split: (f'us_{split}_data_final_OFFICIAL.jsonl', f'{split}.jsonl')
           for split in ('train', 'test')})

# Under the names of T5 and google-research/prompt-tuning.
PAPERS = {
    'xsum': 'https://arxiv.org/abs/1808.08745', 'cnn_dailymail': 'https://arxiv.org/abs/1704.04368',
    'samsum': 'https://arxiv.org/abs/1911.12237', 'multi_news': 'https://arxiv.org/abs/1906.01749',
    'aeslc': 'https://arxiv.org/abs/1906.03497', 'billsum': 'https://arxiv.org/abs/1910.00523',
    'gigaword': 'https://arxiv.org/abs/1509.00685', 'newsroom': 'https://arxiv.org/abs/1804.11283'}
for _name, _tfds_name, _layout, _article, _summary in (
    ('xsum_v110', 'xsum:1.1.0', XSUM, 'document', 'summary'),
    ('cnn_dailymail_v002', 'cnn_dailymail:3.4.0', CNN_DAILYMAIL, 'article', 'highlights'),
    ('cnn_dailymail_v310', 'cnn_dailymail:3.1.0', CNN_DAILYMAIL, 'article', 'highlights'),
    ('samsum_v100', 'samsum:1.0.0', SAMSUM, 'dialogue', 'summary'),
    ('multi_news_v100', 'multi_news:1.0.0', MULTI_NEWS, 'document', 'summary')):
  _dataset = _tfds_name.split(':')[0]
  register_forms(Task(
      name=_name, source=TfdsSource(_tfds_name, _layout), paper=PAPERS[_dataset],
      preprocess=text_forms.Prefixed('summarize:', _article, _summary),
      metric_fns=(metrics.Rouge(),)), _INDICES[_dataset])

# Restaurants: rows with the same meaning are one input.
register_forms(Task(
    name='e2e_nlg_v001', paper='https://arxiv.org/abs/1706.09254',
    source=PublishedSource(Layout(
        folders=('E2E', 'e2e-dataset', 'e2e_nlg'), collections=('nlg',),
        files={'train': ('trainset.csv',), 'validation': ('devset.csv',),
               'test': ('testset_w_refs.csv',)},
        columns=_columns('mr', 'ref'))),
    preprocess=text_forms.Prefixed('e2e_nlg:', 'mr', 'ref'),
    postprocess_fn=Grouped(Text(), ('mr',)),
    metric_fns=(metrics.AllOfGroup(metrics.bleu), metrics.AllOfGroup(metrics.Rouge()))),
    _INDICES['e2e_nlg'])

# WebNLG's training files are one for each size and domain.
_XML = ('en/{}/*triples/*.xml', '{}/*triples/*.xml', '{}/*.xml', '{}.xml')
_TRIPLES = Layout(
    folders=('WebNLG', 'web_nlg', 'webnlg', 'webnlg_challenge_2017'), collections=('nlg',),
    files=_files(
        *(tuple(pattern.format(split) for pattern in _XML) for split in ('train', 'dev')),
        ('testdata_with_lex.xml', 'test/testdata_with_lex.xml',
         'test/rdf-to-text-generation-test-data-with-refs-en.xml',
         'en/test/rdf-to-text-generation-test-data-with-refs-en.xml',
         'test/*triples/*.xml', 'test.xml')),
    list_in='entries', many=True,
    columns=_columns('triples', 'lexs'), kinds={'triples': list, 'lexs': list},
    flatten=nested_rows.triples)
_DART = dataclasses.replace(
    _TRIPLES, folders=('DART', 'dart'),
    many=False,
    files=_files(*((f'dart-v*-full-{split}.json',) for split in ('train', 'dev', 'test'))))
for _name, _layout, _paper in (('web_nlg', _TRIPLES, 'https://aclanthology.org/W17-3518'),
                               ('dart', _DART, 'https://arxiv.org/abs/2007.02871')):
  register_forms(Task(
      name=f'{_name}_v001', paper=_paper, source=PublishedSource(_layout),
      preprocess=text_forms.Triples(_name),
      postprocess_fn=Grouped(Answers(), ('idx',)),
      metric_fns=tuple(map(metrics.FirstOfGroup, (
          metrics.bleu, metrics.Rouge(), metrics.chrf, metrics.ter)))), _INDICES[_name])
