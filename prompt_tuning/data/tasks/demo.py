"""The tasks of the bundled demo and the text that its backbone is pre-trained on.

The examples are files beside the backbone in prompt_tuning/demo/tasks, written by
`python -m prompt_tuning.demo.examples`. The corpus is a folder that
`python -m prompt_tuning.demo.corpus` fills; DATA_DIR names it.
"""

import dataclasses
import os
import pathlib
import zlib

from prompt_tuning.data import metrics, preprocessors, task
from prompt_tuning.data.postprocessors import LabelId
from prompt_tuning.data.sources import FileSource
from prompt_tuning.errors import UserError

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / 'demo' / 'tasks'
_SPLITS = ('train', 'validation', 'test')


def _declare(name: str, template: str, labels: tuple[str, ...]):
  task.register(task.Task(
      name=name,
      source=FileSource({s: str(EXAMPLES / name / f'{s}.jsonl') for s in _SPLITS}),
      preprocess=preprocessors.Template(template, 'label', tuple((x, x) for x in labels)),
      postprocess_fn=LabelId(labels), metric_fns=(metrics.accuracy,), labels=labels))


_declare('demo_sentiment', '{sentence}', ('negative', 'positive'))
_declare('demo_nli', '{premise} {hypothesis}', ('no', 'yes'))
for _domain in ('forum', 'news'):
  _declare(f'demo_paraphrase_{_domain}', '{sentence1} {sentence2}', ('different', 'same'))


@dataclasses.dataclass(frozen=True)
class CorpusSource(FileSource):
  """Passages that `prompt_tuning.demo.corpus` wrote to a folder; DATA_DIR names it."""

  def in_folder(self, data_dir: str) -> 'CorpusSource':
    """The passages of a folder."""
    paths = {s: os.path.join(data_dir, f'{s}.jsonl') for s in ('train', 'validation')}
    for path in paths.values():
      if not os.path.isfile(path):
        raise UserError(f'DATA_DIR={data_dir!r} has no {os.path.basename(path)}. Write the corpus '
                        f'with: python -m prompt_tuning.demo.corpus {data_dir}')
    return CorpusSource(paths)


@dataclasses.dataclass(frozen=True)
class WholeText:
  """A passage as one text, for span corruption."""

  def __call__(self, row):
    return [{'text': f"{row['body']} {row['closing']}"}]


@dataclasses.dataclass(frozen=True)
class Continuation:
  """A passage as text to continue: from where its last part begins, or from anywhere.

  Attributes:
    from_closing: share of passages that are cut before their last part; the others are cut
      at random by the language-modelling objective.
    most_words: passages with a longer last part are cut at random too.
  """
  from_closing: float = 0.8
  most_words: int = 11

  def __call__(self, row):
    body, closing = row['body'], row['closing']
    chance = zlib.crc32(body.encode()) % 1000 / 1000
    if chance < self.from_closing and len(closing.split()) <= self.most_words:
      return [{'inputs': body, 'targets': closing}]
    return [{'text': f'{body} {closing}'}]


_CORPUS = CorpusSource({'train': 'train.jsonl', 'validation': 'validation.jsonl'})
task.register(task.Task(
    name='demo_corpus_spans', source=_CORPUS, preprocess=WholeText(),
    objective=preprocessors.SpanCorruption(noise_density=0.2)))
task.register(task.Task(
    name='demo_corpus_lm', source=_CORPUS, preprocess=Continuation(),
    objective=preprocessors.PrefixLM()))
