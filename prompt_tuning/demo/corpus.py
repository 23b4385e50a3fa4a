"""Writes the pre-training corpus and the vocabulary of the bundled backbone.

Run `python -m prompt_tuning.demo.corpus OUT_DIR --passages=300000`: train.jsonl with one passage
a line, validation.jsonl, and spiece.model, a SentencePiece vocabulary trained on the corpus.
"""

import argparse
import json
import pathlib
import random

from prompt_tuning.demo import passages

VOCABULARY_SIZE = 3000
EXTRA_IDS = 100


def write_passages(path, seed, count):
  """Writes passages, one JSON object a line: text, and where its last part begins (`body`)."""
  rng = random.Random(seed)
  with open(path, 'w', encoding='utf-8') as f:
    for _ in range(count):
      body, closing, _ = passages.passage(rng)
      f.write(json.dumps({'body': body, 'closing': closing}) + '\n')


def train_vocabulary(corpus, prefix, lines=100000):
  """Trains a case-folding byte-pair SentencePiece model with T5's special ids."""
  import sentencepiece
  texts = []
  with open(corpus, encoding='utf-8') as f:
    for line, _ in zip(f, range(lines)):
      row = json.loads(line)
      texts.append(f"{row['body']} {row['closing']}")
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(texts), model_prefix=str(prefix), vocab_size=VOCABULARY_SIZE,
      model_type='bpe', pad_id=0, eos_id=1, unk_id=2, bos_id=-1, character_coverage=1.0,
      normalization_rule_name='nmt_nfkc_cf', num_threads=1, minloglevel=2,
      hard_vocab_limit=False)


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('folder', type=pathlib.Path)
  parser.add_argument('--passages', type=int, default=300000)
  parser.add_argument('--seed', type=int, default=1)
  args = parser.parse_args()
  args.folder.mkdir(parents=True, exist_ok=True)
  write_passages(args.folder / 'train.jsonl', args.seed, args.passages)
  write_passages(args.folder / 'validation.jsonl', args.seed + 1, 2000)
  train_vocabulary(args.folder / 'train.jsonl', args.folder / 'spiece')


if __name__ == '__main__':
  main()
