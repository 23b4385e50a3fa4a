"""The protocol of a parameter-efficient method.

A method is a frozen dataclass: hashable, so part of the jit key, and without arrays. It changes
the model at one of the backbone's seams through a Flax interceptor, names the leaves that it
trains, and sets their first values once the backbone's weights are there.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar

EncodeText = Callable[[str], Sequence[int]]  # text -> token ids, without EOS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(abc.ABC):
  """Base of all methods.

  Attributes:
    logical_axes: ordered (regex over the path, logical axis names) rules for the method's leaves
      as they stand per layer; a leading axis of stacked layers is added by whoever applies them.
    unseen: fields that change what trained leaves compute and that paths and shapes do not show;
      a prompt file is refused where they differ.
    features: names of arrays of a batch that the method asks for and the backbone does not know;
      PeftModel hands them to `__call__` by these names, None where a call has none.
  """

  logical_axes: ClassVar[tuple[tuple[str, tuple[str | None, ...]], ...]] = ()
  unseen: ClassVar[tuple[str, ...]] = ()
  features: ClassVar[tuple[str, ...]] = ()

  @property
  @abc.abstractmethod
  def trainable(self) -> tuple[str, ...]:
    """Regular expressions over whole parameter paths; each must match some parameter."""

  def __call__(self, next_fun, args, kwargs, context):
    """A Flax interceptor (see `flax.linen.intercept_methods`); by default changes nothing.

    Leaves may be created only while a compact method of the intercepted module runs.
    """
    return next_fun(*args, **kwargs)

  def changes(self, path: str) -> bool:
    """Whether the method may change what a module computes: True unless a method knows better.

    The backbone takes short cuts past modules that nobody changes, such as keys and values of a
    source that few queries ask; see `models.layers.Attention.skips_keys`.

    Args:
      path: the module's, such as 'decoder/layers_0/encoder_decoder_attention/key'.
    """
    return True

  def initialize(self, rng, backbone, params, encode_text: EncodeText | None):
    """First values of the method's leaves that need the restored backbone.

    Args:
      rng: key of this method alone.
      backbone: the Linen module of the backbone.
      params: nested dict of all parameters, the method's leaves at their Flax initial values.
      encode_text: text -> token ids; None where there is no vocabulary.

    Returns:
      {path: array} of the leaves to replace.
    """
    return {}

  def merge(self, params):
    """Folds the method into backbone kernels.

    Args:
      params: nested dict of all parameters.

    Returns:
      Nested dict without the method's leaves that gives the same outputs.

    Raises:
      NotImplementedError: the method cannot be expressed in the backbone's weights.
    """
    raise NotImplementedError(
        f'{type(self).__name__} cannot be merged into the weights of a backbone; '
        'save its own parameters instead')
