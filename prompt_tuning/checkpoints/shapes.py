"""The shape of a T5 model, read off the shapes of its arrays."""

import dataclasses
import re
from collections.abc import Mapping

from prompt_tuning.checkpoints import names
from prompt_tuning.errors import UserError
from prompt_tuning.models.t5 import T5Config

# What no array tells.
ASSUMED = ('mlp_activations', 'relative_attention_max_distance', 'layer_norm_epsilon')

# What must agree between a configuration and a file.
SHAPE_FIELDS = (
    'vocab_size', 'emb_dim', 'num_heads', 'head_dim', 'mlp_dim', 'num_encoder_layers',
    'num_decoder_layers', 'mlp_activations', 'logits_via_embedding',
    'relative_attention_num_buckets', 'relative_attention_max_distance',
    'relative_attention_per_layer', 'layer_norm_epsilon')
_SHOWN = 30  # layers, and digits of one, in a message
_MIN_BUCKETS = 4  # half of them look back, and of those at least one is exact


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]], source: str) -> T5Config:
  """Builds a configuration from {per-layer T5X path: shape}.

  The fields of `ASSUMED` take T5's defaults; one feed-forward branch is read as relu (T5 1.0), two
  as gated gelu (T5 1.1).

  Args:
    shapes: every parameter's shape.
    source: folder or file, for messages.

  Raises:
    UserError: the arrays are not those of a T5 encoder-decoder.
  """
  def shape(path, rank=2):
    if path not in shapes:
      raise UserError(f'{source} is no T5 encoder-decoder: it has no parameter {path!r}. It has, '
                      f'for example: {sorted(shapes)[:6]}.')
    if len(shapes[path]) != rank:
      raise UserError(f'{source}: {path} has shape {list(shapes[path])} where {rank} axes are '
                      'expected.')
    if 0 in shapes[path]:
      raise UserError(f'{source}: {path} has shape {list(shapes[path])}: it holds no number.')
    return shapes[path]

  if not any(path.startswith('encoder/') for path in shapes) and any(
      path.startswith('decoder/') for path in shapes):
    raise UserError(f'{source} is a decoder-only model: it has no parameter encoder/.... Give a '
                    'T5 encoder-decoder.')
  vocab_size, emb_dim = shape(names.EMBEDDING)
  per_layer = _bias_per_layer(shapes, source)
  layer = '/layers_0' if per_layer else ''
  num_heads, buckets = shape(f'encoder{layer}/relpos_bias/rel_embedding')
  if buckets < _MIN_BUCKETS:
    raise UserError(f'{source}: the position bias has {buckets} buckets; at least {_MIN_BUCKETS} '
                    'are needed.')
  projected = shape('encoder/layers_0/attention/query/kernel')[1]
  if projected % num_heads:
    raise UserError(f'{source}: {projected} columns of encoder/layers_0/attention/query/kernel '
                    f'cannot be shared by the {num_heads} heads of the position bias.')
  gated = 'encoder/layers_0/mlp/wi_0/kernel' in shapes
  mlp_dim = shape(f'encoder/layers_0/mlp/{"wi_0" if gated else "wi"}/kernel')[1]
  return T5Config(
      vocab_size=vocab_size, emb_dim=emb_dim, num_heads=num_heads,
      head_dim=projected // num_heads, mlp_dim=mlp_dim,
      num_encoder_layers=_depth(shapes, 'encoder', source),
      num_decoder_layers=_depth(shapes, 'decoder', source),
      mlp_activations=('gelu', 'linear') if gated else ('relu',),
      logits_via_embedding=names.HEAD not in shapes,
      relative_attention_num_buckets=buckets,
      relative_attention_per_layer=per_layer)


def _bias_per_layer(shapes, source) -> bool:
  """Whether every layer has its own position bias; a model has one kind of them in both stacks."""
  shared, own = ([stack for stack in ('encoder', 'decoder')
                  if f'{stack}{layer}/relpos_bias/rel_embedding' in shapes]
                 for layer in ('', '/layers_0'))
  if sorted(shared + own) != ['decoder', 'encoder'] or (shared and own):
    raise UserError(
        f'{source} is no T5 encoder-decoder: a position bias is expected in both stacks, either '
        'one that all layers share (relpos_bias/rel_embedding) or one a layer '
        f'(layers_0/relpos_bias/rel_embedding); shared ones are in {shared}, own ones in {own}.')
  return bool(own)


def _depth(shapes, stack, source):
  layers = {found.group(1) for path in shapes  # digits: a file may hold more than int() takes
            if (found := re.match(rf'{stack}/layers_(\d+)/', path))}
  if layers != set(map(str, range(len(layers)))) or not layers:
    some = sorted(layers, key=lambda digits: (len(digits), digits))[:_SHOWN]
    raise UserError(f'{source} holds {stack} layers [{", ".join(n[:_SHOWN] for n in some)}], not 0 '
                    'to n.')
  return len(layers)


def check_config(
    given: T5Config,
    found: T5Config,
    assumed: tuple[str, ...],
    source: str,
    remedy: str = 'Choose the models/*.gin of this checkpoint, or another checkpoint.',
):
  """Refuses a configuration that disagrees with a file.

  Args:
    given: what the user configured.
    found: what the file says.
    assumed: fields of `found` that the file does not really say.
    source: folder or file, for messages.
    remedy: what to do, for the message.

  Raises:
    UserError: naming each field with both values.
  """
  known = dataclasses.replace(found, **{field: getattr(given, field) for field in assumed
                                        if field != 'mlp_activations'})
  if 'mlp_activations' in assumed and len(given.mlp_activations) == len(known.mlp_activations):
    known = dataclasses.replace(known, mlp_activations=given.mlp_activations)
  wrong = [f'{field} is {getattr(given, field)} in the configuration and '
           f'{getattr(known, field)} in the file'
           for field in SHAPE_FIELDS if getattr(given, field) != getattr(known, field)]
  if wrong:
    raise UserError(f'The model configuration does not fit {source}: {"; ".join(wrong)}. '
                    f'{remedy}')
