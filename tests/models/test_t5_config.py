"""Configurations of T5 that are refused."""

import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.models.t5 import T5Config


@pytest.mark.parametrize('fields, words', [
    ({'mlp_activations': ('silu', 'linear')}, ('silu', "'relu'", "['gelu', 'linear']")),
    ({'mlp_activations': ()}, ('mlp_activations is []', "'relu'")),
    ({'remat_policy': 'some'}, ("'some'", "'minimal'")),
    ({'dtype': 'float16'}, ("'float16'", "'bfloat16'")),
    ({'dropout_rate': 1.0}, ('1.0', 'from 0 to below 1')),
])
def test_refused(fields, words):
  with pytest.raises(UserError) as error:
    T5Config(**fields)
  for word in (*fields, *words):
    assert word in str(error.value)
