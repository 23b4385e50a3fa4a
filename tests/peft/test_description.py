"""Methods in words and back."""

import json

import pytest
from contracts.rows import METHODS

from prompt_tuning.errors import UserError
from prompt_tuning.peft import description
from prompt_tuning.peft.lora import LoRA
from prompt_tuning.peft.prefix_tuning import PrefixTuning
from prompt_tuning.peft.prompt_init import Uniform
from prompt_tuning.peft.soft_prompt import SoftPrompt


@pytest.mark.parametrize('name', METHODS)
def test_every_method_comes_back_from_json(name):
  words = json.loads(json.dumps(description.describe(METHODS[name])))
  assert description.rebuild(words, 'x') == METHODS[name]


def test_an_initialiser_is_left_out():
  (words,) = description.describe([SoftPrompt(length=2, init=Uniform())])
  assert set(words) == {'class', 'length', 'placement', 'num_prompts'}


@pytest.mark.parametrize('words', [
    None, [], 'LoRA', [{}], [7], [{'class': 'os.path.join'}], [{'class': 'LoRA'}],
    [{'class': 'prompt_tuning.peft.lora.Nothing'}], [{'class': 'prompt_tuning.peft.lora.LowRank'}],
    [{'class': 'prompt_tuning.peft.nowhere.LoRA'}],
    [{'class': 'prompt_tuning.peft.lora.LoRA', 'size': 3}],
    [{'class': 'prompt_tuning.peft.lora.LoRA', 'rank': 'x'}],
    [{'class': 'prompt_tuning.peft.lora.LoRA', 'rank': 0}]])
def test_what_cannot_be_built_is_refused(words):
  with pytest.raises(UserError):
    description.rebuild(words, 'file.safetensors')


def test_differences_are_those_that_shapes_do_not_show():
  assert description.differences([SoftPrompt(length=2)], [SoftPrompt(length=3)]) == []
  assert description.differences([PrefixTuning(stddev=1.0)], [PrefixTuning()]) == []
  (wrong,) = description.differences(
      [SoftPrompt(placement='suffix'), LoRA()], [SoftPrompt(), LoRA()])
  assert wrong == ("SoftPrompt.placement is 'prefix' in the file and 'suffix' in the "
                   'configuration')
