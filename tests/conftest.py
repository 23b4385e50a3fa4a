"""Settings every test runs under: 8 virtual CPU devices, strict dtype promotion."""

import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Tests compile far more than they run: LLVM's optimiser off halves their time.
os.environ['XLA_FLAGS'] = ' '.join((
    os.environ.get('XLA_FLAGS', ''), '--xla_force_host_platform_device_count=8',
    '--xla_backend_optimization_level=0')).strip()

import jax  # noqa: E402  (the flags above must be set before jax starts)
import pytest  # noqa: E402

jax.config.update('jax_numpy_dtype_promotion', 'strict')

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / 'shared'
GOLDEN = pathlib.Path(__file__).resolve().parent / 'golden' / 'data'


@pytest.fixture(scope='session')
def golden_dir():
  """Reference numbers that ship with the tests."""
  return GOLDEN


@pytest.fixture(scope='session')
def shared_dir():
  """Real data outside the project; tests that need it skip where it is absent."""
  if not SHARED.is_dir():
    pytest.skip(f'no folder {SHARED}: real data for this test is absent')
  return SHARED
