"""Source tasks of prompt transfer (SPoT, https://arxiv.org/abs/2110.07904): NLI, reviews, news.

Names and strings are those of google-research/prompt-tuning. Answers are compared as text.
"""

from prompt_tuning.data import metrics, nested_rows, text_forms
from prompt_tuning.data.preprocessors import NamedFields
from prompt_tuning.data.published import Layout, TfdsSource
from prompt_tuning.data.task import Task, register
from prompt_tuning.data.tasks import nlg

_NLI = ('entailment', 'neutral', 'contradiction')
_SENTIMENT = ('negative', 'positive')


def _declare(name: str, tfds_name: str, fields: tuple[str, ...], labels: tuple[str, ...],
             layout: Layout | None = None, eval_split: str = 'validation'):
  """A task of one label and named fields."""
  register(Task(
      name=_versioned(name, tfds_name), source=TfdsSource(tfds_name, layout), labels=labels,
      preprocess=text_forms.SingleSpaces(NamedFields(name, fields, labels)),
      metric_fns=(metrics.accuracy,), eval_split=eval_split))


def _versioned(name: str, tfds_name: str) -> str:
  version = tfds_name.split(':')[-1].replace('.', '')
  return f'spot_{name}_v{version}'


def _nli_layout(folders: tuple[str, ...], collections: tuple[str, ...], columns: dict) -> Layout:
  files = {'train': 'train', 'validation': 'dev', 'test': 'test'}
  return Layout(
      folders=folders, collections=collections, labels=_NLI, flatten=nested_rows.nli,
      files={split: (f'{name}.jsonl', f'snli_1.0_{name}.jsonl') for split, name in files.items()},
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
_declare('doc_nli', 'doc_nli:1.0.0', ('hypothesis', 'premise'), ('not_entailment', 'entailment'))
_declare('imdb_reviews', 'imdb_reviews/plain_text:1.0.0', ('text',), _SENTIMENT, eval_split='test')
_declare('yelp_polarity_reviews', 'yelp_polarity_reviews:0.2.0', ('text',), _SENTIMENT,
         eval_split='test')

for _tfds_name, _article, _summary in (
    ('aeslc:1.0.0', 'email_body', 'subject_line'), ('billsum:3.0.0', 'text', 'summary'),
    ('cnn_dailymail:3.2.0', 'article', 'highlights'), ('gigaword:1.2.0', 'document', 'summary'),
    ('multi_news:1.0.0', 'document', 'summary'), ('newsroom:1.0.0', 'text', 'summary'),
    ('samsum:1.0.0', 'dialogue', 'summary')):
  _name = _tfds_name.split(':')[0]
  register(Task(
      name=_versioned(_name, _tfds_name),
      source=TfdsSource(_tfds_name, nlg.SAMSUM if _name == 'samsum' else None),
      preprocess=text_forms.Prefixed(f'{_name} summarize:', _article, _summary),
      metric_fns=(metrics.Rouge(),), eval_split='test' if _name == 'billsum' else 'validation'))
