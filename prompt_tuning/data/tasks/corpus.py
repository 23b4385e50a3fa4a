"""Plain text under T5's names: C4 (https://arxiv.org/abs/1910.10683, section 2.2), Wikipedia.

DATA_DIR holds JSON lines with `text`, as C4 is published, or text files with one text a line.
`tasks/local_corpus.gin` reads a file of your own with any of the objectives.
"""

import functools

from prompt_tuning.data import files, objectives
from prompt_tuning.data.published import Layout, TfdsSource
from prompt_tuning.data.task import Task, register

_SPLITS = {'train': ('train',), 'validation': ('validation', 'val', 'dev')}


def _layout(folder: str, collections: tuple[str, ...] = ()) -> Layout:
  patterns = ('c4-{}.*-of-*.json', '{}*.jsonl', '{}*.json', '{}*.txt')
  return Layout(
      folders=(folder,), collections=collections, columns={'text': ('text',)}, many=True,
      readers={'.txt': functools.partial(files.read_rows, file_format='lines')},
      files={split: tuple(pattern.format(name) for name in names for pattern in patterns)
             for split, names in _SPLITS.items()})


def _declare(name: str, tfds_name: str, layout: Layout, objective: str):
  register(Task(name=name, source=TfdsSource(tfds_name, layout),
                objective=objectives.by_name(objective), paper='https://arxiv.org/abs/1910.10683'))


for _name, _objective in (
    ('c4_v220_span_corruption', 'span_corruption'), ('c4_v220_iid_denoising', 'token_masking'),
    ('c4_v220_prefix_lm', 'prefix_lm'), ('c4_v220_full_lm', 'causal_lm'),
    ('c4_prefix_lm_objective_encoder_decoder_architecture', 'prefix_lm'),
    ('c4_v220_bart_text_infilling', 'text_infilling'),
    ('c4_v220_bart_token_deletion', 'token_deletion')):
  _declare(_name, 'c4/en:2.2.0', _layout('en', ('c4',)), _objective)
# `unsupervised` is what a configuration makes it; the published models have span corruption.
for _config in ('', '.noclean', '.realnewslike', '.webtextlike'):
  _declare(f'c4{_config.replace(".", "_")}_v020_unsupervised', f'c4/en{_config}:2.2.0',
           _layout(f'en{_config}', ('c4',)), 'span_corruption')
_declare('wikipedia_20190301.en_v003_unsupervised', 'wikipedia/20190301.en:1.0.0',
         _layout('wikipedia'), 'span_corruption')
