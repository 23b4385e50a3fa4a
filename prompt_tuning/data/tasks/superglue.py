"""SuperGLUE 1.0.2 (https://arxiv.org/abs/1905.00537) in T5's text form."""

from prompt_tuning.data import metrics, nested_rows, text_files, text_forms
from prompt_tuning.data.postprocessors import Answers, Grouped, LabelId, Referent, Text
from prompt_tuning.data.preprocessors import NamedFields
from prompt_tuning.data.published import Layout, TfdsSource
from prompt_tuning.data.task import Task, register_forms

# Of a task_index_ form; the diagnostic sets count as RTE, pronoun resolution as WSC.
_INDICES = {name: i for i, name in enumerate(
    ('boolq', 'cb', 'copa', 'multirc', 'record', 'rte', 'wic', 'wsc'))}
_FILES = {
    'train': ('train.jsonl', 'train.tsv', 'train.*.jsonl'),
    'validation': ('val.jsonl', 'validation.jsonl', 'dev.jsonl', 'dev.tsv', 'val.*.jsonl',
                   'dev*.jsonl'),
    'test': ('test.jsonl', 'test.tsv'),
}
_PAPERS = {
    'boolq': 'https://arxiv.org/abs/1905.10044',
    'cb': 'https://ojs.ub.uni-konstanz.de/sub/index.php/sub/article/view/601',
    'copa': 'https://cdn.aaai.org/ocs/2418/2418-10878-1-PB.pdf',
    'multirc': 'https://aclanthology.org/N18-1023', 'record': 'https://arxiv.org/abs/1810.12885',
    'wic': 'https://arxiv.org/abs/1808.09121',
    'wsc': 'https://cdn.aaai.org/ocs/4492/4492-21843-1-PB.pdf'}
_IDX = {'idx': ('idx', 'index')}
_PAIR = {'premise': ('premise', 'sentence1'), 'hypothesis': ('hypothesis', 'sentence2')}
_NLI_LABELS = ('entailment', 'not_entailment')
_BOOLEANS = ('False', 'True')


def _layout(folder: str, columns: dict, labels: tuple[str, ...], **options) -> Layout:
  label = {'label': ('label',)} if labels else {}
  return Layout(folders=(folder,), collections=('superglue', 'super_glue', 'super-glue'),
                labels=labels, columns={**_IDX, **label, **columns},
                **{'files': _FILES, **options})


def _same_names(*features: str) -> dict[str, tuple[str, ...]]:
  return {feature: (feature,) for feature in features}


def _declare(name: str, layout: Layout, form, metric_fns: tuple, *, config: str = '', index: str,
             only: tuple[str, ...] = (), **options):
  options.setdefault('labels', layout.labels or None)
  options.setdefault('postprocess_fn', LabelId(layout.labels))
  register_forms(Task(
      name=f'super_glue_{name}', preprocess=form, metric_fns=metric_fns,
      source=TfdsSource(f'super_glue/{config or index}:1.0.2', layout, only),
      paper=_PAPERS.get(index, 'https://arxiv.org/abs/1905.00537'), **options),
      _INDICES[index])


def _declare_classes(name: str, layout: Layout, fields: tuple[str, ...], *metric_fns):
  """A task of one label and named fields."""
  _declare(f'{name}_v102', layout, NamedFields(name, fields, layout.labels), metric_fns, index=name)


_declare_classes(
    'boolq',
    _layout('BoolQ', {**_same_names('passage', 'question'), 'label': ('label', 'answer')},
            _BOOLEANS),
    ('passage', 'question'), metrics.accuracy)
_declare_classes(
    'cb', _layout('CB', _PAIR, ('entailment', 'contradiction', 'neutral')),
    ('hypothesis', 'premise'), metrics.MeanMulticlassF1(3), metrics.accuracy)
_declare_classes(
    'copa',
    _layout('COPA', _same_names('choice1', 'choice2', 'premise', 'question'),
            ('choice1', 'choice2')),
    ('choice1', 'choice2', 'premise', 'question'), metrics.accuracy)
_declare_classes(
    'rte', _layout('RTE', _PAIR, _NLI_LABELS), ('hypothesis', 'premise'), metrics.accuracy)
_declare_classes(
    'wic', _layout('WiC', _same_names('sentence1', 'sentence2', 'word'), _BOOLEANS),
    ('sentence1', 'sentence2', 'word'), metrics.accuracy)

_declare(
    'multirc_v102',
    _layout('MultiRC', _same_names('paragraph', 'question', 'answer'), _BOOLEANS,
            flatten=nested_rows.multirc),
    text_forms.MultiRC(),
    (metrics.OfValues(metrics.f1), metrics.MeanOverGroups(metrics.exact_group)),
    index='multirc', postprocess_fn=Grouped(LabelId(_BOOLEANS), ('idx/question',)))
_declare(
    'record_v102',
    _layout('ReCoRD', _same_names('passage', 'query', 'entities', 'answers'), (),
            files={**_FILES, 'train': (*_FILES['train'], '*.derived.jsonl')},
            kinds={'entities': list, 'answers': list}, flatten=nested_rows.record),
    text_forms.Record(), (metrics.FirstOfGroup(metrics.squad),),
    index='record', postprocess_fn=Grouped(Answers(), ('idx/passage', 'idx/query')))

_WSC = _layout(
    'WSC', _same_names('text', 'span1_text', 'span2_text', 'span1_index', 'span2_index'), _BOOLEANS,
    kinds={'span1_index': int, 'span2_index': int}, flatten=nested_rows.wsc)
_WSC_OPTIONS = {'config': 'wsc.fixed', 'index': 'wsc'}
_declare('wsc_v102', _WSC, text_forms.WscMarked(), (metrics.accuracy,), **_WSC_OPTIONS)
_declare('wsc_v102_simple_train', _WSC, text_forms.WscReferent(only_correct=True), (),
         only=('train',), labels=None, postprocess_fn=Text(), **_WSC_OPTIONS)
_declare('wsc_v102_simple_eval', _WSC, text_forms.WscReferent(only_correct=False),
         (metrics.accuracy,), only=('validation', 'test'), labels=None, postprocess_fn=Referent(),
         **_WSC_OPTIONS)
_DPR = Layout(
    folders=('definite_pronoun_resolution', 'dpr'), collections=(),
    files={split: (f'{split}.c.txt', f'{split}.jsonl') for split in ('train', 'test')},
    readers={'.txt': text_files.read_blocks}, flatten=nested_rows.pronoun,
    columns=_same_names('sentence', 'pronoun', 'candidates', 'label'), kinds={'candidates': list})
register_forms(Task(
    name='dpr_v001_simple', preprocess=text_forms.DprReferent(), metric_fns=(metrics.accuracy,),
    source=TfdsSource('definite_pronoun_resolution:1.1.0', _DPR), eval_split='test',
    paper='https://aclanthology.org/D12-1071'),
    _INDICES['wsc'])

for _folder in ('AX-b', 'AX-g'):
  _name = _folder.replace('-', '').lower()
  _declare(
      f'{_name}_v102',
      _layout(_folder, _PAIR, _NLI_LABELS, files={'test': (f'{_folder}.jsonl', *_FILES['test'])}),
      text_forms.Renamed(NamedFields('rte', ('hypothesis', 'premise'), _NLI_LABELS),
                         (('sentence1', 'premise'), ('sentence2', 'hypothesis'))),
      (), config=_name, index='rte', only=('test',), eval_split='test')
