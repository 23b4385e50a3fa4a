"""What is trained, whose vocabulary it is, what the base says untuned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.checkpoints import restore
from prompt_tuning.diagnosis import model_checks
from prompt_tuning.diagnosis.findings import NOTE, PROBLEM, WARNING
from prompt_tuning.peft.lora import LoRA
from prompt_tuning.peft.model_tuning import ModelTuning
from prompt_tuning.peft.soft_prompt import SoftPrompt
from prompt_tuning.vocabulary import ByteVocabulary, load_vocabulary


def tree(**shapes):
  flat = {path.replace('.', '/'): jax.ShapeDtypeStruct(shape, jnp.float32)
          for path, shape in shapes.items()}
  return model_checks.params_lib.unflatten(flat)


BASE = tree(**{'token_embedder.embedding': (100, 10)})


def test_nothing_is_trained():
  [finding] = model_checks.check_trainable((), {}, BASE)
  assert (finding.severity, finding.topic) == (PROBLEM, 'nothing is trained')
  assert '0 of 1,000' in finding.found


def test_counts_and_modules():
  prompt = tree(**{'encoder.prompt.prompt.prompt': (5, 10)})
  [finding] = model_checks.check_trainable((SoftPrompt(length=5),), prompt, BASE)
  assert finding.severity == NOTE
  assert finding.found == '50 of 1,050 (4.8 %). SoftPrompt: encoder/prompt/prompt (1).'
  lora = tree(**{f'encoder.layers_{i}.attention.query.lora.{x}': (2, 2)
                 for i in range(3) for x in 'ab'})
  [finding] = model_checks.check_trainable((LoRA(),), lora, BASE)
  assert 'LoRA: encoder/layers_*/attention/query/lora (6)' in finding.found


def test_most_of_the_model_is_trained():
  [finding] = model_checks.check_trainable((LoRA(),), BASE, BASE)
  assert (finding.severity, finding.topic) == (WARNING, 'trained parameters')
  [finding] = model_checks.check_trainable((ModelTuning(),), BASE, {})
  assert finding.severity == NOTE


def test_vocabularies():
  mine, stored = ByteVocabulary(), load_vocabulary(restore.demo_folder() / 'spiece.model')
  assert stored.vocab_size == 3100

  def verdict(*args):
    [finding] = model_checks.check_vocabulary(*args)
    assert finding.topic == 'vocabulary'
    return finding.severity, finding.found
  assert verdict(stored, 3100, 3099, stored)[0] == NOTE
  severity, text = verdict(mine, 384, 200)
  assert severity == NOTE and '259 ids for 384 embeddings, was given' in text
  severity, text = verdict(mine, 3100, 200, stored)
  assert severity == PROBLEM and 'their pieces differ' in text
  severity, text = verdict(mine, 3100, 200)
  assert severity == PROBLEM and '259 ids' in text and '8.4 %' in text
  severity, text = verdict(stored, 384, 3000)
  assert severity == PROBLEM and 'ids up to 3000' in text and '384 embeddings' in text


def test_highest_id():
  assert model_checks.highest_id([(np.array([3, 9]), np.array([], int)),
                                  (np.array([1]), np.array([12]))]) == 12


@pytest.mark.parametrize(('labels', 'words'), [
    (('yes', 'no'), "3 examples, greedy: 'well' (2), 'yes' (1). 33.3 % are labels ('yes')."),
    (('a', 'b'), "3 examples, greedy: 'well' (2), 'yes' (1). 0.0 % are labels."),
    (None, "3 examples, greedy: 'well' (2), 'yes' (1).")])
def test_untuned_answers(labels, words):
  [finding] = model_checks.untuned_answers(['well', 'yes', 'well'], labels)
  assert (finding.severity, finding.found) == (NOTE, words)
  assert model_checks.untuned_answers([], labels) == []
