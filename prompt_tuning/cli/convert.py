"""`prompt-tuning import`, and `export --input`: from one file format into another.

Two kinds of content: a model (t5x, hf), whose parameters stream from file to file one at a time,
and trained leaves (npy, safetensors, peft, and the prompt inside a T5X checkpoint). With --base
the leaves are compared with the model they belong to; a model format merges them into it.
"""

import collections
import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from prompt_tuning import params as params_lib
from prompt_tuning.checkpoints import (
  hf,
  names,
  peft_adapter,
  prompt_file,
  restore,
  t5x,
  t5x_writer,
)
from prompt_tuning.checkpoints.prompt_file import Prompt
from prompt_tuning.checkpoints.stored import StoredArray, StoredModel
from prompt_tuning.cli import process
from prompt_tuning.errors import UserError
from prompt_tuning.models.t5 import T5, T5Config
from prompt_tuning.peft import description
from prompt_tuning.peft.method import Method
from prompt_tuning.peft.model import PeftModel, abstract_params
from prompt_tuning.peft.model_tuning import ModelTuning
from prompt_tuning.peft.soft_prompt import SoftPrompt
from prompt_tuning.vocabulary import BYTES

log = logging.getLogger(__name__)

MODEL_FORMATS = ('t5x', 'hf')
LEAF_FORMATS = ('npy', 'safetensors', 'peft')
FORMATS = (*MODEL_FORMATS, *LEAF_FORMATS)


def main(flags):
  """Runs the verb."""
  process.start()
  output = check_output(flags.to, flags.output)
  source = check_source(flags.source_format, flags.input)
  _check_others(source, flags)
  if flags.base == '':
    raise UserError('--base= is empty. Give the folder of a model, or leave it out.')
  base = restore.open_model(flags.base) if flags.base else None
  if flags.to in LEAF_FORMATS:
    prompt = read_leaves(source, flags, base)
    if flags.dry_run:
      print_leaves(flags.to, prompt, base and base.config)
    else:
      write_leaves(flags.to, output, prompt, base and base.config, flags.base or '')
  else:
    model, prompt = _model_and_leaves(source, flags, base)
    if flags.to == 't5x':
      _refuse_existing(output / f'checkpoint_{model.step or 0}')
    if flags.dry_run:
      report = check_model(flags.to, model, prompt)
      print_model(flags.to, _rows(model, report, prompt))
      print(report)
    else:
      convert_model(flags.to, output, model, prompt, flags.vocabulary)


def check_output(file_format: str, path: str) -> pathlib.Path:
  """The output; refuses an unknown format, and a place that does not fit it or holds something."""
  if file_format not in FORMATS:
    raise UserError(f'--to={file_format}: allowed are {", ".join(FORMATS)}.')
  if not path or '://' in path:
    raise UserError(f'--output={path}: give a local path. What is for a bucket is copied there '
                    'afterwards.')
  output = pathlib.Path(path)
  if file_format in ('npy', 'safetensors') and output.suffix != f'.{file_format}':
    raise UserError(f'--output={output} does not end in .{file_format}, which --to asks for.')
  if file_format in ('hf', 'peft'):
    _refuse_existing(output)
  if file_format == 't5x' and output.exists() and not output.is_dir():
    raise UserError(f'--output={output} is a file; give the folder that checkpoint_N goes into.')
  return output


def _refuse_existing(folder):
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise UserError(f'--output: {folder} exists and is not empty: give a new folder.')


def check_source(given: str | None, path: str) -> str:
  """The format of what lies at `path`; refuses a --from that says otherwise."""
  if given not in (None, *FORMATS):
    raise UserError(f'--from={given}: allowed are {", ".join(FORMATS)}.')
  found = _detect(path)
  if given not in (None, found):
    raise UserError(f'--from={given} and --input={path} is {found}. Leave --from out, or give '
                    'another input.')
  return found


def _detect(path: str) -> str:
  if path == restore.DEMO:
    return 'hf'
  for file_format, is_one in (('t5x', t5x.is_checkpoint), ('peft', peft_adapter.is_adapter),
                              ('hf', hf.is_folder)):
    if is_one(path):
      return file_format
  if not path or not pathlib.Path(path).exists():
    raise UserError(f'--input={path} does not exist. Give a file or folder of one of the formats '
                    f'{", ".join(FORMATS)}.')
  return prompt_file.kind(path)


def _check_others(source, flags):
  """Refuses flags that contradict the input, and names those that change nothing."""
  if flags.step is not None and source != 't5x':
    raise UserError(f'--step={flags.step} chooses among the checkpoint_N of a T5X folder, and '
                    f'--input={flags.input} is {source}.')
  if flags.to in LEAF_FORMATS:
    idle = [] if flags.base else [
        name for name in ('vocabulary', 'allow_mismatch') if getattr(flags, name)]
  else:
    idle = ['base'] if flags.base and source in MODEL_FORMATS else []
  if idle:
    log.warning('Not used: --%s; %s.', ', --'.join(idle), 'without --base nothing is compared'
                if flags.to in LEAF_FORMATS else f'{flags.input} is a whole model')


def read_leaves(source: str, flags, base: StoredModel | None) -> Prompt:
  """Trained leaves of any format, checked against the base if there is one."""
  if source == 'hf':
    raise UserError(f'--input={flags.input} is a whole model, and --to={flags.to} takes trained '
                    f'leaves. Give --to={" or --to=".join(MODEL_FORMATS)}.')
  if source == 'peft':
    if base is None:
      raise UserError('An adapter folder does not tell all of its base: give --base=FOLDER of the '
                      'model it was trained on.')
    prompt = peft_adapter.read_adapter(flags.input, base.config)
  else:
    prompt = prompt_file.load_prompt(flags.input, flags.step)
  return prompt if base is None else _bound(prompt, base, flags)


def _bound(prompt: Prompt, base: StoredModel, flags) -> Prompt:
  """The leaves with the fingerprints of the base they were checked against."""
  facts = {'base_fingerprint': restore.fingerprint(base)}
  if vocabulary := restore.open_vocabulary(flags.vocabulary, base, base.config):
    facts['vocabulary_hash'] = vocabulary.hash
  prompt.check(emb_dim=base.config.emb_dim, allow_mismatch=flags.allow_mismatch, **facts)
  if 'methods' in prompt.metadata:  # of others the width is known, and was compared
    model = PeftModel(backbone=T5(config=base.config), methods=prompt.methods)
    try:
      prompt.fill(params_lib.split(abstract_params(model), model.trainable)[0])
    except UserError as error:
      raise UserError(f'--base={flags.base} is not the model of these leaves: {error}') from None
  return dataclasses.replace(prompt, metadata={**prompt.metadata, **facts})


def write_leaves(file_format: str, output: pathlib.Path, prompt: Prompt, config: T5Config | None,
                 base_name: str = ''):
  """Writes trained leaves as a file, or as an adapter folder for a base of shape `config`."""
  if file_format == 'peft':
    peft_adapter.write_adapter(output, prompt.methods, prompt.leaves, _known(config),
                               base_name=base_name)
  elif file_format == 'npy':
    prompt_file.save_prompt(output, prompt.array)
  else:
    methods = _described(prompt)
    prompt_file.save_prompt(output, params_lib.unflatten(prompt.leaves),
                            {**prompt.metadata, **methods})
  _log_size(output)


def _described(prompt) -> dict:
  """The methods' settings, where they can be told."""
  try:
    return description.metadata(prompt.methods)
  except UserError:
    return {}


def _known(config) -> T5Config:
  if config is None:
    raise UserError('An adapter folder names the shape of its base: give --base=FOLDER.')
  return config


def _model_and_leaves(source, flags, base):
  """(the model to write, the leaves that go with it or None)."""
  if source in MODEL_FORMATS:
    return restore.open_model(flags.input, flags.step), None
  if base is None:
    raise UserError(f'--to={flags.to} writes a whole model, and --input={flags.input} holds '
                    'trained leaves alone: give --base=FOLDER of their model.')
  return base, read_leaves(source, flags, base)


def convert_model(file_format: str, output: pathlib.Path, model: StoredModel,
                  prompt: Prompt | None, vocabulary: str | None):
  """Writes a stored model, with leaves merged into it or (a prompt in T5X) among it."""
  restore.open_vocabulary(vocabulary, model, model.config)  # one that does not fit is refused
  report = check_model(file_format, model, prompt)
  log.log(logging.WARNING if report.unused else logging.INFO, '%s: %s', model.source, report)
  kept = set(report.kept)
  # In the file's order: layers that lie in one array are cheap to read one after another.
  arrays = {path: array for path, array in model.arrays.items() if path in kept}
  if prompt is not None:
    arrays = fit(file_format, model.config, prompt.methods, {**arrays, **prompt.leaves})
  write_model(file_format, output, model.config, arrays, step=model.step or 0,
              optimizer_state=_slots(model) if prompt is None else None,
              vocabulary=vocabulary or model.vocabulary,
              extra_ids=None if vocabulary else model.extra_ids)


def _slots(model: StoredModel) -> dict[str, dict] | None:
  """{parameter: {slot: array}} of the optimizer's state in a T5X checkpoint, all of it or none."""
  slots = collections.defaultdict(dict)
  for path, array in model.optimizer_state.items():
    parameter, _, slot = path.rpartition('/')
    slots[parameter][slot] = array
  if others := [parameter for parameter in slots if parameter not in model.arrays]:
    log.warning("%s: the optimizer's state is left out, because it is that of stacked layers or of "
                'another optimizer than Adafactor (%s).', model.source, others[0])
    return None
  return slots


def check_model(file_format: str, model: StoredModel, prompt: Prompt | None) -> restore.Report:
  """What becomes of every parameter; a prompt that stands among them stays in T5X alone.

  Raises:
    UserError: a parameter is missing, or the methods of `prompt` cannot be merged.
  """
  if prompt is not None:
    check_merges(file_format, prompt.methods)
  expected = params_lib.flatten(abstract_params(T5(config=model.config)))
  if file_format == 't5x' and prompt is None and names.PROMPT in model.arrays:
    expected[names.PROMPT] = model.arrays[names.PROMPT]
  return restore.check(model, expected)


def fit(file_format: str, config: T5Config, methods: Sequence[Method], arrays: Mapping) -> dict:
  """{path: array} as a format can hold it: T5X a prompt as it is, all else merged.

  A weight is read and merged when it is written, so that there is one in memory at a time.

  Args:
    file_format: 't5x' or 'hf'.
    config: the model's shape.
    methods: whose leaves are among the arrays, and that `check_merges` let pass.
    arrays: {per-layer path: array or StoredArray}.
  """
  if _is_held(file_format, methods):
    return dict(arrays)
  looped = T5(config=dataclasses.replace(config, scan_layers=False))
  weights = params_lib.flatten(abstract_params(looped))
  leaves = {path: leaf for path, leaf in arrays.items() if path not in weights}
  return {path: _merged(methods, path, array, leaves)
          for path, array in arrays.items() if path in weights}


def _merged(methods, path, array, leaves):
  """A weight with what the methods added to its module; a merge touches nothing else."""
  module = path.rpartition('/')[0]
  own = {name: leaf for name, leaf in leaves.items() if name.startswith(f'{module}/')}
  if not own:
    return array

  def reader(dtype):
    weight = array.read() if isinstance(array, StoredArray) else np.asarray(array)
    params = params_lib.unflatten({path: weight, **own})
    for method in methods:
      params = method.merge(params)
    return np.asarray(params_lib.flatten(params)[path]).astype(dtype, copy=False)

  source = array.source if isinstance(array, StoredArray) else path
  return StoredArray(shape=tuple(array.shape), dtype=np.dtype(array.dtype), source=source,
                     reader=reader)


def _is_held(file_format, methods) -> bool:
  """Whether the format holds the leaves of these methods as they are."""
  return file_format == 't5x' and all(isinstance(m, SoftPrompt | ModelTuning) for m in methods)


def check_merges(file_format: str, methods: Sequence[Method]):
  """Refuses methods whose leaves the format neither holds nor can have merged into the weights."""
  for method in methods:
    if type(method).merge is Method.merge and not _is_held(file_format, methods):
      raise UserError(f'{type(method).__name__} cannot be merged into the weights of a model, '
                      f'all that --to={file_format} holds here: use --to=safetensors.')


def write_model(file_format: str, output: pathlib.Path, config: T5Config, arrays, *, step: int = 0,
                optimizer_state=None, vocabulary=None, extra_ids: int | None = None):
  """Writes {path: array} as a T5X checkpoint or a Hugging Face folder."""
  if file_format == 't5x':
    output = t5x_writer.write_checkpoint(output, arrays, step=step,
                                         optimizer_state=optimizer_state)
  else:
    hf.write_folder(output, config, arrays, vocabulary_file=vocabulary,
                    extra_ids=0 if vocabulary == BYTES else extra_ids)
  _log_size(output)


def _log_size(output: pathlib.Path):
  files = [output] if output.is_file() else [f for f in output.rglob('*') if f.is_file()]
  log.info('%s: %s bytes.', output, f'{sum(file.stat().st_size for file in files):,}')


def print_model(file_format: str, rows):
  """Dry run: every parameter with source, target, shape in the target and dtype.

  Args:
    file_format: 't5x' or 'hf'.
    rows: (path, source, array or jax.ShapeDtypeStruct) of every parameter.
  """
  _print_table([(path, source, *_target(file_format, path, array.shape), array.dtype)
                for path, source, array in rows])


def _rows(model: StoredModel, report, prompt: Prompt | None):
  leaves = {} if prompt is None else prompt.leaves
  return [*((path, model.arrays[path].source, model.arrays[path]) for path in report.kept),
          *((path, prompt.source, leaf) for path, leaf in leaves.items())]


def _target(file_format, path, shape):
  """(name, shape) of a parameter in the format that is written."""
  if file_format == 't5x':
    return f'target.{path.replace("/", ".")}', shape
  known = names.to_hf(path)
  if known is None:
    return 'merged', shape
  return known[0], shape[::-1] if known[1] else shape


def print_leaves(file_format: str, prompt: Prompt, config: T5Config | None):
  """Dry run: every leaf with source, target, shape and dtype."""
  if file_format == 'peft':
    tensors = peft_adapter.tensors(prompt.methods, prompt.leaves, _known(config))
    paths = ', '.join(prompt.leaves) if len(prompt.leaves) == 1 else 'see the methods'
    rows = [(paths, prompt.source, name, tensor.shape, tensor.dtype)
            for name, tensor in tensors.items()]
  else:
    leaves = {names.PROMPT: prompt.array} if file_format == 'npy' else prompt.leaves
    rows = [(path, prompt.source, path, leaf.shape, leaf.dtype) for path, leaf in leaves.items()]
  _print_table(rows)


def _print_table(rows):
  """Prints columns that are as wide as they need be: no terminal breaks a path in two."""
  header = ('parameter', 'source', 'target', 'shape', 'dtype')
  lines = [header, *((*words, str(list(shape)), str(dtype)) for *words, shape, dtype in rows)]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  print('Dry run: nothing is written.')
  for line in lines:
    print('  '.join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip())
