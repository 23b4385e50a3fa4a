"""The generators: reproducible, balanced, and what pre-training sees is not what tasks ask."""

import collections
import random
import re

import pytest

from prompt_tuning.demo import (
  examples,
  facts,
  lexicon,
  opinions,
  passages,
  questions,
  reports,
  stances,
)


def draw(seed, count=2000):
  rng = random.Random(seed)
  return [passages.passage(rng) for _ in range(count)]


def test_passages_are_a_function_of_the_seed():
  assert draw(3, 200) == draw(3, 200)
  assert draw(3, 200) != draw(4, 200)


def test_world_has_thousands_of_words():
  words = set()
  for body, closing, _ in draw(0, 20000):
    words |= set(re.findall(r"[\w']+", f'{body} {closing}'.lower()))
  assert len(words) > 2000


def test_no_sentence_of_a_task_is_pre_trained_on():
  known = {s.lower().rstrip('.?') for _, _, told in draw(1, 20000) for s in told}
  checked = 0
  for task in examples.MAKERS:
    for rows in examples.examples(task, {'train': 200, 'validation': 50, 'test': 50}).values():
      for sentence in (s for row in rows for s in examples.sentences(row)):
        assert passages.held_out(sentence)
        assert sentence.lower().rstrip('.?') not in known
        checked += 1
  assert checked == 300 * (1 + 2 + 2 + 2)


def test_bare_labels_are_rare_but_there():
  counts = collections.Counter(closing for _, closing, _ in draw(2, 20000))
  labels = [*opinions.LABELS, *passages.ANSWERS, *passages.KINSHIP]
  assert all(counts[label] > 20 for label in labels)
  assert sum(counts[label] for label in labels) / 20000 < 0.05


def test_negation_is_in_about_a_fifth_of_the_reviews_and_in_more_of_the_tasks():
  shares = []
  for mix in (opinions.PLAIN_MIX, opinions.TASK_MIX):
    rng = random.Random(0)
    reviews = [opinions.review(rng, k % 2, mix) for k in range(2000)]
    words = r"\b(not|never|nobody|no one|none|neither|hardly|nothing)\b|n't|far from|anything but"
    shares.append(sum(bool(re.search(words, r, re.I)) for r in reviews) / len(reviews))
  assert 0.15 < shares[0] < 0.35 < shares[1]


@pytest.mark.parametrize('task', examples.MAKERS)
def test_examples_are_balanced_and_distinct(task):
  splits = examples.examples(task, {'train': 100, 'test': 60})
  for rows in splits.values():
    assert len(set(collections.Counter(row['label'] for row in rows).values())) == 1
  texts = [tuple(examples.sentences(row)) for rows in splits.values() for row in rows]
  assert len(set(texts)) == len(texts) == 160


@pytest.mark.parametrize('about, word', [(stances.topic, stances.question),
                                         (stances.plan, stances.report)])
def test_a_matter_is_worded_differently_each_time(about, word):
  rng = random.Random(0)
  for k in range(300):
    matter = about(rng)
    first, form = word(rng, k % 2, matter)
    second, other = word(rng, k // 2 % 2, matter, form)
    assert form != other and first != second


def test_restatements_speak_of_the_same_people():
  rng = random.Random(0)
  checked = 0
  for _ in range(300):
    f = facts.fact(rng)
    if f.kind in ('transfer', 'comparison', 'visit'):
      assert f.subject in facts.restate(rng, f) and f.other in facts.restate(rng, f)
      checked += 1
  assert checked > 50


def test_questions_and_reports_of_the_plain_world_are_reworded():
  rng = random.Random(0)
  for make, word in ((questions.intent, questions.ask), (reports.event, reports.report)):
    for _ in range(200):
      matter = make(rng)
      _, form = word(rng, matter)
      assert word(rng, matter, form)[1] != form


def test_opposites_go_both_ways():
  for table in (lexicon.OPPOSITES, lexicon.COMPARATIVES):
    assert all(table[table[word]] == word != table[word] for word in table)


@pytest.mark.parametrize('noun, expected', [
    ('apple', 'apples'), ('box', 'boxes'), ('cherry', 'cherries'), ('toy', 'toys'),
    ('bench', 'benches'), ('piece of furniture', 'pieces of furniture'), ('shelf', 'shelves'),
    ('sheep', 'sheep')])
def test_plural(noun, expected):
  assert lexicon.plural(noun) == expected
