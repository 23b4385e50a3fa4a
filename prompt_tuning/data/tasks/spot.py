"""Source tasks of prompt transfer (SPoT, https://arxiv.org/abs/2110.07904): NLI, reviews, news.

Names and strings are those of google-research/prompt-tuning. Answers are compared as text.
"""

import functools

from prompt_tuning.data import files, metrics, nested_rows, text_files, text_forms
from prompt_tuning.data.preprocessors import NamedFields
from prompt_tuning.data.published import Layout, TfdsSource
from prompt_tuning.data.task import Task, register_forms
from prompt_tuning.data.tasks import nlg

# Of a task_index_ form.
_INDICES = {name: i for i, name in enumerate((
    'aeslc', 'anli_r1', 'anli_r2', 'anli_r3', 'billsum', 'cnn_dailymail', 'doc_nli', 'gigaword',
    'imdb_reviews', 'multi_news', 'newsroom', 'samsum', 'snli', 'yelp_polarity_reviews'))}
_NLI = ('entailment', 'neutral', 'contradiction')
_PAPERS = {
    'anli': 'https://arxiv.org/abs/1910.14599', 'snli': 'https://arxiv.org/abs/1508.05326',
    'doc': 'https://arxiv.org/abs/2106.09449', 'imdb': 'https://aclanthology.org/P11-1015',
    'yelp': 'https://arxiv.org/abs/1509.01626'}
_SENTIMENT = ('negative', 'positive')


def _declare(name: str, tfds_name: str, fields: tuple[str, ...], labels: tuple[str, ...],
             layout: Layout | None = None, eval_split: str = 'validation'):
  """A task of one label and named fields."""
  register_forms(Task(
      name=_versioned(name, tfds_name), source=TfdsSource(tfds_name, layout), labels=labels,
      preprocess=text_forms.SingleSpaces(NamedFields(name, fields, labels)),
      metric_fns=(metrics.accuracy,), eval_split=eval_split, paper=_PAPERS[name.split('_')[0]]),
      _INDICES[name])


def _versioned(name: str, tfds_name: str) -> str:
  version = tfds_name.split(':')[-1].replace('.', '')
  return f'spot_{name}_v{version}'


def _json(train: str, validation: str, test: str, prefix: str = '') -> dict[str, tuple[str, ...]]:
  """Split -> names of its JSON file."""
  names = {'train': train, 'validation': validation, 'test': test}
  return {split: (f'{name}.jsonl', f'{prefix}{name}.jsonl', f'{name}.json')
          for split, name in names.items()}


def _same_names(*features: str) -> dict[str, tuple[str, ...]]:
  return {feature: (feature,) for feature in features}


def _nli_layout(folders: tuple[str, ...], collections: tuple[str, ...], columns: dict) -> Layout:
  return Layout(
      folders=folders, collections=collections, labels=_NLI, flatten=nested_rows.nli,
      files=_json('train', 'dev', 'test', 'snli_1.0_'),
      columns={'label': ('label', 'gold_label'), **columns})


for _round in ('r1', 'r2', 'r3'):
  _declare(
      f'anli_{_round}', f'anli/{_round}:0.1.0', ('hypothesis', 'context'), _NLI,
      _nli_layout((_round,), ('anli', 'anli_v1.0', 'anli_v0.1'),
                  {'hypothesis': ('hypothesis',), 'context': ('context',)}))
_declare(
    'snli', 'snli:1.1.0', ('hypothesis', 'premise'), _NLI,
    _nli_layout(('snli_1.0', 'snli'), (),
                {'hypothesis': ('hypothesis', 'sentence2'), 'premise': ('premise', 'sentence1')}))
_declare(
    'doc_nli', 'doc_nli:1.0.0', ('hypothesis', 'premise'), ('not_entailment', 'entailment'),
    Layout(folders=('doc_nli', 'DocNLI', 'DocNLI_dataset'), collections=(),
           files=_json('train', 'dev', 'test'), labels=('not_entailment', 'entailment'),
           columns=_same_names('hypothesis', 'premise', 'label')))
_declare(
    'imdb_reviews', 'imdb_reviews/plain_text:1.0.0', ('text',), _SENTIMENT,
    Layout(folders=('aclImdb', 'imdb_reviews', 'imdb'), collections=(),
           files={split: (f'{split}/[np][eo][gs]/*.txt', f'{split}.jsonl', f'{split}.csv')
                  for split in ('train', 'test')},
           readers={'.txt': text_files.read_whole}, flatten=nested_rows.review_file, many=True,
           columns=_same_names('text', 'label'), labels=('neg', 'pos')), eval_split='test')
_declare(
    'yelp_polarity_reviews', 'yelp_polarity_reviews:0.2.0', ('text',), _SENTIMENT,
    Layout(folders=('yelp_review_polarity_csv', 'yelp_polarity_reviews', 'yelp'), collections=(),
           files={split: (f'{split}.csv',) for split in ('train', 'test')},
           readers={'.csv': functools.partial(files.read_rows, file_format='lines')},
           flatten=nested_rows.yelp, columns=_same_names('text', 'label'), labels=_SENTIMENT),
    eval_split='test')

for _tfds_name, _layout, _article, _summary in (
    ('aeslc:1.0.0', nlg.AESLC, 'email_body', 'subject_line'),
    ('billsum:3.0.0', nlg.BILLSUM, 'text', 'summary'),
    ('cnn_dailymail:3.2.0', nlg.CNN_DAILYMAIL, 'article', 'highlights'),
    ('gigaword:1.2.0', nlg.GIGAWORD, 'document', 'summary'),
    ('multi_news:1.0.0', nlg.MULTI_NEWS, 'document', 'summary'),
    ('newsroom:1.0.0', nlg.NEWSROOM, 'text', 'summary'),
    ('samsum:1.0.0', nlg.SAMSUM, 'dialogue', 'summary')):
  _name = _tfds_name.split(':')[0]
  register_forms(Task(
      name=_versioned(_name, _tfds_name), source=TfdsSource(_tfds_name, _layout),
      paper=nlg.PAPERS[_name],
      preprocess=text_forms.Prefixed(f'{_name} summarize:', _article, _summary),
      metric_fns=(metrics.Rouge(),), eval_split='test' if _name == 'billsum' else 'validation'),
      _INDICES[_name])
