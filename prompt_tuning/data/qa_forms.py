"""Further text forms of question answering in T5: answers as places, documents with answers."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prompt_tuning.data.preprocessors import field_text
from prompt_tuning.data.text_forms import pad_punctuation, texts

Example = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Span:
  """The place of the answer in the passage, `start: 3 end: 5`, in place of its text.

  Places count the parts of the passage between single spaces, with all but letters, digits and _
  made spaces. An example whose answer is not found, or is the very end, gives nothing, as in T5.

  Attributes:
    form: gives `context`, `targets` and all else.
  """
  form: Callable[[Example], list[Example]]

  def __call__(self, example: Example) -> list[Example]:
    found = []
    for made in self.form(example):
      answer, context = (_parts(made[name]) for name in ('targets', 'context'))
      size = len(answer)
      start = next((i for i in range(len(context) - size) if context[i:i + size] == answer), None)
      if start is not None:
        found.append({**made, 'targets': f'start: {start} end: {start + size - 1}'})
    return found


@dataclasses.dataclass(frozen=True)
class TriviaQA:
  """A question with each of its documents and each of the answers that the document holds.

  https://arxiv.org/abs/1705.03551
  """

  def __call__(self, example: Example) -> list[Example]:
    question = pad_punctuation(field_text(example, 'question', 'This task'))
    answers = [pad_punctuation(text) for text in
               texts(example.get('answer', {}), 'normalized_aliases')]
    return [{'inputs': re.sub(r'\s+', ' ', f'question: {question} context: {context}',
                              flags=re.ASCII),
             'targets': answer, 'answers': answers}
            for context in map(pad_punctuation, _documents(example)) for answer in answers
            if _lower(answer) in _lower(context)]


def _parts(text: str) -> list[str]:
  return re.sub(r'\W', ' ', text, flags=re.ASCII).split(' ')


def _documents(example: Example) -> Iterator[str]:
  for group, field in (('entity_pages', 'wiki_context'), ('search_results', 'search_context')):
    yield from texts(example.get(group, {}), field)


def _lower(text: str) -> bytes:
  """Lower case of ASCII letters alone."""
  return text.encode().lower()
