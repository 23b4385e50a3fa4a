"""SST-2, RTE, MRPC and QQP of GLUE (https://arxiv.org/abs/1804.07461), in T5's text form."""

from prompt_tuning.data import metrics, task
from prompt_tuning.data.postprocessors import LabelId
from prompt_tuning.data.preprocessors import NamedFields
from prompt_tuning.data.sources import Layout, TfdsSource

_IDX = ('idx', 'index', 'id')
_FILES = {
    'train': ('train.tsv', 'train.jsonl', 'train.*.tsv', 'train.*.jsonl'),
    'validation': ('dev.tsv', 'val.jsonl', 'validation.jsonl', 'dev.jsonl', 'dev*.tsv',
                   'dev*.jsonl'),
    'test': ('test.tsv', 'test.jsonl'),
}
_PAIR = {'sentence1': ('sentence1', 'premise', '#1 String'),
         'sentence2': ('sentence2', 'hypothesis', '#2 String')}
# v002 and v200 differ in the TFDS version alone.
_VERSIONS = (('v002', '1.0.0'), ('v200', '2.0.0'))


def _declare(name: str, layout: Layout, metric_fns: tuple, fields: tuple[str, ...]):
  for version, tfds_version in _VERSIONS:
    for prefix in (name, ''):  # the second is the "taskless" form
      task.register(task.Task(
          name=f'{"" if prefix else "taskless_"}glue_{name}_{version}',
          source=TfdsSource(f'glue/{name}:{tfds_version}', layout),
          preprocess=NamedFields(prefix, fields, layout.labels),
          postprocess_fn=LabelId(layout.labels),
          metric_fns=metric_fns,
          labels=layout.labels))


_declare(
    'sst2',
    Layout(
        folders=('SST-2', 'SST2', 'sst_2'), collections=('glue',), files=_FILES,
        columns={'sentence': ('sentence',), 'label': ('label',), 'idx': _IDX},
        labels=('negative', 'positive')),
    (metrics.accuracy,), ('sentence',))

_declare(
    'rte',
    Layout(
        folders=('RTE',), collections=('glue',), files=_FILES,
        columns={**_PAIR, 'label': ('label',), 'idx': _IDX},
        labels=('entailment', 'not_entailment')),
    (metrics.accuracy,), ('sentence1', 'sentence2'))

_declare(
    'mrpc',
    Layout(
        folders=('MRPC',), collections=('glue',),
        files={**_FILES,
               'train': (*_FILES['train'], 'msr_paraphrase_train.txt'),
               # The published test.tsv has no labels, the original text file does.
               'test': ('msr_paraphrase_test.txt', *_FILES['test'])},
        columns={**_PAIR, 'label': ('label', 'Quality'), 'idx': _IDX},
        labels=('not_equivalent', 'equivalent')),
    (metrics.f1, metrics.accuracy), ('sentence1', 'sentence2'))

_declare(
    'qqp',
    Layout(
        folders=('QQP',), collections=('glue',), files=_FILES, skip_short_rows=True,
        columns={'question1': ('question1',), 'question2': ('question2',),
                 'label': ('label', 'is_duplicate'), 'idx': _IDX},
        labels=('not_duplicate', 'duplicate')),
    (metrics.f1, metrics.accuracy), ('question1', 'question2'))
