"""Every alias of a parameter: T5X paths against the names of Hugging Face's T5.

Kernels have two axes in both: T5X and this package keep [in, out], torch keeps [out, in], so
kernels, the head and the position bias ([heads, buckets] against [buckets, heads]) are transposed;
norms and the embedding table are not.

Scanned T5X checkpoints name their layers once, `encoder/encoder/...` and `decoder/decoder/...`,
with the layers stacked on axis 1 and the heads not merged; `scanned` gives the names that one
layer has. In this package a scanned model is stacked on axis 0 under `layers` in memory only, and
every file is per layer.
"""

import re

from prompt_tuning.peft import prompt_init

EMBEDDING = 'token_embedder/embedding'
HEAD = 'decoder/logits_dense/kernel'
PROMPT = prompt_init.PROMPT_PATH

_ATTENTION = (('q', 'query'), ('k', 'key'), ('v', 'value'), ('o', 'out'))
_DENSE = ('wi', 'wi_0', 'wi_1', 'wo')

# Sub-layers in order: (Hugging Face's module, our module, our norm in front of it).
_SUBLAYERS = {
    'encoder': (('SelfAttention', 'attention', 'pre_attention_layer_norm'),
                ('DenseReluDense', 'mlp', 'pre_mlp_layer_norm')),
    'decoder': (('SelfAttention', 'self_attention', 'pre_self_attention_layer_norm'),
                ('EncDecAttention', 'encoder_decoder_attention', 'pre_cross_attention_layer_norm'),
                ('DenseReluDense', 'mlp', 'pre_mlp_layer_norm')),
}


def _table(bias_per_layer):
  """Yields (Hugging Face name, T5X path, transposed); `{i}` stands for the layer."""
  yield 'shared.weight', EMBEDDING, False
  yield 'lm_head.weight', HEAD, True
  for stack, sublayers in _SUBLAYERS.items():
    # T5 keeps the bias that a whole stack shares in its first block.
    block, layer = ('{i}', '/layers_{i}') if bias_per_layer else ('0', '')
    yield (f'{stack}.block.{block}.layer.0.SelfAttention.relative_attention_bias.weight',
           f'{stack}{layer}/relpos_bias/rel_embedding', True)
    yield f'{stack}.final_layer_norm.weight', f'{stack}/{stack}_norm/scale', False
    for number, (theirs, ours, norm) in enumerate(sublayers):
      block = f'{stack}.block.{{i}}.layer.{number}'
      yield f'{block}.layer_norm.weight', f'{stack}/layers_{{i}}/{norm}/scale', False
      pairs = [(n, n) for n in _DENSE] if ours == 'mlp' else _ATTENTION
      for their_leaf, our_leaf in pairs:
        yield (f'{block}.{theirs}.{their_leaf}.weight',
               f'{stack}/layers_{{i}}/{ours}/{our_leaf}/kernel', True)


_FROM_HF = {per_layer: {theirs: (ours, transposed)
                        for theirs, ours, transposed in _table(per_layer)}
            for per_layer in (False, True)}
_TO_HF = {ours: (theirs, transposed)
          for table in _FROM_HF.values() for theirs, (ours, transposed) in table.items()}

# Copies of the embedding table that older files hold beside `shared.weight`.
EMBEDDING_COPIES = ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')


# The stack of a scanned T5X model; the first such models called it `layers`.
_SCANNED = re.compile(r'(encoder|decoder)/(?:\1|layers)/(.+)')
_OLD_BIAS = 'relative_posemb/'  # and their position bias so


def scanned(path: str) -> tuple[str, str] | None:
  """(stack, path of one layer with `{i}` as its number) of a stacked array; None: it is none."""
  if (found := _SCANNED.fullmatch(path)) is None:
    return None
  stack, rest = found.groups()
  if rest.startswith(_OLD_BIAS):
    rest = 'relpos_bias/' + rest.removeprefix(_OLD_BIAS)
  return stack, f'{stack}/layers_{{i}}/{rest}'


def _look_up(table, name, layer):
  """Finds `name` in a table, as it stands or with the number that `layer` matches as `{i}`."""
  if name in table:
    return table[name]
  if (found := layer.search(name)) is None:
    return None
  general = f'{name[:found.start(1)]}{{i}}{name[found.end(1):]}'
  if general not in table:
    return None
  other, transposed = table[general]
  return other.replace('{i}', found.group(1)), transposed


def from_hf(name: str, bias_per_layer: bool = False) -> tuple[str, bool] | None:
  """Finds the T5X path of a Hugging Face parameter.

  Args:
    name: as in T5's, mT5's or UMT5's state_dict.
    bias_per_layer: whether every block has its own position bias, as in UMT5.

  Returns:
    (path, whether it is transposed), or None: not a parameter of that model.
  """
  if name in EMBEDDING_COPIES:
    return EMBEDDING, False
  return _look_up(_FROM_HF[bias_per_layer], name, re.compile(r'^\w+\.block\.(0|[1-9]\d*)\.'))


def to_hf(path: str) -> tuple[str, bool] | None:
  """Hugging Face name of a T5X path and whether it is transposed; None: not a T5 parameter.

  A position bias of a whole stack and one of the first layer have the same name there.
  """
  return _look_up(_TO_HF, path, re.compile(r'^\w+/layers_(0|[1-9]\d*)/'))
