"""PeftModel: a backbone with methods applied; the only place that opens interceptors."""

import contextlib
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun

from prompt_tuning import params as trees
from prompt_tuning.errors import UserError
from prompt_tuning.models import int8
from prompt_tuning.models.layers import Attention
from prompt_tuning.peft.block_edges import BlockEdges
from prompt_tuning.peft.method import EncodeText, Method


class PeftModel(nn.Module):
  """A backbone that runs under parameter-efficient methods.

  It shares the backbone's scope, so every backbone parameter keeps its path and the methods'
  leaves stand beside them. Call signatures are the backbone's (see `models.t5.T5`), with the
  features that the methods ask for as further keyword arguments.

  Attributes:
    backbone: the Linen module, such as `T5(config)`.
    methods: applied in order; () is the bare backbone.
    edges: where activations lie on a mesh; None leaves it to the compiler.
  """

  backbone: nn.Module
  methods: tuple[Method, ...] = ()
  edges: BlockEdges | None = None

  def __post_init__(self):
    super().__post_init__()
    if self.scope is not None:
      nn.share_scope(self, self.backbone)

  @property
  def trainable(self) -> tuple[str, ...]:
    """Regular expressions over the paths that the methods train."""
    return tuple(pattern for method in self.methods for pattern in method.trainable)

  def __call__(self, *args, **kwargs):
    """Logits [B, L, V] of a batch, as `backbone.__call__`."""
    with self._intercepted(kwargs):
      return self.backbone(*args, **kwargs)

  def encode(self, *args, **kwargs):
    """Encoded inputs [B, S, H], as `backbone.encode`."""
    with self._intercepted(kwargs):
      return self.backbone.encode(*args, **kwargs)

  def decode(self, *args, **kwargs):
    """Logits given encoded inputs, as `backbone.decode`."""
    with self._intercepted(kwargs):
      return self.backbone.decode(*args, **kwargs)

  def init_cache(self, *args, **kwargs):
    """Creates the decoding cache, as `backbone.init_cache`."""
    with self._intercepted(kwargs):
      return self.backbone.init_cache(*args, **kwargs)

  def _intercepted(self, kwargs):
    """Opens the interceptors; takes what the methods ask for out of kwargs."""
    features = {name: kwargs.pop(name, None) for method in self.methods
                for name in method.features}
    methods = [functools.partial(method, **{name: features[name] for name in method.features})
               for method in self.methods]
    stack = contextlib.ExitStack()
    # The edges first, so that they see what the methods return.
    for interceptor in (*filter(None, (self.edges,)), *methods, self._keep_seams):
      stack.enter_context(nn.intercept_methods(interceptor))
    return stack

  @nn.nowrap
  def _keep_seams(self, next_fun, args, kwargs, context):
    """An interceptor: no attention takes a short cut past a module that a method changes."""
    module = context.module
    if isinstance(module, Attention) and context.method_name == 'skips_keys':
      seams = ['/'.join((*module.path, name)) for name in ('key', 'value', 'core')]
      if any(method.changes(seam) for method in self.methods for seam in seams):
        return False
    return next_fun(*args, **kwargs)


def init_params(model, rng):
  """Every parameter of a PeftModel or a bare backbone at its Flax initial value.

  To be traced (jit, eval_shape): alone it would run the whole model operation by operation.
  """
  tokens = jnp.ones((1, 8), jnp.int32)
  return model.init(rng, tokens, tokens, tokens)['params']


def abstract_params(model):
  """Shapes of every parameter of a model, without computing any.

  Args:
    model: a PeftModel, or a bare backbone.

  Returns:
    Nested dict of jax.ShapeDtypeStruct (float32).

  Raises:
    UserError: a method matches no module of the backbone, or names one layer of a scanned one;
      the message lists paths it could have matched.
  """
  shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
  _check_methods(model, list(trees.flatten(shapes)))
  return shapes


def _check_methods(model, paths):
  """Refuses a method that none of the parameters belongs to."""
  scanned = any('/layers/' in path for path in paths)
  for method in getattr(model, 'methods', ()):
    for pattern in method.trainable:
      if scanned and re.search(r'layers_[\[(\d]', pattern):
        raise UserError(
            f'{method} names single layers in {pattern!r}, but scan_layers stacks all layers. '
            r'Write layers(_\d+)? to mean every layer, or switch scan_layers off.')
      if not any(trees.matches((pattern,), path) for path in paths):
        raise UserError(
            f'{method} matches nothing in the backbone: no parameter is called {pattern!r}. '
            f'Patterns match a whole path; modules here are: {_module_paths(paths)}.')


def _module_paths(paths):
  """Module paths, those of one layer standing for all."""
  modules = {path.rpartition('/')[0] for path in paths}
  return sorted(m for m in modules if '/layers_' not in m or '/layers_0/' in m)


def initialize(model: PeftModel, rng, backbone_params, encode_text: EncodeText | None = None):
  """Adds the methods' leaves, at their initial values, to restored backbone parameters.

  Args:
    model: the PeftModel.
    rng: a jax.random key; every method draws from its own fold of it.
    backbone_params: nested dict with exactly the backbone's parameters, some perhaps in int8.
    encode_text: text -> token ids, for initialisation from labels or text.

  Returns:
    Nested dict with the backbone's arrays, untouched, and the methods' leaves (float32).

  Raises:
    ValueError: backbone_params lacks a parameter of the backbone, or has one too many.
    UserError: a method matches no module, or trains what is kept in int8.
  """
  have = trees.flatten(backbone_params)
  # Traced once, for the shapes and for the values of what is added.
  traced, shapes = jax.make_jaxpr(functools.partial(init_params, model), return_shape=True)(rng)
  paths = list(trees.flatten(shapes))
  _check_methods(model, paths)
  added = [path for path in paths if path not in have]
  own = [pattern for method in model.methods for pattern, _ in method.logical_axes]
  scales = {path for path in have if int8.is_scale(path, have)}
  missing = [path for path in added if not trees.matches(own, path)]
  too_many = sorted(have.keys() - scales - set(paths))
  if missing or too_many:
    raise ValueError(f'backbone parameters do not fit: missing {missing}, too many {too_many}')
  if scales:
    int8.check_frozen(backbone_params, model.trainable)
  if added:
    # Under jit only the asked-for leaves are computed: no second backbone is ever made.
    def draw(key):
      tree = jax.tree.unflatten(jax.tree.structure(shapes), jaxpr_as_fun(traced)(key))
      return {path: leaf for path, leaf in trees.flatten(tree).items() if path in added}
    have = {**have, **jax.jit(draw)(rng)}
  for i, method in enumerate(model.methods):
    values = method.initialize(jax.random.fold_in(rng, i), model.backbone, trees.unflatten(have),
                               encode_text)
    have = {**have, **values}
  return trees.unflatten(have)


def merge(model: PeftModel, params):
  """Backbone parameters that alone give the outputs of the model.

  Raises:
    NotImplementedError: a method that cannot be merged.
    UserError: parameters in int8, which would lose what is merged into them.
  """
  flat = trees.flatten(params)
  if any(int8.is_scale(path, flat) for path in flat):
    raise UserError('Methods cannot be merged into int8 parameters: load the base with '
                    "param_dtype='float32'.")
  for method in model.methods:
    params = method.merge(params)
  return params
