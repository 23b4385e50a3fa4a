"""Counts read from the text of compiled programs."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from prompt_tuning import partitioning
from prompt_tuning.training import hlo

TEXT = '''HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%product (p: f16[4,8], q: f16[8,2]) -> f16[4,2] {
  %p = f16[4,8]{1,0} parameter(0)
  %q = f16[8,2]{1,0} parameter(1)
  ROOT %dot.1 = f16[4,2]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (t: (s32[], f16[4,8], f16[8,2])) -> (s32[], f16[4,8], f16[8,2]) {
  %t = (s32[], f16[4,8]{1,0}, f16[8,2]{1,0}) parameter(0)
  %l = f16[4,8]{1,0} get-tuple-element(%t), index=1
  %r = f16[8,2]{1,0} get-tuple-element(%t), index=2
  %f = f16[4,2]{1,0} fusion(%l, %r), kind=kOutput, calls=%product
  %g = f16[4,2]{1,0} all-reduce(%f), replica_groups={{0,1}}, to_apply=%add
  ROOT %out = (s32[], f16[4,8]{1,0}, f16[8,2]{1,0}) tuple(%t, %l, %r)
}

%condition (t: (s32[], f16[4,8], f16[8,2])) -> pred[] {
  %t = (s32[], f16[4,8]{1,0}, f16[8,2]{1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (x: (s32[], f16[4,8], f16[8,2])) -> f32[6] {
  %x = (s32[], f16[4,8]{1,0}, f16[8,2]{1,0}) parameter(0)
  %w = (s32[], f16[4,8]{1,0}, f16[8,2]{1,0}) while(%x), condition=%condition, body=%body, LOOP
  %s = (f32[3]{0}, f32[6]{0}) all-gather-start(%y), dimensions={0}
  %e = f32[6]{0} all-gather-done(%s)
  ROOT %h = (f32[3]{0}, pred[5]{0}) all-reduce(%z, %u), replica_groups={{0,1}}, to_apply=%add
}
'''


@pytest.mark.parametrize('loop, trips, unknown', [
    ('backend_config={"known_trip_count":{"n":"24"}}', 24, 0), ('metadata={}', 1, 1)])
def test_counts(loop, trips, unknown):
  program = hlo.analyse(TEXT.replace('LOOP', loop))
  assert program.matmul_flops == trips * 2 * 4 * 2 * 8
  assert program.unknown_loops == unknown
  assert program.collectives == {
      'all-gather': hlo.Collective(count=1, size_bytes=24),
      'all-reduce': hlo.Collective(count=trips + 1, size_bytes=trips * 16 + 17)}


def test_of_a_compiled_program():
  mesh = partitioning.make_mesh(num_partitions=8)
  place = lambda shape, *axes: jax.ShapeDtypeStruct(  # noqa: E731
      shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

  @jax.jit
  def run(x, kernels):
    return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

  text = run.lower(place((4, 16)), place((5, 16, 16), None, 'model')).compile().as_text()
  program = hlo.analyse(text)
  assert program.matmul_flops == 5 * 2 * 4 * 16 * 16 / 8
  assert program.unknown_loops == 0
  assert program.collectives['all-reduce'].size_bytes == 5 * 4 * 16 * 4
