"""`prompt-tuning export`: the result of a run in a file or folder that others read."""

import dataclasses
import logging
import pathlib

from prompt_tuning import params as params_lib
from prompt_tuning.checkpoints import hf, prompt_file
from prompt_tuning.cli import config as config_lib
from prompt_tuning.cli import data as data_lib
from prompt_tuning.cli import model as model_lib
from prompt_tuning.cli import past_run, process
from prompt_tuning.errors import UserError
from prompt_tuning.peft import model as peft_model
from prompt_tuning.vocabulary import BYTES, ByteVocabulary

log = logging.getLogger(__name__)

PROMPT_FORMATS = ('npy', 'safetensors')
MODEL_FORMATS = ('hf',)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
  """The run that is exported; see runs/export.gin."""

  model_dir: str
  model: model_lib.ModelConfig
  data: data_lib.DataConfig


def main(flags):
  """Runs the verb."""
  process.start()
  output = pathlib.Path(flags.output)
  _check_output(flags.to, output)
  past_run.parse(flags, reads_examples=False)
  config = config_lib.build(ExportConfig, flags.run_file)
  if flags.dry_run:
    print(f'Would write {output} ({flags.to}) from {config.model_dir}.')
  elif flags.to in PROMPT_FORMATS:
    export_prompt(config, flags.to, output)
  else:
    export_model(config, output)


def _check_output(file_format: str, output: pathlib.Path):
  formats = (*PROMPT_FORMATS, *MODEL_FORMATS)
  if file_format not in formats:
    raise UserError(f'--to={file_format}: allowed are {", ".join(formats)}.')
  if file_format in PROMPT_FORMATS and output.suffix != f'.{file_format}':
    raise UserError(f'--output={output} does not end in .{file_format}, which --to asks for.')
  if file_format in MODEL_FORMATS and output.exists() and (
      not output.is_dir() or any(output.iterdir())):
    raise UserError(f'--output={output} exists and is not empty: give a new folder.')


def export_prompt(config: ExportConfig, file_format: str, output: pathlib.Path):
  """Writes the trained leaves of the best evaluation; the base is not needed for it."""
  source = pathlib.Path(config.model_dir) / past_run.PROMPT
  if not source.is_file():
    raise UserError(f'{config.model_dir} holds no {past_run.PROMPT}: the run has saved none yet, '
                    'or it trained the whole model (export that with --to=hf).')
  prompt = prompt_file.load_prompt(source)
  leaves = prompt.array if file_format == 'npy' else params_lib.unflatten(prompt.leaves)
  prompt_file.save_prompt(output, leaves, prompt.metadata)
  log.info('%s: %s bytes.', output, f'{output.stat().st_size:,}')


def export_model(config: ExportConfig, output: pathlib.Path):
  """Writes the backbone with all methods merged into it as a Hugging Face folder."""
  model = model_lib.load(config.model, config.data.task.labels)
  params = past_run.trained_params(model, config.model_dir)
  try:
    merged = peft_model.merge(model.peft, params)
  except NotImplementedError as error:
    raise UserError(f'{error}: use --to=safetensors.') from None
  vocabulary = model.vocabulary
  is_bytes = isinstance(vocabulary, ByteVocabulary)
  hf.write_folder(output, model.peft.backbone.config, merged,
                  vocabulary_file=BYTES if is_bytes else vocabulary.path,
                  extra_ids=vocabulary.extra_ids)
  log.info('%s: %s bytes.', output,
           f'{sum(file.stat().st_size for file in output.iterdir()):,}')
