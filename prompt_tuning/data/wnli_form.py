"""WNLI as generation: the noun that stands in the hypothesis where the premise has a pronoun.

T5 answers WNLI with what it learnt from Winograd schemas (https://arxiv.org/abs/1910.10683,
section 2.4). The pronoun is the one whose neighbours in the premise reappear in the hypothesis;
what stands there between them is the noun.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning.data.preprocessors import field_text
from prompt_tuning.errors import UserError, excerpt

_PRONOUNS = frozenset('he she they it her his their them him'.split())
_ARTICLES = ('a', 'an', 'the')
_MARKS = '.,?!'


@dataclasses.dataclass(frozen=True)
class WnliReferent:
  """`wsc:` and the premise with `*` around the pronoun; as WSC, for evaluation alone."""

  def __call__(self, example: Mapping[str, Any]) -> list[dict[str, Any]]:
    premise, hypothesis = (
        field_text(example, name, 'This task') for name in ('sentence1', 'sentence2'))
    there, here = _words(premise), _words(hypothesis)
    places = [i for i, word in enumerate(there) if word in _PRONOUNS]
    if not places:
      raise UserError(f"field 'sentence1' is {excerpt(premise)}; a sentence with a pronoun is "
                      'needed.')
    _, noun, place = max((_match(there, here, place) for place in places),
                         key=lambda match: match[0])
    return [{'inputs': f'wsc: {_highlighted(premise, place)}',
             'targets': _written(noun, hypothesis), 'premise': premise, 'hypothesis': hypothesis,
             'label': example.get('label', 0)}]


def _words(text: str) -> list[str]:
  """Words in lower case, without a mark at their ends."""
  words = (re.sub(rf'[{_MARKS}]$', '', word) for word in text.strip().lower().split(' '))
  return [word for word in words if word]


def _match(premise: Sequence[str], hypothesis: Sequence[str], place: int) -> tuple[int, str, int]:
  """(words around a pronoun that the hypothesis has too, what stands between them, the place)."""
  before, after = premise[:place], premise[place + 1:]
  kept_before = _common(before[::-1], hypothesis[::-1])
  kept_after = _common(after, hypothesis)
  score = kept_before + kept_after
  left = [re.escape(word) for word in before[len(before) - kept_before:]]
  right = [re.escape(word) for word in after[:kept_after]]
  # Between both; else at the beginning; else at the end.
  for pattern in ([*left, '(.+)', *right], ['^(.+)', *right], [*left, '(.+)$']) if score else ():
    found = re.search(' '.join(pattern), ' '.join(hypothesis))
    if found:
      return score, found[1], place
  return score, '', place


def _common(words: Sequence[str], other: Sequence[str]) -> int:
  """How many of the first words stand in the other text one after another."""
  text = ' '.join(other)
  for size in range(len(words)):
    if ' '.join(words[:size + 1]) not in text:
      return size
  return len(words)


def _highlighted(premise: str, place: int) -> str:
  """The premise with `*` around a word; a mark behind the word stands alone."""
  words = premise.split(' ')
  word = words[place]
  words[place] = f'*{word[:-1]}* {word[-1]}' if word[-1:] in tuple(_MARKS) else f'*{word}*'
  return ' '.join(words)


def _written(noun: str, hypothesis: str) -> str:
  """The noun from its last article on, as the hypothesis writes it, without a possessive."""
  words = noun.split(' ')
  words = words[max([words.index(a) for a in _ARTICLES if a in words], default=0):]
  pattern = ' '.join(rf'{re.escape(word)}[{_MARKS}]?' for word in words)
  found = re.search(pattern, hypothesis, re.IGNORECASE)
  if not found:
    raise UserError(f"field 'sentence2' is {excerpt(hypothesis)}; it does not hold the noun "
                    f'{excerpt(noun)} that a pronoun of sentence1 stands for.')
  text = found[0]
  text = text[:-1] if text[-1:] in tuple(_MARKS) else text
  return text.removesuffix("'s") if text.endswith("'s") else text.removesuffix("'")
