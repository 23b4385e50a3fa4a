"""Every task of T5's registry that is built in: strings and token ids that T5 gave (t5 0.9.4).

test_interop_t5.py compares with T5 itself where it is installed.
"""

import dataclasses
import json
import pathlib

import pytest
from data import t5_reference

from prompt_tuning import vocabulary
from prompt_tuning.data import cache, sources, task

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / 'golden' / 'data' / 'text' / 't5_tasks.json'


@pytest.fixture(scope='module')
def vocab(shared_dir):
  return vocabulary.load_vocabulary(shared_dir / 'data' / 'vocab' / 't5.sentencepiece.model')


@pytest.mark.parametrize('name', t5_reference.TASKS)
def test_text_and_ids(name, vocab, tmp_path):
  wanted = json.loads(GOLDEN.read_text())[name]
  given = t5_reference.rows()[t5_reference.TASKS[name]]
  ours = dataclasses.replace(task.get(name), source=sources.ListSource({'train': tuple(given)}))
  built = cache.build(ours, 'train', vocab, t5_reference.LENGTHS, tmp_path)
  assert len(built) == len(wanted) > 0
  for theirs, pair, record in zip(
      wanted, built.tokens(range(len(built))), built.records(range(len(built))), strict=True):
    texts = [record[f'{feature}_pretokenized'] for feature in t5_reference.FEATURES]
    if name == 'trivia_qa_v010':  # the reference keeps none
      texts = [vocab.decode(ids) for ids in pair]
    assert [*texts, *(ids.tolist() for ids in pair)] == theirs
