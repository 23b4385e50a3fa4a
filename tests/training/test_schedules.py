"""Schedules at hand-computed steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.training import schedules


@pytest.mark.parametrize('schedule, expected', [
    (schedules.constant(0.3), {0: 0.3, 10**6: 0.3}),
    (schedules.rsqrt_decay(1.0, 100), {0: 0.1, 100: 0.1, 400: 0.05, 10_000: 0.01}),
    (schedules.linear_decay(0.4, 10), {0: 0.4, 5: 0.2, 10: 0.0, 20: 0.0}),
    (schedules.linear_decay(0.4, 10, 0.1, start_step=100), {0: 0.4, 100: 0.4, 105: 0.25, 110: 0.1}),
    (schedules.cosine_decay(0.4, 10), {0: 0.4, 5: 0.2, 10: 0.0, 11: 0.0}),
    (schedules.cosine_decay(0.4, 10, 0.2, start_step=7), {7: 0.4, 12: 0.3, 17: 0.2}),
    (schedules.linear_warmup(0.3, 10), {0: 0.0, 1: 0.03, 10: 0.3, 1000: 0.3}),
    (schedules.linear_warmup(0.3, 0), {0: 0.3}),
    (schedules.linear_warmup(schedules.rsqrt_decay(1.0, 100), 10), {5: 0.05, 100: 0.1, 400: 0.05}),
    (schedules.linear_warmup(schedules.linear_decay(0.4, 20, start_step=50), 10, start_step=50),
     {50: 0.0, 55: 0.15, 60: 0.2, 70: 0.0}),
    # Beyond 2^24 neighbouring steps are one float32.
    (schedules.linear_decay(1.0, 4, start_step=2**25), {2**25 + 1: 0.75, 2**25 + 3: 0.25}),
])
def test_values(schedule, expected):
  for step, value in expected.items():
    for given in (step, jnp.int32(step)):
      rate = jax.jit(schedule)(given)
      assert rate.dtype == jnp.float32
      np.testing.assert_allclose(rate, value, rtol=1e-6, atol=1e-7, err_msg=f'step {step}')
