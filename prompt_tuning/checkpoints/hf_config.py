"""config.json of Hugging Face's T5, mT5 and UMT5, as transformers 4 and 5 write and read it."""

import dataclasses
import math

from prompt_tuning.errors import UserError
from prompt_tuning.models.t5 import T5Config

# Model types and the feed_forward_proj that a configuration without one stands for.
TYPES = {'t5': 'relu', 'mt5': 'gated-gelu', 'umt5': 'gated-gelu'}
_CLASSES = {'t5': 'T5ForConditionalGeneration', 'umt5': 'UMT5ForConditionalGeneration'}
# Their activation functions that this package's models have, ours first. Their plain 'gelu' is the
# exact form, which no T5 was trained with; in 'gated-gelu' they read it as gelu_new.
_FUNCTIONS = {'relu': 'relu', 'gelu_new': 'gelu', 'gelu_pytorch_tanh': 'gelu', 'linear': 'linear'}
_GATED = 'gated-'
_FIELDS = {
    'vocab_size': 'vocab_size',
    'd_model': 'emb_dim',
    'd_kv': 'head_dim',
    'd_ff': 'mlp_dim',
    'num_layers': 'num_encoder_layers',
    'num_decoder_layers': 'num_decoder_layers',
    'num_heads': 'num_heads',
    'relative_attention_num_buckets': 'relative_attention_num_buckets',
    'relative_attention_max_distance': 'relative_attention_max_distance',
    'dropout_rate': 'dropout_rate',
    'layer_norm_epsilon': 'layer_norm_epsilon',
}
# What decides whether generation starts and ends as in training.
SPECIAL_IDS = {'pad_token_id': 0, 'eos_token_id': 1, 'decoder_start_token_id': 0}


def read(path, settings, found: T5Config) -> T5Config:
  """The configuration that config.json describes.

  Args:
    path: of the file, for messages.
    settings: its content; `model_type` is one of `TYPES`.
    found: what the arrays say, and T5's defaults: taken where the file is silent.

  Raises:
    UserError: a value that is no such number, or an activation that is not known.
  """
  given = {name: settings[name] for name in _FIELDS if settings.get(name) is not None}
  if 'num_layers' in given:
    given.setdefault('num_decoder_layers', given['num_layers'])
  for name, value in given.items():
    wanted = type(getattr(found, _FIELDS[name]))
    if type(value) not in (int, wanted) or not 0 <= value < math.inf:
      raise UserError(f'{path}: {name} is {value!r}; it must be a number, 0 or more.')
  fields = {_FIELDS[name]: value for name, value in given.items()}
  try:
    config = dataclasses.replace(found, **fields, mlp_activations=_activations(settings))
  except UserError as error:
    raise UserError(f'{path}: {error}') from None
  if config.relative_attention_max_distance <= config.relative_attention_num_buckets // 2:
    raise UserError(
        f'{path}: relative_attention_max_distance is {config.relative_attention_max_distance}; it '
        f'must exceed half of the {config.relative_attention_num_buckets} buckets.')
  return config


def _activations(settings) -> tuple[str, ...]:
  """The branches of the feed-forward block, from feed_forward_proj and what overrides it."""
  projection = settings.get('feed_forward_proj', TYPES[settings['model_type']])
  function = str(projection).removeprefix(_GATED)
  if projection == 'gated-gelu':
    function = 'gelu_new'
  function = settings.get('dense_act_fn', function)
  if not isinstance(function, str) or function not in _FUNCTIONS:
    raise UserError(f'The activation is {function!r} (feed_forward_proj is {projection!r})'
                    f"; known are {list(_FUNCTIONS)}, alone or gated, and 'gated-gelu'.")
  gated = settings.get('is_gated_act', str(projection).startswith(_GATED))
  return (_FUNCTIONS[function], 'linear') if gated else (_FUNCTIONS[function],)


def scales_logits(settings) -> bool:
  """Whether logits are scaled by H^-0.5.

  transformers 4 scales where tie_word_embeddings is set. transformers 5 ties every T5 and keeps
  the old meaning in scale_decoder_outputs; of UMT5 it scales all. mT5 never scales.
  """
  if settings['model_type'] == 'mt5':
    return False
  if 'scale_decoder_outputs' in settings:
    return bool(settings['scale_decoder_outputs'])
  return settings.get('tie_word_embeddings', True) is not False


def write(config: T5Config, dtype: str) -> dict:
  """config.json of a T5, in words that transformers 4 and 5 both understand.

  Args:
    config: the model's shape.
    dtype: of its parameters, 'float32' or 'bfloat16'.

  Raises:
    UserError: activations that transformers does not have.
  """
  model_type = 'umt5' if config.relative_attention_per_layer else 't5'
  return {
      'architectures': [_CLASSES[model_type]],
      'model_type': model_type,
      'is_encoder_decoder': True,
      **{theirs: getattr(config, ours) for theirs, ours in _FIELDS.items()},
      'feed_forward_proj': _projection(config.mlp_activations),
      'tie_word_embeddings': config.logits_via_embedding,
      'scale_decoder_outputs': config.logits_via_embedding or model_type == 'umt5',
      'initializer_factor': 1.0,
      'use_cache': True,
      'dtype': dtype,
      'torch_dtype': dtype,
      **SPECIAL_IDS,
  }


def _projection(activations) -> str:
  """Their feed_forward_proj for a model's activations."""
  function = {ours: theirs for theirs, ours in reversed(_FUNCTIONS.items())}[activations[0]]
  if len(activations) == 1:
    return function
  if activations[1:] != ('linear',):
    raise UserError(f'mlp_activations {list(activations)} have no counterpart in transformers, '
                    "where a gated block is an activation and 'linear'.")
  return 'gated-gelu' if function == 'gelu_new' else f'{_GATED}{function}'
