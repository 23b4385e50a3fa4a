"""Memory of activations in a training step, in closed form.

The count follows Korthikanti et al. 2022 ("Reducing activation recomputation in large transformer
models", section 4), done anew for T5 and for gradients that lead to a few parameters only: what
goes into a kernel is kept for the kernel's own gradient, so prompt tuning keeps none of it.

In the letters of the code: b rows of a device, s = T + P encoder rows, t target length, h emb_dim;
k = num_heads * head_dim, n = num_heads, f = mlp_dim and v = vocab_size are a device's shares, g the
branches of the gate, a bytes of an activation. An encoder layer keeps for the backward pass

  a b s (2 h + 3 k + g f)    what enters both norms; queries, keys and values; branches
  a b s (h + k + h + f)      what goes into kernels (qkv, out, wi, wo) that are trained
  (4 + a) b n s s            attention weights before and after dropout, the first in float32
  b s (2 h + f) + b n s s    dropout's masks, a byte each; scanned layers alone write them out

and a decoder layer the same with t for s, and its cross-attention: another h and 2 k a target row,
2 k an encoded row (n h a target row in their place where targets are few, see
Attention.skips_keys), weights of n t s. With remat 'minimal' the first line alone is kept, with
'full' the layer's input, a b s h; the rest is there for one layer at a time. A backward pass works
with a b s ((g + 1) f + 2 h) besides, and loss and logits with 8 b t v, in bfloat16 with the head in
float32 too, 4 h v. All that is kept counts at once, the largest workspace on top.
"""

import dataclasses
import re

_SIZES = {'float32': 4, 'bfloat16': 2}
_KERNEL = re.compile(r'/(query|key|value|out|wi|wo)(_\d+)?/')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
  """The batch of one device, and what its model's share is.

  Attributes:
    examples: rows that are worked through at once, b.
    inputs: encoder rows, those that methods add included, s.
    targets: target length, t.
    model: devices that share one copy of the model.
    split_residual: whether they share the rows between blocks too.
  """

  examples: int
  inputs: int
  targets: int
  model: int = 1
  split_residual: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Layer:
  """Bytes of one layer: in all, of matrix products, of its input; and its backward workspace."""

  whole: int
  products: int
  input: int
  backward: int

  def kept(self, remat):
    return {'none': self.whole, 'minimal': self.products, 'full': self.input}[remat]

  def working(self, remat, scan):
    if remat != 'none':
      return self.whole - self.products * (remat == 'minimal') + self.backward
    # A scanned layer stands beside the stack that it is then written into.
    return max(self.whole, self.backward) if scan else self.backward


def activation_bytes(config, rows: Rows, trained) -> int:
  """Activations of one device at the worst moment of a step.

  Args:
    config: T5Config.
    rows: the batch of a device.
    trained: '/'-joined paths of the trainable parameters.

  Returns:
    Bytes, those of gradients and of the optimizer not among them.
  """
  stacks = [(config.num_decoder_layers, _decoder_layer(config, rows, trained))]
  if any(not path.startswith('decoder/') for path in trained):
    stacks.append((config.num_encoder_layers, _encoder_layer(config, rows, trained)))
  kept = sum(depth * layer.kept(config.remat_policy) for depth, layer in stacks)
  working = [layer.working(config.remat_policy, config.scan_layers) for _, layer in stacks]
  vocab = _share(config.vocab_size, rows.model)
  working[0] += 8 * rows.examples * rows.targets * vocab
  if _SIZES[config.dtype] < 4:
    working[0] += 4 * config.emb_dim * vocab
  bias = 4 * _share(config.num_heads, rows.model) * (rows.inputs**2 + rows.targets**2)
  return kept + max(working) + bias


def gathered_bytes(config, model, itemsize) -> int:
  """Parameters that a device holds whole for a moment where copies of the model share them.

  A decoder layer's and those of one table of the vocabulary, found by comparison with the compiler.

  Args:
    config: T5Config.
    model: devices that share one copy of the model.
    itemsize: bytes of a parameter.
  """
  kernels = 8 * _share(config.num_heads * config.head_dim, model)
  kernels += (len(config.mlp_activations) + 1) * _share(config.mlp_dim, model)
  return itemsize * config.emb_dim * (kernels + _share(config.vocab_size, model))


def _encoder_layer(config, rows, trained):
  return _layer(config, rows, trained, 'encoder', rows.inputs)


def _decoder_layer(config, rows, trained):
  layer = _layer(config, rows, trained, 'decoder', rows.targets)
  a, h, k = _widths(config, rows)
  source = rows.inputs * 2 * k
  if config.attention('cross', False).skips_keys(rows.targets, (rows.inputs, config.emb_dim)) and (
      not any('encoder_decoder_attention' in path for path in trained)):
    source = rows.targets * _share(config.num_heads, rows.model) * config.emb_dim
  cross = a * rows.examples * (rows.targets * (h + 2 * k) + source)
  weights = _weights(config, rows, rows.targets * rows.inputs)
  return dataclasses.replace(layer, whole=layer.whole + cross + weights,
                             products=layer.products + cross)


def _layer(config, rows, trained, stack, length):
  """Self-attention and feed-forward over `length` rows."""
  a, h, k = _widths(config, rows)
  f, g = _share(config.mlp_dim, rows.model), len(config.mlp_activations)
  count = rows.examples * length
  products = a * count * (2 * h + 3 * k + g * f)
  masks = count * (2 * h + f) * _writes_masks(config)
  inputs = a * count * _trained_inputs(trained, stack, h, k, f)
  return _Layer(
      whole=products + masks + inputs + _weights(config, rows, length**2), products=products,
      input=a * count * h, backward=a * count * ((g + 1) * f + 2 * h))


def _widths(config, rows):
  """(a, h, k)."""
  residual = _share(config.emb_dim, rows.model if rows.split_residual else 1)
  return _SIZES[config.dtype], residual, _share(config.num_heads * config.head_dim, rows.model)


def _weights(config, rows, pairs):
  """Attention weights of `pairs` of rows: after softmax, as they are used, dropout's mask."""
  a = _SIZES[config.dtype]
  again = a if config.dropout_rate or a < 4 else 0
  entries = rows.examples * _share(config.num_heads, rows.model) * pairs
  return (4 + again + _writes_masks(config)) * entries


def _writes_masks(config):
  return int(config.dropout_rate > 0 and config.scan_layers)


def _trained_inputs(trained, stack, h, k, f):
  """Entries a row that are kept for the gradients of trained kernels."""
  kernels = {found[1] for path in trained
             if path.startswith(stack) and (found := _KERNEL.search(path))}
  return (h * bool(kernels & {'query', 'key', 'value'}) + k * ('out' in kernels)
          + h * ('wi' in kernels) + f * ('wo' in kernels))


def _share(size, devices):
  """A device's part of a dimension; the whole where it does not divide, as in partitioning."""
  return size if size % devices else size // devices
