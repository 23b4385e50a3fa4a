"""Mixtures of T5 and of google-research/prompt-tuning, under their names and with their rates.

`proportional` rates are numbers of training examples. Scores are averaged as the benchmarks do:
both parts of MNLI are one task, and the diagnostic sets do not count.
"""

import re
from collections.abc import Iterable

from prompt_tuning.data import task as task_lib
from prompt_tuning.data.mixture import ByExamples, Mixture, Rate

_FORMS = ('', 'taskless_', 'task_index_')

# T5 leaves WNLI out, for it trains on the same sentences in WSC and DPR.
_GLUE = {'cola': 8_551, 'sst2': 67_349, 'mrpc': 3_668, 'qqp': 363_849, 'stsb': 5_749,
         'mnli': 392_702, 'qnli': 104_743, 'rte': 2_490, 'mnli_mismatched': 0, 'mnli_matched': 0,
         'ax': 0}
_GLUE_SCORED = (('cola',), ('sst2',), ('mrpc',), ('qqp',), ('stsb',),
                ('mnli_matched', 'mnli_mismatched'), ('qnli',), ('rte',))
_MNLI = ('mnli', 'mnli_mismatched', 'mnli_matched')

_DPR = {'dpr_v001_simple': 1_322}
_SUPER_GLUE = {f'super_glue_{name}': rate for name, rate in {
    'wsc_v102_simple_train': 259, 'wsc_v102_simple_eval': 0, 'boolq_v102': 9_427, 'cb_v102': 250,
    'copa_v102': 400, 'multirc_v102': 27_243, 'record_v102': 138_854, 'rte_v102': 2_490,
    'wic_v102': 5_428}.items()}
_DIAGNOSTIC = {'super_glue_axb_v102': 0, 'super_glue_axg_v102': 0}
_SUPER_GLUE_SCORED = tuple((name,) for name in _SUPER_GLUE if not name.endswith('_train'))
_WSC = ('super_glue_wsc_v102_simple_train', 'super_glue_wsc_v102_simple_eval')

_MRQA = tuple(f'mrqa_{name}_v001' for name in (
    'bioasq', 'drop', 'duorc', 'race', 'relation_extraction', 'textbookqa'))


def _declare(name: str, rates: dict[str, Rate], scored=None, *, form: str = ''):
  """Registers a mixture of tasks in one of their forms."""
  if scored is not None:
    scored = tuple(tuple(f'{form}{task}' for task in group) for group in scored)
  task_lib.register(Mixture(
      name=f'{form}{name}', scored=scored,
      parts=tuple((task_lib.get(f'{form}{task}'), rate) for task, rate in rates.items())))


def _equal(names: Iterable[str]) -> dict[str, Rate]:
  return dict.fromkeys(names, 1)


def _with_sentinel(name: str) -> str:
  """The form of a task whose targets begin with a sentinel."""
  return re.sub(r'(_train|_eval)?$', r'_1_sentinel\1', name, count=1)


def _glue(version: str, names) -> list[str]:
  return [f'glue_{name}_{version}' for name in names]


for _form in _FORMS:
  for _version in ('v002', 'v200'):
    _declare(f'glue_{_version}_proportional',
             dict(zip(_glue(_version, _GLUE), _GLUE.values(), strict=True)),
             [_glue(_version, group) for group in _GLUE_SCORED], form=_form)
    _declare(f'glue_mnli_and_dev_{_version}', _equal(_glue(_version, _MNLI)),
             [_glue(_version, _MNLI[1:])], form=_form)
  _declare('super_glue_wsc_and_dev_v102_simple', _equal(_WSC), form=_form)

# T5's has DPR and the diagnostic sets; that of task indices names DPR where it has it.
_ALL_SUPER_GLUE = _DPR | _SUPER_GLUE | _DIAGNOSTIC
_declare('super_glue_v102_proportional', _ALL_SUPER_GLUE, _SUPER_GLUE_SCORED)
_declare('super_glue_v102_proportional_sentinel',
         {_with_sentinel(name): rate for name, rate in _ALL_SUPER_GLUE.items()},
         [[_with_sentinel(name)] for [name] in _SUPER_GLUE_SCORED])
for _form in _FORMS[1:]:
  _declare('super_glue_v102_proportional', _SUPER_GLUE, _SUPER_GLUE_SCORED, form=_form)
  _declare('super_glue_with_dpr_v102_proportional', _DPR | _SUPER_GLUE, _SUPER_GLUE_SCORED,
           form=_form)
_declare('wsc_dpr_simple_proportional',
         _DPR | {name: _SUPER_GLUE[name] for name in _WSC}, [[_WSC[1]]])

_declare('spot_glue_mnli_and_dev_v200', _equal(tuple(f'spot_glue_mnli_{split}_v200' for split in (
    'train', 'validation_matched', 'validation_mismatched'))),
         [[f'spot_glue_mnli_validation_{part}_v200' for part in ('matched', 'mismatched')]])

# Trained on the one dataset of paraphrases, evaluated on it and on the other.
for _form in _FORMS:
  for _version in ('v002', 'v200'):
    for _source, _target in (('qqp', 'mrpc'), ('mrpc', 'qqp')):
      _declare(f'glue_{_target}_from_{_source}_zeroshot_{_version}',
               _equal(_glue(_version, (_source, f'{_target}_from_{_source}'))), form=_form)

# Trained on SQuAD, evaluated on it and out of its domain.
for _name in _MRQA:
  _declare(f'squad_to_{_name.removeprefix("mrqa_").removesuffix("_v001")}',
           _equal(('squad_v010_allanswers', _name)))
_declare('squad_to_mrqa', _equal(('squad_v010_allanswers', *_MRQA)))

# Co-training of T5 (https://arxiv.org/abs/1910.10683, section 3.5). RTE is in both benchmarks, and
# has half its rate twice where both are mixed; plain text may count as a million examples.
_FEW, _TEXT = ByExamples(), 'c4_v020_unsupervised'
_TRANSLATION = ('wmt_t2t_ende_v003', 'wmt15_enfr_v003')
_BENCHMARKS = {f'glue_{name}_v002': rate for name, rate in _GLUE.items()} | _ALL_SUPER_GLUE
_SINGLE = ('cnn_dailymail_v002', 'squad_v010_allanswers', *_TRANSLATION, 'wmt16_enro_v003')
_HALVED = {name: rate / 2 if 'rte' in name else rate for name, rate in _BENCHMARKS.items()}
_ALL = _HALVED | dict.fromkeys((*_SINGLE, _TEXT), _FEW)
_SCORES = (*(tuple(_glue('v002', group)) for group in _GLUE_SCORED), *_SUPER_GLUE_SCORED,
           *((name,) for name in _SINGLE))


def _declare_together(name: str, rates: dict[str, Rate]):
  """A mixture of the tasks of both benchmarks and others, scored as the benchmarks are."""
  _declare(name, rates, [group for group in _SCORES if rates.keys() >= set(group)])


_declare_together(
    'en_mix', {_TEXT: 1e6} | dict.fromkeys((*_BENCHMARKS, 'squad_v010_allanswers'), _FEW))
_declare_together('all_equal', _equal((*_BENCHMARKS, *_SINGLE, _TEXT)))
_declare_together('all_proportional', _ALL)
_declare_together('all_mix', _ALL | {_TEXT: 1e6})
for _left_out in _SINGLE:
  _declare_together(
      f'leave_one_out_{_left_out}',
      {name: rate for name, rate in _ALL.items() if name != _left_out})
for _left_out, _prefixes in (
    ('glue_v002', ('glue_',)), ('super_glue_v102', ('super_glue_', 'dpr_'))):
  _declare_together(f'leave_one_out_{_left_out}_proportional', {
      name: rate for name, rate in (_ALL | _BENCHMARKS).items() if not name.startswith(_prefixes)})
_declare('large_supervised_equal', _equal((*_TRANSLATION, 'cnn_dailymail_v002')))
_declare('large_supervised_proportional',
         dict.fromkeys((*_TRANSLATION, 'cnn_dailymail_v002'), _FEW))
_declare('large_translation_equal', _equal(_TRANSLATION))
_declare('squad_trivia_qa_equal', _equal(('squad_v010_allanswers', 'trivia_qa_v010')))
