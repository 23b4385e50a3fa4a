"""The labelled examples of the four demo tasks, from sentences the backbone has never seen.

Run `python -m prompt_tuning.demo.examples OUT_DIR` to write them again: one folder a task with
train.jsonl, validation.jsonl and test.jsonl.
"""

import json
import pathlib
import random
import sys

from prompt_tuning.demo import opinions, passages, stances

SIZES = {'train': 2000, 'validation': 400, 'test': 1000}
SEEDS = {'demo_sentiment': 11, 'demo_nli': 22, 'demo_paraphrase_forum': 33,
         'demo_paraphrase_news': 44}


def sentiment(rng, label):
  """Returns one review of a sentence whose words alone do not tell its polarity."""
  return {'sentence': opinions.review(rng, label, opinions.TASK_MIX),
          'label': opinions.LABELS[label]}


def nli(rng, label):
  """Returns an opinion and a statement that follows from it (yes) or is denied by it (no)."""
  polarity = rng.randrange(2)
  premise, thing = stances.opinion(rng, polarity, opinions.TASK_MIX)
  said = stances.claim(rng, polarity if label else 1 - polarity, thing)
  return {'premise': premise, 'hypothesis': passages.capital(said),
          'label': passages.ANSWERS[label]}


def _paraphrase(rng, label, about, word):
  matter, polarity = about(rng), rng.randrange(2)
  first, form = word(rng, polarity, matter)
  second, _ = word(rng, polarity if label else 1 - polarity, matter, form)
  return {'sentence1': first, 'sentence2': second, 'label': passages.KINSHIP[label]}


def forum(rng, label):
  """Returns two questions that ask the same, or one takes for bad what the other finds good."""
  return _paraphrase(rng, label, stances.topic, stances.question)


def news(rng, label):
  """Returns two reports that say the same of a plan's supporters, or the opposite."""
  return _paraphrase(rng, label, stances.plan, stances.report)


MAKERS = {'demo_sentiment': sentiment, 'demo_nli': nli, 'demo_paraphrase_forum': forum,
          'demo_paraphrase_news': news}


def sentences(example):
  """Returns the sentences of an example."""
  return [text for field, text in example.items() if field != 'label']


def examples(task, sizes=None):
  """Makes a task's examples.

  Every sentence is among those that pre-training holds out, no example comes twice, and the two
  labels are equally frequent in every split.

  Args:
    task: a key of `MAKERS`.
    sizes: split -> number of examples; `SIZES` where None.

  Returns:
    split -> list of dicts of text fields and `label`.
  """
  rng = random.Random(SEEDS[task])
  seen = set()
  splits = {}
  for split, size in (sizes or SIZES).items():
    splits[split] = []
    while len(splits[split]) < size:
      example = MAKERS[task](rng, len(splits[split]) % 2)
      key = tuple(sentences(example))
      if key not in seen and all(passages.held_out(s) for s in key):
        seen.add(key)
        splits[split].append(example)
    rng.shuffle(splits[split])
  return splits


def write(folder):
  """Writes the examples of all tasks as JSONL under a folder."""
  for task in MAKERS:
    for split, rows in examples(task).items():
      path = pathlib.Path(folder) / task / f'{split}.jsonl'
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


if __name__ == '__main__':
  write(sys.argv[1])
