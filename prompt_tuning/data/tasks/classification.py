"""Classification beyond GLUE and SuperGLUE: entailment, paraphrase, reviews, tweets, ethics.

The datasets on which transfer of prompts is studied (https://arxiv.org/abs/2111.06719). T5 has no
text form of them: the name of the dataset comes first, then each field under its name.
"""

from prompt_tuning.data import metrics
from prompt_tuning.data.postprocessors import LabelId
from prompt_tuning.data.preprocessors import NamedFields
from prompt_tuning.data.published import Layout, PublishedSource, TfdsSource
from prompt_tuning.data.task import Task, register_forms
from prompt_tuning.data.text_files import ReadPair, read_polarity

_SENTIMENT = ('negative', 'positive')
_ACCEPTABLE = ('unacceptable', 'acceptable')
_INDICES = {name: i for i, name in enumerate(
    ('ethics_deontology', 'ethics_justice', 'paws_wiki', 'rotten_tomatoes', 'scitail',
     'tweet_sentiment'))}


def _declare(name: str, version: str, layout: Layout, fields: tuple[str, ...],
             labels: tuple[str, ...] = (), *, paper: str, tfds_name: str = '',
             eval_split: str = 'validation'):
  """A task of one label; `labels` are its texts where files write other ones."""
  labels = labels or layout.labels
  register_forms(Task(
      name=f'{name}_{version}', labels=labels, postprocess_fn=LabelId(labels),
      source=TfdsSource(tfds_name, layout) if tfds_name else PublishedSource(layout),
      preprocess=NamedFields(name, fields, labels), metric_fns=(metrics.accuracy,),
      eval_split=eval_split, paper=paper), _INDICES[name])


def _files(*patterns: str, validation: str = 'dev') -> dict[str, tuple[str, ...]]:
  """Split -> names of its file; {} stands for the split."""
  return {split: tuple(pattern.format(name) for pattern in patterns)
          for split, name in (('train', 'train'), ('validation', validation), ('test', 'test'))}


def _same_names(*features: str) -> dict[str, tuple[str, ...]]:
  return {feature: (feature,) for feature in features}


_declare(
    'scitail', 'v100',
    Layout(folders=('scitail', 'SciTailV1.1', 'SciTailV1'), collections=(),
           files=_files('tsv_format/scitail_1.0_{}.tsv', 'scitail_1.0_{}.tsv', '{}.tsv', '{}.jsonl',
                        'predictor_format/scitail_1.0_structure_{}.jsonl'),
           columns={'premise': ('premise', 'sentence1'), 'hypothesis': ('hypothesis', 'sentence2'),
                    'label': ('label', 'gold_label')},
           header=('premise', 'hypothesis', 'label'), labels=('entails', 'neutral')),
    ('hypothesis', 'premise'), tfds_name='sci_tail:1.0.0',
    paper='https://ojs.aaai.org/index.php/AAAI/article/view/12022')
_declare(
    'paws_wiki', 'v110',
    Layout(folders=('final', 'paws_wiki_labeled_final', 'paws_wiki', 'paws'), collections=('paws',),
           files=_files('{}.tsv', '{}.jsonl'),
           columns={**_same_names('sentence1', 'sentence2', 'label'), 'idx': ('id',)},
           labels=('0', '1')),
    ('sentence1', 'sentence2'), ('not_paraphrase', 'paraphrase'),
    tfds_name='paws_wiki/labeled_final_tokenized:1.1.0',
    paper='https://aclanthology.org/N19-1131')
_declare(
    'rotten_tomatoes', 'v100',
    Layout(folders=('rotten_tomatoes', 'rt-polaritydata'), collections=(),
           files=_files('{}.jsonl', '{}.csv', '{}.tsv', 'rt-polarity.*', validation='validation'),
           readers=dict.fromkeys(('.pos', '.neg'), read_polarity), splits_in_rows=True, many=True,
           columns={**_same_names('label'), 'text': ('text', 'sentence')}, labels=_SENTIMENT),
    ('text',), paper='https://aclanthology.org/P05-1015')
_declare(
    'tweet_sentiment', 'v100',
    Layout(folders=('sentiment', 'tweet_sentiment', 'tweeteval'), collections=('datasets',),
           files=_files('datasets/sentiment/{}_text.txt', '{}_text.txt',
                        '{}.jsonl', '{}.csv', validation='val'),
           readers={'_text.txt': ReadPair('_text.txt', '_labels.txt', ('text', 'label'))},
           columns=_same_names('text', 'label'), labels=('negative', 'neutral', 'positive')),
    ('text',), paper='https://arxiv.org/abs/2010.12421')
# The harder of two test sets is a split of its own.
for _name, _fields in (('deontology', ('scenario', 'excuse')), ('justice', ('scenario',))):
  _declare(
      f'ethics_{_name}', 'v100',
      Layout(folders=(_name,), collections=('ethics',),
             files={split: (f'{_name}_{split}.csv',) for split in ('train', 'test', 'test_hard')},
             columns=_same_names('label', *_fields), labels=_ACCEPTABLE),
      _fields, eval_split='test', paper='https://arxiv.org/abs/2008.02275')
