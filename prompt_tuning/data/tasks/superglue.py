"""BoolQ, RTE and CB of SuperGLUE (https://arxiv.org/abs/1905.00537), in T5's text form."""

from prompt_tuning.data import metrics, task
from prompt_tuning.data.postprocessors import LabelId
from prompt_tuning.data.preprocessors import NamedFields
from prompt_tuning.data.sources import Layout, TfdsSource

_COLLECTIONS = ('superglue', 'super_glue', 'super-glue')
_FILES = {
    'train': ('train.jsonl', 'train.tsv', 'train.*.jsonl'),
    'validation': ('val.jsonl', 'validation.jsonl', 'dev.jsonl', 'dev.tsv', 'val.*.jsonl',
                   'dev*.jsonl'),
    'test': ('test.jsonl', 'test.tsv'),
}
_PAIR = {'premise': ('premise', 'sentence1'), 'hypothesis': ('hypothesis', 'sentence2')}
_IDX = ('idx', 'index')


def _declare(name: str, layout: Layout, metric_fns: tuple, fields: tuple[str, ...]):
  for prefix in (name, ''):  # the second is the "taskless" form
    task.register(task.Task(
        name=f'{"" if prefix else "taskless_"}super_glue_{name}_v102',
        source=TfdsSource(f'super_glue/{name}:1.0.2', layout),
        preprocess=NamedFields(prefix, fields, layout.labels),
        postprocess_fn=LabelId(layout.labels),
        metric_fns=metric_fns,
        labels=layout.labels))


_declare(
    'boolq',
    Layout(
        folders=('BoolQ',), collections=_COLLECTIONS, files=_FILES,
        columns={'passage': ('passage',), 'question': ('question',),
                 'label': ('label', 'answer'), 'idx': _IDX},
        labels=('False', 'True')),
    (metrics.accuracy,), ('passage', 'question'))

_declare(
    'rte',
    Layout(
        folders=('RTE',), collections=_COLLECTIONS, files=_FILES,
        columns={**_PAIR, 'label': ('label',), 'idx': _IDX},
        labels=('entailment', 'not_entailment')),
    (metrics.accuracy,), ('premise', 'hypothesis'))

_declare(
    'cb',
    Layout(
        folders=('CB',), collections=_COLLECTIONS, files=_FILES,
        columns={**_PAIR, 'label': ('label',), 'idx': _IDX},
        labels=('entailment', 'contradiction', 'neutral')),
    (metrics.MeanMulticlassF1(3), metrics.accuracy), ('premise', 'hypothesis'))
