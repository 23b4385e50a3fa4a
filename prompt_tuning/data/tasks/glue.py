"""GLUE (https://arxiv.org/abs/1804.07461) in T5's text form, and MRPC and QQP from each other.

Names are those of T5 (`v002`) and of google-research/prompt-tuning (`v200`); the two differ in the
version at TensorFlow Datasets alone.
"""

import dataclasses

from prompt_tuning.data import metrics, text_forms, wnli_form
from prompt_tuning.data.postprocessors import LabelId, Number, Referent, Translated
from prompt_tuning.data.preprocessors import NamedFields
from prompt_tuning.data.published import Layout, TfdsSource
from prompt_tuning.data.task import Task, register, register_forms

_VERSIONS = (('v002', '1.0.0'), ('v200', '2.0.0'))
_DECLARED: dict[str, Task] = {}  # the last version of each
# Of a task_index_ form; MNLI's parts and its diagnostic examples count as MNLI.
_INDICES = {name: i for i, name in enumerate(
    ('cola', 'mnli', 'mrpc', 'qnli', 'qqp', 'rte', 'sst2', 'stsb', 'wnli'))}
_IDX = {'idx': ('idx', 'index', 'id')}
_LABEL = {'label': ('label',), **_IDX}
_PAIR = {'sentence1': ('sentence1', 'premise', '#1 String'),
         'sentence2': ('sentence2', 'hypothesis', '#2 String')}
_NLI = {'premise': ('premise', 'sentence1'), 'hypothesis': ('hypothesis', 'sentence2')}
_PAPERS = {
    'cola': 'https://arxiv.org/abs/1805.12471', 'sst2': 'https://aclanthology.org/D13-1170',
    'mrpc': 'https://aclanthology.org/I05-5002', 'stsb': 'https://aclanthology.org/S17-2001',
    'mnli': 'https://arxiv.org/abs/1704.05426', 'qnli': 'https://arxiv.org/abs/1606.05250',
    'wnli': 'https://cdn.aaai.org/ocs/4492/4492-21843-1-PB.pdf'}
_NLI_LABELS = ('entailment', 'neutral', 'contradiction')


def _files(part: str = '') -> dict[str, tuple[str, ...]]:
  """Split -> names of its file; `part` stands behind dev and test."""
  return {
      'train': ('train.tsv', 'train.jsonl', 'train.*.tsv', 'train.*.jsonl'),
      'validation': (f'dev{part}.tsv', f'val{part}.jsonl', f'validation{part}.jsonl',
                     f'dev{part}.jsonl', *(() if part else ('dev*.tsv', 'dev*.jsonl'))),
      'test': (f'test{part}.tsv', f'test{part}.jsonl'),
  }


def _layout(folders: tuple[str, ...], columns: dict, labels: tuple[str, ...] | None,
            **options) -> Layout:
  return Layout(folders=folders, collections=('glue',), labels=labels,
                columns={**columns, **_LABEL, **options.pop('label', {})},
                **{'files': _files(), **options})


def _pair(name: str, layout: Layout, first: str = 'sentence1', second: str = 'sentence2'):
  """A form of two fields, in alphabetical order."""
  return NamedFields(name, (first, second), layout.labels)


def _declare(name: str, layout: Layout, form, metric_fns: tuple, only: tuple[str, ...] = (),
             **options):
  options.setdefault('labels', layout.labels)
  options.setdefault('postprocess_fn', LabelId(layout.labels or ()))
  config = name.split('_from_')[0]
  index = _INDICES.get(config, _INDICES['mnli'])
  for version, tfds_version in _VERSIONS:
    _DECLARED[name] = Task(
        name=f'glue_{name}_{version}', preprocess=form, metric_fns=metric_fns,
        source=TfdsSource(f'glue/{config}:{tfds_version}', layout, only),
        paper=_PAPERS.get(config.split('_')[0], 'https://arxiv.org/abs/1804.07461'), **options)
    register_forms(_DECLARED[name], index)


_COLA = _layout(
    ('CoLA',), {'sentence': ('sentence',)}, ('unacceptable', 'acceptable'),
    label={'label': ('label', 'is_acceptable')}, header=('source', 'label', 'mark', 'sentence'))
_SST2 = _layout(('SST-2', 'SST2', 'sst_2'), {'sentence': ('sentence',)}, ('negative', 'positive'))
_MRPC = _layout(
    ('MRPC',), _PAIR, ('not_equivalent', 'equivalent'), label={'label': ('label', 'Quality')},
    files={**_files(), 'train': (*_files()['train'], 'msr_paraphrase_train.txt'),
           # The published test.tsv has no labels, the original text file does.
           'test': ('msr_paraphrase_test.txt', *_files()['test'])})
_QQP = _layout(
    ('QQP',), {'question1': ('question1',), 'question2': ('question2',)},
    ('not_duplicate', 'duplicate'), label={'label': ('label', 'is_duplicate')},
    skip_short_rows=True)
_STSB = _layout(('STS-B', 'STSB'), _PAIR, None, label={'label': ('label', 'score')})
_MNLI = _layout(('MNLI', 'MultiNLI'), _NLI, _NLI_LABELS, label={'label': ('label', 'gold_label')})
_MATCHED, _MISMATCHED = _files('_matched'), _files('_mismatched')
_QNLI = _layout(('QNLI', 'QNLIv2'), {'question': ('question',), 'sentence': ('sentence',)},
                ('entailment', 'not_entailment'))
_RTE = _layout(('RTE',), _PAIR, ('entailment', 'not_entailment'))
_WNLI = _layout(('WNLI',), _PAIR, ('not_entailment', 'entailment'))
_AX = _layout(('AX', 'diagnostic'), _NLI, _NLI_LABELS,
              files={'test': ('diagnostic.tsv', 'ax.tsv', 'AX.tsv', 'test.tsv')})
_F1_ACCURACY = (metrics.f1, metrics.accuracy)
_MRPC_FORM = _pair('mrpc', _MRPC)
_QQP_FORM = _pair('qqp', _QQP, 'question1', 'question2')
_MNLI_FORM = _pair('mnli', _MNLI, 'hypothesis', 'premise')

_declare('cola', _COLA, NamedFields('cola', ('sentence',), _COLA.labels), (metrics.Matthews(),))
_declare('sst2', _SST2, NamedFields('sst2', ('sentence',), _SST2.labels), (metrics.accuracy,))
_declare('mrpc', _MRPC, _MRPC_FORM, _F1_ACCURACY)
_declare('qqp', _QQP, _QQP_FORM, _F1_ACCURACY)
_declare('stsb', _STSB, text_forms.Similarity(), (metrics.pearson, metrics.spearman),
         postprocess_fn=Number())
_declare(
    'mnli',
    dataclasses.replace(_MNLI, files={
        'train': _files()['train'],
        'validation_matched': _MATCHED['validation'],
        'validation_mismatched': _MISMATCHED['validation'],
        'test_matched': _MATCHED['test'], 'test_mismatched': _MISMATCHED['test']}),
    _MNLI_FORM, (metrics.accuracy,), eval_split='validation_matched')
for _part, _part_files in (('matched', _MATCHED), ('mismatched', _MISMATCHED)):
  _only = {split: _part_files[split] for split in ('validation', 'test')}
  _declare(f'mnli_{_part}', dataclasses.replace(_MNLI, files=_only), _MNLI_FORM,
           (metrics.accuracy,), only=tuple(_only))
_declare('qnli', _QNLI, _pair('qnli', _QNLI, 'question', 'sentence'), (metrics.accuracy,))
_declare('rte', _RTE, _pair('rte', _RTE), (metrics.accuracy,))
_declare('wnli', _WNLI, _pair('wnli', _WNLI), (metrics.accuracy,))
_declare('ax', _AX, _MNLI_FORM, (), only=('test',), eval_split='test')

register(Task(
    name='glue_wnli_v002_simple_eval', preprocess=wnli_form.WnliReferent(),
    source=TfdsSource('glue/wnli:1.0.0', _WNLI, ('validation', 'test')),
    postprocess_fn=Referent(), metric_fns=(metrics.accuracy,), paper=_PAPERS['wnli']))

# A prompt of the one dataset evaluated on the other: its answers are the labels of the first.
_declare('mrpc_from_qqp', _MRPC, _MRPC_FORM, _F1_ACCURACY, only=('validation',),
         postprocess_fn=Translated('duplicate', 'equivalent', LabelId(_MRPC.labels)),
         labels=_QQP.labels)
_declare('qqp_from_mrpc', _QQP, _QQP_FORM, _F1_ACCURACY, only=('validation',),
         postprocess_fn=Translated('equivalent', 'duplicate', LabelId(_QQP.labels)),
         labels=_MRPC.labels)

# The names of prompt transfer (SPoT, https://arxiv.org/abs/2110.07904) for the same tasks, and the
# splits of MNLI as tasks.
for _name in ('cola', 'sst2', 'mrpc', 'qqp', 'stsb', 'qnli', 'rte', 'wnli'):
  register(dataclasses.replace(_DECLARED[_name], name=f'spot_glue_{_name}_v200'))
for _split, _only, _patterns in (
    ('train', 'train', _files()['train']),
    ('validation_matched', 'validation', _MATCHED['validation']),
    ('validation_mismatched', 'validation', _MISMATCHED['validation'])):
  register(dataclasses.replace(
      _DECLARED['mnli'], name=f'spot_glue_mnli_{_split}_v200', eval_split='validation',
      source=TfdsSource('glue/mnli:2.0.0', dataclasses.replace(_MNLI, files={_only: _patterns}),
                        (_only,), ((_only, _split),))))
