"""Generation: summaries, dialogues, data to text.

Of several references each is an example to train on; metrics count an input once, against all.
"""

import dataclasses

from prompt_tuning.data import metrics, nested_rows, text_forms
from prompt_tuning.data.postprocessors import Answers, Grouped, Text
from prompt_tuning.data.published import Layout, PublishedSource, TfdsSource
from prompt_tuning.data.task import Task, register

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


# Summaries (https://arxiv.org/abs/1808.08745, https://arxiv.org/abs/1506.03340,
# https://arxiv.org/abs/1911.12237), under the names of T5 and google-research/prompt-tuning.
SAMSUM = Layout(
    folders=('SAMSum', 'samsum'), collections=('nlg',), files=_files(),
    columns=_columns('dialogue', 'summary'), header=('summary', 'dialogue'))
for _name, _source, _article, _summary in (
    ('xsum_v110', TfdsSource('xsum:1.1.0'), 'document', 'summary'),
    ('cnn_dailymail_v002', TfdsSource('cnn_dailymail:3.4.0'), 'article', 'highlights'),
    ('cnn_dailymail_v310', TfdsSource('cnn_dailymail:3.1.0'), 'article', 'highlights'),
    ('samsum_v100', TfdsSource('samsum:1.0.0', SAMSUM), 'dialogue', 'summary')):
  register(Task(
      name=_name, source=_source, preprocess=text_forms.Prefixed('summarize:', _article, _summary),
      metric_fns=(metrics.Rouge(),)))

# Restaurants (https://arxiv.org/abs/1706.09254): rows with the same meaning are one input.
register(Task(
    name='e2e_nlg_v001',
    source=PublishedSource(Layout(
        folders=('E2E', 'e2e-dataset', 'e2e_nlg'), collections=('nlg',),
        files={'train': ('trainset.csv',), 'validation': ('devset.csv',),
               'test': ('testset_w_refs.csv',)},
        columns=_columns('mr', 'ref'))),
    preprocess=text_forms.Prefixed('e2e_nlg:', 'mr', 'ref'),
    postprocess_fn=Grouped(Text(), ('mr',)),
    metric_fns=(metrics.AllOfGroup(metrics.bleu), metrics.AllOfGroup(metrics.Rouge()))))

# Triples (https://aclanthology.org/W17-3518, https://arxiv.org/abs/2007.02871).
_TRIPLES = Layout(
    folders=('WebNLG', 'web_nlg', 'webnlg'), collections=('nlg',),
    files=_files(test=('testdata_with_lex.xml',)), list_in='entries',
    columns=_columns('triples', 'lexs'), kinds={'triples': list, 'lexs': list},
    flatten=nested_rows.triples)
_DART = dataclasses.replace(
    _TRIPLES, folders=('DART', 'dart'),
    files=_files(*((f'dart-v*-full-{split}.json',) for split in ('train', 'dev', 'test'))))
for _name, _layout in (('web_nlg', _TRIPLES), ('dart', _DART)):
  register(Task(
      name=f'{_name}_v001', source=PublishedSource(_layout),
      preprocess=text_forms.Triples(_name),
      postprocess_fn=Grouped(Answers(), ('idx',)),
      metric_fns=(metrics.FirstOfGroup(metrics.bleu), metrics.FirstOfGroup(metrics.Rouge()))))
