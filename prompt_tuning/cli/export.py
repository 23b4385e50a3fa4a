"""`prompt-tuning export`: the result of a run in a file or folder that others read."""

import dataclasses
import pathlib

import optax

from prompt_tuning import params as params_lib
from prompt_tuning.checkpoints import prompt_file, t5x_writer
from prompt_tuning.cli import config as config_lib
from prompt_tuning.cli import convert, past_run, process
from prompt_tuning.cli import data as data_lib
from prompt_tuning.cli import model as model_lib
from prompt_tuning.errors import UserError
from prompt_tuning.models import int8
from prompt_tuning.models.t5 import T5, T5Config
from prompt_tuning.peft import description
from prompt_tuning.peft import model as peft_model
from prompt_tuning.vocabulary import BYTES, ByteVocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
  """The run that is exported; see runs/export.gin.

  Attributes:
    model_dir: the run's folder.
    model: its base and methods.
    data: its task.
    optimizer: what it was trained with; a T5X checkpoint holds its state too.
  """

  model_dir: str
  model: model_lib.ModelConfig
  data: data_lib.DataConfig
  optimizer: optax.GradientTransformation | None = None


def main(flags):
  """Runs the verb."""
  if flags.input is not None:
    if flags.overrides or flags.gin_file:
      raise UserError('--input converts a file, and gin settings such as --gin.MODEL_DIR name a '
                      'run: give one of the two.')
    convert.main(flags)
    return
  process.start()
  _refuse_file_flags(flags)
  output = convert.check_output(flags.to, flags.output)
  past_run.parse(flags, reads_examples=False)
  config = config_lib.build(ExportConfig, flags.run_file)
  if flags.to in convert.LEAF_FORMATS:
    prompt = _prompt(config)
    # The base itself is not needed, only for peft its shape.
    shape = _architecture(config) if flags.to == 'peft' else None
    if flags.dry_run:
      convert.print_leaves(flags.to, prompt, shape)
    else:
      convert.write_leaves(flags.to, output, prompt, shape, config.model.checkpoint)
    return
  convert.check_merges(flags.to, config.model.methods)
  if flags.dry_run:
    convert.print_model(flags.to, _rows(config))
  else:
    export_model(config, flags.to, output)


def _refuse_file_flags(flags):
  for name, value in (('from', flags.source_format), ('base', flags.base),
                      ('vocabulary', flags.vocabulary), ('step', flags.step)):
    if value is not None:
      raise UserError(f'--{name} goes with --input=..., the file to convert; a run of MODEL_DIR '
                      'tells it itself.')


def _architecture(config) -> T5Config:
  return model_lib.module(config.model, config.data.task.labels).backbone.config


def _prompt(config: ExportConfig) -> prompt_file.Prompt:
  """The trained leaves of the best evaluation, with the settings of their methods."""
  source = pathlib.Path(config.model_dir) / past_run.PROMPT
  if not source.is_file():
    raise UserError(f'{config.model_dir} holds no {past_run.PROMPT}: the run has saved none yet, '
                    'or it trained the whole model (export that with --to=hf).')
  prompt = prompt_file.load_prompt(source)
  settings = description.metadata(config.model.methods)
  return dataclasses.replace(prompt, metadata={**settings, **prompt.metadata})


def export_model(config: ExportConfig, file_format: str, output: pathlib.Path):
  """Writes the whole model: methods merged into it, or (a prompt in T5X) beside it."""
  base = config.model
  if base.param_dtype == int8.INT8:  # what was trained on it is written with the base as it was
    base = dataclasses.replace(base, param_dtype='float32')
  model = model_lib.load(base, config.data.task.labels)
  trained = past_run.trained(model, config.model_dir, config.optimizer)
  vocabulary = model.vocabulary
  is_bytes = isinstance(vocabulary, ByteVocabulary)
  arrays = params_lib.flatten(params_lib.unstack_layers(trained.params))
  slots = None
  if trained.opt_state is not None and file_format == 't5x':
    slots = t5x_writer.adafactor_slots(trained.opt_state, model.split(trained.params)[0])
  convert.write_model(
      file_format, output, model.peft.backbone.config,
      convert.fit(file_format, model.peft.backbone.config, model.peft.methods, arrays),
      step=trained.step, optimizer_state=slots, vocabulary=BYTES if is_bytes else vocabulary.path,
      extra_ids=vocabulary.extra_ids)


def _rows(config: ExportConfig):
  """(path, where it comes from, shape) of every parameter, without reading any."""
  module = model_lib.module(config.model, config.data.task.labels)
  looped = dataclasses.replace(module.backbone.config, scan_layers=False)
  shapes = peft_model.abstract_params(
      peft_model.PeftModel(backbone=T5(config=looped), methods=module.methods))
  return [(path, config.model_dir if params_lib.matches(module.trainable, path)
           else config.model.checkpoint, shape)
          for path, shape in params_lib.flatten(shapes).items()]
