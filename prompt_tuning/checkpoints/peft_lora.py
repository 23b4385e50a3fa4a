"""LoRA of Hugging Face PEFT: `<module>.lora_A.weight` [r, in] and `.lora_B.weight` [out, r].

torch keeps kernels as [out, in], so a = A^T and b = B^T. The tensors tell which modules are adapted
and with which rank; adapter_config.json tells the scale, and has to agree.
"""

import collections
import logging
import re
from collections.abc import Mapping, Sequence

import numpy as np

from prompt_tuning import params as params_lib
from prompt_tuning.checkpoints import names, peft_settings
from prompt_tuning.checkpoints.stored import StoredArray
from prompt_tuning.errors import UserError
from prompt_tuning.models.t5 import T5Config
from prompt_tuning.peft.lora import LoRA

PREFIX = 'base_model.model.'
_HEAD = 'lm_head'
_COPY_OF_HEAD = f'{PREFIX}{_HEAD}.base_layer.weight'
_STARTS = (None, True, False, 'gaussian', 'orthogonal', 'eva')
_VARIANTS = {
    'use_dora': 'DoRA scales each column of the kernel besides.',
    'lora_bias': 'a bias has no place in a T5.',
    'use_qalora': 'QALoRA pools the input of the update.',
    'use_bdlora': 'block-diagonal LoRA has factors of another shape.',
    'layer_replication': 'a model with replicated layers is another model.',
    'target_parameters': 'parameters outside of dense layers have no adapter here.',
    'trainable_token_indices': 'trained rows of the embedding table have no counterpart here.',
    'alora_invocation_tokens': 'an adapter that wakes up at a token has no counterpart here.',
    'arrow_config': 'a router over several adapters has no counterpart here.',
    'kasa_config': 'KaSA changes the base.',
    'velora_config': 'VeLoRA trains in another way.',
    'monteclora_config': 'sampled factors have no counterpart here.',
    'megatron_config': 'layers of Megatron have no counterpart here.',
}
_log = logging.getLogger(__name__)


def read(settings: peft_settings.Settings, arrays: Mapping[str, StoredArray], config: T5Config):
  """Reads a LoRA adapter.

  Args:
    settings: the adapter's configuration.
    arrays: its tensors by PEFT's names.
    config: of the base.

  Returns:
    (one LoRA for each pair of rank and alpha, {per-layer path: array}).

  Raises:
    UserError: a variant of LoRA, or tensors that fit neither the configuration nor the base.
  """
  _refuse_variants(settings)
  modules = _modules(config)
  pairs = _pairs(settings, arrays, modules)
  _check_targets(settings, pairs, modules)
  stabilized = settings.switch('use_rslora')
  common_rank, common_alpha = settings.integer('r', 8), settings.number('lora_alpha', 8)
  groups, leaves = collections.defaultdict(list), {}
  for name, (a, b) in pairs.items():
    path, inputs, outputs = modules[name]
    rank = _of_pattern(settings, 'rank_pattern', name, common_rank)
    alpha = _of_pattern(settings, 'alpha_pattern', name, common_alpha)
    for array, shape in ((a, (rank, inputs)), (b, (outputs, rank))):
      if array.shape != shape:
        raise UserError(f'{array.source} has shape {list(array.shape)}; rank {rank} and this base '
                        f'need {list(shape)}. Give the base that the adapter was made for.')
    groups[a.shape[0], float(alpha)].append(path)
    leaves[f'{path}/lora/a'], leaves[f'{path}/lora/b'] = a.read().T, b.read().T
  if _HEAD in pairs:
    _check_head(config, settings.path.parent)
  methods = tuple(
      LoRA(targets=_targets(paths, config), rank=rank, alpha=alpha, rank_stabilized=stabilized)
      for (rank, alpha), paths in groups.items())
  return methods, leaves


def _refuse_variants(settings):
  for name, why in _VARIANTS.items():
    settings.refuse(name, why)
  if settings.values.get('bias', 'none') not in ('none', 'lora_only'):  # a T5 has no dense biases
    raise settings.error('bias', "allowed are 'none' and 'lora_only': 'all' trains the position "
                         'bias of the base as well.')
  start = settings.values.get('init_lora_weights')
  if start not in _STARTS:
    raise settings.error('init_lora_weights', f'allowed are {list(_STARTS[1:])}: others change the '
                         'base or the training. Convert the adapter with PEFT: '
                         'save_pretrained(..., path_initial_model_for_weight_conversion=...).')


def _modules(config) -> dict[str, tuple[str, int, int]]:
  """{Hugging Face name: (module path, inputs, outputs)} of every dense layer."""
  joined = config.num_heads * config.head_dim
  branches = ['wi'] if len(config.mlp_activations) == 1 else ['wi_0', 'wi_1']
  attention = {**dict.fromkeys(('query', 'key', 'value'), (config.emb_dim, joined)),
               'out': (joined, config.emb_dim)}
  mlp = {**dict.fromkeys(branches, (config.emb_dim, config.mlp_dim)),
         'wo': (config.mlp_dim, config.emb_dim)}
  stacks = {'encoder': (config.num_encoder_layers, {'attention': attention, 'mlp': mlp}),
            'decoder': (config.num_decoder_layers, {
                'self_attention': attention, 'encoder_decoder_attention': attention, 'mlp': mlp})}
  paths = {f'{stack}/layers_{i}/{sublayer}/{leaf}': shape
           for stack, (depth, sublayers) in stacks.items() for i in range(depth)
           for sublayer, leaves in sublayers.items() for leaf, shape in leaves.items()}
  if not config.logits_via_embedding:
    paths[names.HEAD.removesuffix('/kernel')] = (config.emb_dim, config.vocab_size)
  return {names.to_hf(f'{path}/kernel')[0].removesuffix('.weight'): (path, *shape)
          for path, shape in paths.items()}


def _pairs(settings, arrays, modules) -> dict[str, tuple[StoredArray, StoredArray]]:
  """{Hugging Face module: (A, B)}; refuses any other tensor."""
  found = collections.defaultdict(dict)
  for key, array in arrays.items():
    parts = re.fullmatch(rf'{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight', key)
    if parts and parts[1] in modules:
      found[parts[1]][parts[2]] = array
    elif key == _COPY_OF_HEAD and _HEAD in modules:
      _log.info('%s: PEFT puts a copy of the head beside its adapter; that of the base is used.',
                array.source)
    elif key.startswith(f'{PREFIX}{_HEAD}.'):
      raise UserError(f'{array.source} adapts the head, which is the embedding table in this base: '
                      'a dense layer of its own is needed. Train without lm_head.')
    else:
      raise UserError(f'{array.source} belongs to no dense layer of this base (modules are, for '
                      f'example, {list(modules)[:2]}). Give the base that the adapter was made '
                      'for; nothing but lora_A and lora_B is read.')
  for name, pair in found.items():
    if missing := {'A', 'B'} - set(pair):
      raise UserError(f'{settings.path.parent} lacks {PREFIX}{name}.lora_{missing.pop()}.weight. '
                      'The file is incomplete: copy or download it again.')
  if not found:
    raise UserError(f'{settings.path.parent} holds no lora_A and lora_B at all.')
  return {name: (found[name]['A'], found[name]['B']) for name in modules if name in found}


def _check_targets(settings, pairs, modules):
  """Sets the tensors against the modules that the configuration names, where it can be read."""
  promised = _promised(settings, modules)
  if promised is None:
    _log.info('%s: target_modules is not followed; the tensors tell what is adapted.',
              settings.path)
  elif missing := sorted(promised - set(pairs)):
    raise UserError(f'{settings.path.parent} lacks {PREFIX}{missing[0]}.lora_A.weight, which '
                    'target_modules promises. The file is incomplete: copy or download it again.')
  elif extra := sorted(set(pairs) - promised):
    raise settings.error('target_modules', f'it does not name {extra[0]}, for which there are '
                         'tensors, and PEFT would leave them out. One of the two files is wrong.')


def _promised(settings, modules) -> set[str] | None:
  """Modules that PEFT would adapt; None: not known without running what should not be run."""
  targets = settings.values.get('target_modules')
  if settings.values.get('layers_pattern') or settings.values.get('exclude_modules'):
    return None
  if isinstance(targets, str) and targets.lower() == 'all-linear':
    return set(modules) - {_HEAD}
  if isinstance(targets, str):
    matches = peft_settings.matcher(targets)
    return None if matches is None else {name for name in modules if matches(name)}
  if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
    return None
  layers = settings.values.get('layers_to_transform')
  layers = layers if isinstance(layers, list) else [] if layers is None else [layers]
  found = set()
  for name in modules:
    block = re.search(r'\.block\.(\d+)\.', name)
    if any(name == target or name.endswith(f'.{target}') for target in targets):
      if not layers or (block and int(block[1]) in layers):
        found.add(name)
  return found


def _of_pattern(settings, field, name, default):
  """The value of the first expression that matches a module's name or the end of it."""
  for pattern, value in settings.numbers_by_pattern(field).items():
    matches = peft_settings.matcher(rf'(.*\.)?({pattern})')
    if matches is None:
      raise settings.error(field, f'{pattern!r} is no expression or one that could run for long. '
                           'Write the names of the modules.')
    if matches(name):
      return value
  return default


def _targets(paths: Sequence[str], config) -> tuple[str, ...]:
  """Expressions that match just these modules, without a layer's number where all layers are in."""
  depths = {'encoder': config.num_encoder_layers, 'decoder': config.num_decoder_layers}
  places = collections.defaultdict(list)  # (stack, sublayer, dense) -> layers
  targets = []
  for path in paths:
    if parts := re.fullmatch(r'(\w+)/layers_(\d+)/(\w+)/(\w+)', path):
      places[parts[1], parts[3], parts[4]].append(parts[2])
    else:
      targets.append(path)
  merged = collections.defaultdict(list)  # what stands before the dense layer's name -> names
  for (stack, sublayer, dense), layers in places.items():
    number = r'(_\d+)?' if len(layers) == depths[stack] else f'_({"|".join(layers)})'
    merged[f'{stack}/layers{number}/{sublayer}'].append(dense)
  return (*(f'{head}/({"|".join(dense)})' for head, dense in merged.items()), *targets)


def _check_head(config, source):
  """Refuses an adapter of the head where Hugging Face may scale logits, by release and file.

  T5X scales a tied head alone; the reader of a backbone multiplies other scales into the head's
  kernel, which an adapter beside it would not get.
  """
  if config.mlp_activations == ('relu',) or config.relative_attention_per_layer:
    raise UserError(f'{source} adapts lm_head of an untied T5 1.0 or a UMT5, whose logits '
                    'transformers may scale, so that equal results cannot be promised. Train or '
                    'write the adapter without lm_head.')


def write(methods: Sequence[LoRA], leaves: Mapping[str, np.ndarray], config: T5Config):
  """A LoRA adapter in PEFT's words.

  Args:
    methods: one LoRA or several.
    leaves: {per-layer path: array}, all of the methods' and nothing else.
    config: of the base.

  Returns:
    (fields of adapter_config.json, {PEFT's name: array}).

  Raises:
    UserError: a leaf is missing, left over or of another shape.
  """
  modules, adapted, tensors, left = _modules(config), {}, {}, dict(leaves)
  for name, (path, inputs, outputs) in modules.items():
    method = next((m for m in methods if params_lib.matches(m.targets, path)), None)
    if method is None:
      continue
    adapted[name] = method
    shapes = {'a': (inputs, method.rank), 'b': (method.rank, outputs)}
    for leaf, shape in shapes.items():
      array = left.pop(f'{path}/lora/{leaf}', None)
      if array is None or array.shape != shape:
        raise UserError(f'{path}/lora/{leaf} is {"absent" if array is None else list(array.shape)};'
                        f' {method} needs {list(shape)}. Give the leaves of these methods.')
      tensors[f'{PREFIX}{name}.lora_{leaf.upper()}.weight'] = np.asarray(array).T
  if left or not adapted:
    raise UserError(f'The leaves {sorted(left)[:3]} belong to no module of this base that '
                    f'{list(methods)} adapts. Give the leaves of these methods.')
  if _HEAD in adapted:
    _check_head(config, 'The adapter')
  return {'peft_type': peft_settings.LORA, **_scales(adapted), **_FIXED,
          'target_modules': _target_modules(adapted, modules)}, tensors


_FIXED = {
    'bias': 'none', 'exclude_modules': None, 'fan_in_fan_out': False, 'init_lora_weights': True,
    'layers_pattern': None, 'layers_to_transform': None, 'lora_bias': False, 'lora_dropout': 0.0,
    'modules_to_save': None, 'use_dora': False,
}


def _scales(adapted) -> dict:
  """Rank and alpha of the first module for all, and patterns for those that differ."""
  methods = list(adapted.values())
  stabilized = all(method.rank_stabilized for method in methods)

  def alpha(method):
    value = method.alpha if method.rank_stabilized == stabilized else method.scale * method.rank
    return int(value) if value == int(value) else value
  rank, common = methods[0].rank, alpha(methods[0])
  return {
      'r': rank, 'lora_alpha': common, 'use_rslora': stabilized,
      'rank_pattern': {name: m.rank for name, m in adapted.items() if m.rank != rank},
      'alpha_pattern': {name: alpha(m) for name, m in adapted.items() if alpha(m) != common},
  }


def _target_modules(adapted, modules) -> list[str]:
  """The last words of the modules' names where those say all, else whole names."""
  last = {name.rpartition('.')[2] for name in adapted}
  if {name for name in modules if name.rpartition('.')[2] in last} == set(adapted):
    return sorted(last)
  return list(adapted)
