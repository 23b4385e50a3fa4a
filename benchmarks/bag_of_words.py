"""Asserts that the demo tasks cannot be read off single words.

A logistic regression on word counts, trained on each task's train split, has to stay below 85 %
accuracy on its test split; word pairs and the counts of each field apart are printed beside it.

  python benchmarks/bag_of_words.py
"""

import sys

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from prompt_tuning.demo import examples

LIMIT = 0.85


def accuracy(splits, features):
  """Returns the test accuracy of a logistic regression on a featuriser of examples."""
  fit, apply = features
  train, test = splits['train'], splits['test']
  matrix = fit(train)
  labels = [[row['label'] for row in rows] for rows in (train, test)]
  model = LogisticRegression(max_iter=1000).fit(matrix, labels[0])
  return float(np.mean(model.predict(apply(test)) == np.array(labels[1])))


def counts(ngrams):
  """Returns a featuriser: counts of the words of all fields together."""
  vectorizer = CountVectorizer(ngram_range=(1, ngrams), token_pattern=r"[\w']+")
  texts = lambda rows: [' '.join(examples.sentences(row)) for row in rows]
  return (lambda rows: vectorizer.fit_transform(texts(rows)),
          lambda rows: vectorizer.transform(texts(rows)))


def field_counts():
  """Returns a featuriser: word counts of each field apart."""
  vectorizers = []

  def fit(rows):
    for field in zip(*[examples.sentences(row) for row in rows]):
      vectorizers.append(CountVectorizer(token_pattern=r"[\w']+").fit(field))
    return apply(rows)

  def apply(rows):
    fields = zip(*[examples.sentences(row) for row in rows])
    return sparse.hstack([v.transform(f) for v, f in zip(vectorizers, fields)])

  return fit, apply


def main():
  failed = []
  print(f"{'task':24}{'words':>8}{'by field':>10}{'pairs':>8}")
  for task in examples.MAKERS:
    splits = examples.examples(task)
    scores = [accuracy(splits, f) for f in (counts(1), field_counts(), counts(2))]
    print(f'{task:24}' + ''.join(f'{s:>{w}.1%}' for s, w in zip(scores, (8, 10, 8))))
    if max(scores[:2]) >= LIMIT:
      failed.append(task)
  if failed:
    sys.exit(f'bag of words reaches {LIMIT:.0%} on {failed}: these tasks are too easy')


if __name__ == '__main__':
  main()
