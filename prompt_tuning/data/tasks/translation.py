"""Translation: WMT (https://aclanthology.org/W14-3302) under T5's names.

A pair of local files with one sentence a line (`train.en`, `train.de`), or JSON rows with a
sentence under each language's code, are read in place of TFDS.
"""

from prompt_tuning.data import metrics, nested_rows, text_forms
from prompt_tuning.data.published import Layout, TfdsSource
from prompt_tuning.data.task import Task, register
from prompt_tuning.data.text_files import ReadPair

_PAPERS = {
    'wmt14': 'https://aclanthology.org/W14-3302', 'wmt15': 'https://aclanthology.org/W15-3001',
    'wmt16': 'https://aclanthology.org/W16-2301', 'wmt19': 'https://aclanthology.org/W19-5301',
    'wmt_t2t': 'https://aclanthology.org/W14-3302'}
_LANGUAGES = {'de': 'German', 'en': 'English', 'fr': 'French', 'ro': 'Romanian'}


def _layout(folder: str, source: str, target: str) -> Layout:
  names = {'train': ('train',), 'validation': ('dev', 'val', 'valid', 'validation'),
           'test': ('test',)}
  endings = (f'.{source}', '.jsonl', '.json', '.tsv')
  return Layout(
      folders=(folder, f'{target}-{source}', f'{source}-{target}'), collections=('wmt',),
      files={split: tuple(name + ending for name in given for ending in endings)
             for split, given in names.items()},
      columns={source: (source,), target: (target,)}, flatten=nested_rows.translation,
      readers={f'.{source}': ReadPair(f'.{source}', f'.{target}', (source, target))})


for _name, _target in (('wmt14', 'de'), ('wmt14', 'fr'), ('wmt15', 'fr'), ('wmt16', 'ro'),
                       ('wmt19', 'de'), ('wmt_t2t', 'de')):
  register(Task(
      name=f'{_name}_en{_target}_v003',
      source=TfdsSource(f'{_name}_translate/{_target}-en:1.0.0', _layout(_name, 'en', _target)),
      preprocess=text_forms.Translate(*((c, _LANGUAGES[c]) for c in ('en', _target))),
      metric_fns=(metrics.bleu,), paper=_PAPERS[_name]))
