"""A run on a T5X checkpoint: its shape, its step and a SentencePiece vocabulary of its own."""

import pytest
import sentencepiece
from e2e import jsonl

from prompt_tuning.checkpoints import prompt_file
from prompt_tuning.cli import main

BASE = 't5x_small/ckpt_prompt_gzip'


@pytest.fixture(scope='module')
def vocabulary(folder):
  """A vocabulary small enough for the 256 embeddings of the checkpoint, with 100 extra ids."""
  prefix = folder / 'pieces'
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(['say: fine poor yes no 0123456789'] * 20), model_prefix=str(prefix),
      vocab_size=60, hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
      minloglevel=2)
  return f'{prefix}.model'


def argv(train_argv, golden_dir, vocabulary, model_dir, **overrides):
  return train_argv(model_dir, model='models/from_checkpoint.gin', VOCABULARY=vocabulary,
                    INITIAL_CHECKPOINT_PATH=golden_dir / BASE, **overrides)


def test_starts_at_the_step_of_the_base(train_argv, golden_dir, vocabulary, tmp_path, capsys):
  run = tmp_path / 'run'
  assert main.main(argv(train_argv, golden_dir, vocabulary, run, TRAIN_STEPS_RELATIVE=3)) == 0
  err = capsys.readouterr().err
  assert 'Steps 7 to 10' in err
  assert 'count from step 7' in err
  rows = jsonl.read(run / 'metrics.jsonl')
  assert [row['step'] for row in rows] == [8, 8, 10, 10]
  assert prompt_file.load_prompt(run / 'prompt.safetensors').array.shape == (3, 32)


def test_absolute_steps_before_the_start(train_argv, golden_dir, vocabulary, tmp_path, capsys):
  assert main.main(argv(train_argv, golden_dir, vocabulary, tmp_path / 'run', TRAIN_STEPS=5)) == 2
  assert 'TRAIN_STEPS is 5' in capsys.readouterr().err


def test_initial_step_wins(train_argv, golden_dir, vocabulary, tmp_path):
  run = tmp_path / 'run'
  assert main.main(argv(train_argv, golden_dir, vocabulary, run, TRAIN_STEPS=2,
                        INITIAL_STEP=0)) == 0
  rows = jsonl.read(run / 'metrics.jsonl')
  assert rows[-1]['step'] == 2
