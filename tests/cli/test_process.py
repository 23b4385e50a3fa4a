"""Memory that one step leaves is there for the next."""

import subprocess
import sys
import textwrap

import pytest


def page_faults(prepare):
  """Page faults of the second to thirteenth run of a program with 16 MiB of temporaries or more."""
  program = textwrap.dedent(f'''
      import resource
      import jax
      import jax.numpy as jnp
      from prompt_tuning.cli import process

      {prepare}

      run = jax.jit(lambda x: jnp.cumsum(jnp.sort(x, axis=0), axis=1).max())
      x = jnp.ones((64, 65536))
      run(x).block_until_ready()
      before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
      for _ in range(12):  # a block or two still come in early on
        run(x).block_until_ready()
      print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
  ''')
  ended = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True,
                         check=True, env={'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': ':'.join(sys.path)})
  return int(ended.stdout)


@pytest.mark.skipif(sys.platform != 'linux', reason="needs glibc's malloc")
def test_temporaries_are_mapped_once():
  assert page_faults('process.keep_memory()') < page_faults('') / 4
