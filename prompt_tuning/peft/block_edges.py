"""Where the residual stream lies at the edges of blocks, for a model on several devices.

With parameters split over both mesh axes the compiler may also split activations the wrong way: it
was seen to gather the whole batch on every device and split the embedding dimension instead. One
constraint an edge keeps rows on the data axis. The backbone knows no meshes, so it is set from
outside, by an interceptor as the methods are.
"""

import dataclasses

import jax
from jax.sharding import Mesh, NamedSharding

from prompt_tuning import partitioning
from prompt_tuning.models.t5 import Decoder, DecoderLayer, Encoder, EncoderLayer

_RESIDUAL_AXES = ('batch', 'length', 'residual')


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockEdges:
  """A Flax interceptor that constrains the rows [B, S, H] entering and leaving every block.

  The constraint holds for their gradients too. It changes no number, and needs no mesh context.

  Attributes:
    mesh: the mesh that the parameters lie on.
    rules: logical axis rules; 'batch', 'length' and 'residual' count.
  """

  mesh: Mesh
  rules: tuple = partitioning.LOGICAL_AXIS_RULES

  def __call__(self, next_fun, args, kwargs, context):
    out = next_fun(*args, **kwargs)
    module, name = context.module, context.method_name
    edge = (isinstance(module, EncoderLayer | DecoderLayer) and name == '__call__'
            or isinstance(module, Encoder | Decoder) and name == 'embed')
    return (self._constrain(out[0]), *out[1:]) if edge else out

  def _constrain(self, x):
    spec = partitioning.partition_spec(_RESIDUAL_AXES, x.shape, self.mesh, self.rules)
    return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))
