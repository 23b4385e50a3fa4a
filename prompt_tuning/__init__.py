"""Prompt tuning and its neighbours for frozen T5-family models, in JAX and Flax.

Names are imported when they are first used, so that `import prompt_tuning` stays quick.
"""

import importlib

from prompt_tuning.version import __version__

_HOMES = {
    'prompt_tuning.errors': ('UserError',),
    'prompt_tuning.models.t5': ('T5', 'T5Config'),
    'prompt_tuning.peft.model': ('PeftModel', 'initialize', 'merge'),
    'prompt_tuning.peft.soft_prompt': ('SoftPrompt',),
    'prompt_tuning.peft.lora': ('LoRA',),
    'prompt_tuning.peft.prefix_tuning': ('PrefixTuning',),
    'prompt_tuning.peft.model_tuning': ('ModelTuning',),
    'prompt_tuning.peft.prompt_init': (
        'ClassLabels', 'FromArray', 'SampledVocab', 'Text', 'Uniform'),
    'prompt_tuning.checkpoints.restore': ('Backbone', 'load_backbone'),
    'prompt_tuning.checkpoints.peft_adapter': ('read_adapter', 'write_adapter'),
    'prompt_tuning.checkpoints.prompt_file': ('Prompt', 'load_prompt', 'save_prompt'),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ['__version__', *_HOME]


def __getattr__(name):
  if name not in _HOME:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(_HOME[name]), name)


def __dir__():
  return sorted(__all__)
