"""SQuAD 1.1 (https://arxiv.org/abs/1606.05250) and MRQA 2019 (https://arxiv.org/abs/1910.09753).

Questions with a passage that holds the answer, in T5's form of SQuAD. Prompts are trained on one
dataset and evaluated on the others; out of domain there is no training split.
"""

from prompt_tuning.data import metrics, nested_rows, qa_forms, text_files, text_forms, token_forms
from prompt_tuning.data.postprocessors import Answers, SpanAnswers
from prompt_tuning.data.published import Layout, TfdsSource
from prompt_tuning.data.task import Task, register, register_forms

_MRQA = 'https://arxiv.org/abs/1910.09753'
# Name -> (config at TensorFlow Datasets, names of the files that MRQA publishes).
_IN_DOMAIN = {
    'squad': ('squad', ('SQuAD',)),
    'newsqa': ('news_qa', ('NewsQA',)),
    'triviaqa': ('trivia_qa', ('TriviaQA-web', 'TriviaQA')),
    'searchqa': ('search_qa', ('SearchQA',)),
    'hotpotqa': ('hotpot_qa', ('HotpotQA',)),
    'natural_questions': ('natural_questions', ('NaturalQuestionsShort', 'NaturalQuestions')),
}
_OUT_OF_DOMAIN = {
    'bioasq': ('bio_asq', ('BioASQ',)),
    'drop': ('drop', ('DROP',)),
    'duorc': ('duo_rc', ('DuoRC.ParaphraseRC', 'DuoRC')),
    'race': ('race', ('RACE',)),
    'relation_extraction': ('relation_extraction', ('RelationExtraction',)),
    'textbookqa': ('textbook_qa', ('TextbookQA',)),
}


# Of a task_index_ form; no dataset's name is in the inputs.
_CONFIGS = sorted(config for group in (_IN_DOMAIN, _OUT_OF_DOMAIN) for config, _ in group.values())


def _layout(folders: tuple[str, ...], files: dict[str, tuple[str, ...]]) -> Layout:
  return Layout(
      folders=folders, collections=(), files=files, flatten=nested_rows.questions, list_in='data',
      header=('id', 'context', 'question', 'answer', 'answers'),
      columns={name: (name,) for name in ('id', 'question', 'context', 'answers', 'answer')},
      kinds={'answers': list})


def _mrqa_files(names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
  """A dataset's file for each split: in a folder of the split, or with the split in its name."""
  patterns = {
      'train': ('train/{}.jsonl', 'in_domain_train/{}.jsonl', '{}.train*.jsonl'),
      'validation': ('dev/{}.jsonl', 'in_domain_dev/{}.jsonl', 'out_of_domain_dev/{}.jsonl',
                     '{}.val.jsonl', '{}.dev.jsonl', '{}.jsonl', '{}.tsv'),
  }
  if 'SQuAD' in names:  # further questions on the passages of its development set
    patterns |= {'validation_v11': ('{}.dev11*.jsonl',), 'xquad': ('{}.xquad*.jsonl',)}
  return {split: tuple(pattern.format(name) for pattern in given for name in names)
          for split, given in patterns.items()}


def _declare(name: str, source: TfdsSource, paper: str = _MRQA, **form):
  register_forms(Task(
      name=name, source=source, paper=paper, preprocess=text_forms.QuestionAndContext(**form),
      postprocess_fn=Answers(), metric_fns=(metrics.squad,)),
      next(i for i, config in enumerate(_CONFIGS) if config in source.name), named=False)


_SQUAD = TfdsSource('squad/v1.1:3.0.0', _layout(
    ('squad', 'SQuAD', 'SQuAD1.1', 'squad_v1.1'),
    {'train': ('train-v1.1.json', 'train.json'), 'validation': ('dev-v1.1.json', 'dev.json')}))
_SQUAD_PAPER = 'https://arxiv.org/abs/1606.05250'
_declare('squad_v010_allanswers', _SQUAD, _SQUAD_PAPER)
_declare('squad_v010', _SQUAD, _SQUAD_PAPER)  # T5's older name
_declare('squad_v010_context_free', _SQUAD, _SQUAD_PAPER, context=False)
register(Task(
    name='squad_v010_allanswers_span', source=_SQUAD, paper=_SQUAD_PAPER,
    preprocess=qa_forms.Span(text_forms.QuestionAndContext()),
    postprocess_fn=SpanAnswers(), metric_fns=(metrics.span_squad,)))
for _name, (_config, _names) in _IN_DOMAIN.items():
  _source = TfdsSource(f'mrqa/{_config}:1.0.0', _layout(('mrqa', 'MRQA'), _mrqa_files(_names)))
  _declare(f'mrqa_{_name}_v001', _source)
  # As a source of prompt transfer (SPoT, https://arxiv.org/abs/2110.07904).
  _declare(f'spot_mrqa_{_config}_v100', _source, detected=False)
for _name, (_config, _names) in _OUT_OF_DOMAIN.items():
  _declare(f'mrqa_{_name}_v001', TfdsSource(
      f'mrqa/{_config}:1.0.0', _layout(('mrqa', 'MRQA'), _mrqa_files(_names)),
      renamed=(('validation', 'test'),)))

register(Task(
    name='trivia_qa_v010', preprocess=qa_forms.TriviaQA(), on_tokens=token_forms.KeepAnswer(),
    postprocess_fn=Answers(), metric_fns=(metrics.trivia_qa,),
    paper='https://arxiv.org/abs/1705.03551',
    source=TfdsSource('trivia_qa/rc:1.1.0', Layout(
        folders=('triviaqa-rc', 'trivia_qa', 'triviaqa'), collections=(), many=True,
        files={'train': ('qa/*-train.json', '*-train.json'),
               'validation': ('qa/*-dev.json', '*-dev.json'),
               'test': ('qa/*-test-without-answers.json', '*-test-without-answers.json')},
        readers={'.json': text_files.read_trivia_qa},
        columns={**{name: (name,) for name in (
            'question', 'answer', 'entity_pages', 'search_results')}, 'idx': ('id',)},
        kinds=dict.fromkeys(('answer', 'entity_pages', 'search_results'), dict)))))
