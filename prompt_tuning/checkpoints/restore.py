"""From a folder of weights to parameters in memory, one array at a time and never silently.

`read_params` fills an expected tree from any backbone format and reports what was kept, new,
missing and unused; `load_backbone` needs nothing but the path.
"""

import dataclasses
import functools
import logging
import pathlib
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import params as params_lib
from prompt_tuning.checkpoints import hf, t5x
from prompt_tuning.checkpoints import shapes as shapes_lib
from prompt_tuning.checkpoints.stored import StoredModel, empty, from_params, row_major
from prompt_tuning.errors import UserError
from prompt_tuning.models import int8
from prompt_tuning.models.t5 import T5, T5Config
from prompt_tuning.peft.model import abstract_params, init_params
from prompt_tuning.vocabulary import Vocabulary, load_vocabulary

RANDOM = 'random'
DEMO = 'demo'
PARAM_DTYPES = ('float32', 'bfloat16', int8.INT8)
_STACKED = re.compile(r'(^|/)layers/')
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backbone:
  """A pre-trained model, ready to be wrapped by `PeftModel`.

  Attributes:
    config: its shape and options.
    module: the Linen module of that config.
    params: its parameters, stacked under `layers` where the config scans; see models/int8.py for
      those in int8.
    vocabulary: the vocabulary beside the weights or the one that was asked for, or None.
    base_step: training step stored with the weights (T5X), else None.
    source: where it was read from.
    original: fingerprint of the parameters before they became int8; None: they did not.
  """

  config: T5Config
  module: T5
  params: dict
  vocabulary: Vocabulary | None = None
  base_step: int | None = None
  source: str = ''
  original: str | None = None

  @functools.cached_property
  def fingerprint(self) -> str:
    """`params.fingerprint` of the parameters, computed once."""
    return self.original or params_lib.fingerprint(self.params)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """What became of every parameter, by per-layer path.

  Attributes:
    kept: read from the file.
    new: expected, allowed to be absent, and absent: to be initialised.
    missing: expected and absent (only where missing parameters were not refused).
    unused: in the file and not expected.
  """

  kept: tuple[str, ...] = ()
  new: tuple[str, ...] = ()
  missing: tuple[str, ...] = ()
  unused: tuple[str, ...] = ()

  def __str__(self):
    parts = [f'{len(getattr(self, f.name))} {f.name}' for f in dataclasses.fields(self)]
    named = [f'{name}: {", ".join(_some(getattr(self, name)))}'
             for name in ('new', 'missing', 'unused') if getattr(self, name)]
    return '; '.join([', '.join(parts), *named])


def open_model(path, step: int | None = None) -> StoredModel:
  """Opens a backbone of any format without reading its arrays.

  Args:
    path: a T5X folder (or the file `checkpoint`), a Hugging Face folder, or 'demo'.
    step: which checkpoint_N of a T5X folder; None takes the latest.

  Raises:
    UserError: nothing there that can be read.
  """
  folder = demo_folder() if str(path) == DEMO else pathlib.Path(path)
  if t5x.is_checkpoint(folder):
    return t5x.open_checkpoint(folder, step)
  if step is not None:
    raise UserError(f'{folder} is no T5X checkpoint, so it has no step {step} to choose.')
  if hf.is_folder(folder):
    return hf.open_folder(folder)
  found = 'does not exist' if not folder.exists() else (
      f'holds {_some(sorted(p.name for p in folder.iterdir()))}' if folder.is_dir()
      else 'is a file')
  raise UserError(
      f'No model at {folder}, which {found}. Give a T5X checkpoint folder (with a file '
      '`checkpoint`, or with checkpoint_N folders), a Hugging Face folder (config.json and '
      "model.safetensors), 'demo', or 'random'.")


def demo_folder() -> pathlib.Path:
  """The bundled backbone."""
  return pathlib.Path(__file__).resolve().parent.parent / 'demo' / 'backbone'


def fingerprint(model: StoredModel) -> str:
  """`params.fingerprint` of a stored backbone, one parameter in memory at a time."""
  expected = params_lib.flatten(abstract_params(T5(config=model.config)))
  check(model, expected)
  return params_lib.fingerprint_leaves(
      (path, jnp.asarray(array.read('bfloat16')))
      for path, array in model.arrays.items() if path in expected)


def read_params(
    model,
    abstract,
    *,
    param_dtype: str | None = 'float32',
    optional: Sequence[str] = (),
    shardings: Mapping[str, jax.sharding.Sharding] | None = None,
    step: int | None = None,
):
  """Reads the parameters of an expected tree; each is cast and placed before the next is read.

  Args:
    model: a path as `open_model` takes it, or what it returned.
    abstract: nested dict of jax.ShapeDtypeStruct, looped or scanned; files are per layer either
      way.
    param_dtype: dtype of the backbone's parameters in memory, 'float32', 'bfloat16' or 'int8'
      (weights alone, with scales beside them); None keeps each leaf's dtype in `abstract`.
    optional: regular expressions of paths (as in `abstract`) that the file need not hold, such as
      a method's leaves; those keep the dtype of `abstract`.
    shardings: {path in the result: sharding}; None puts everything on the default device.
    step: see `open_model`.

  Returns:
    (the tree without what is new, Report).

  Raises:
    UserError: a parameter is missing or has another shape; both sides are named.
  """
  if not isinstance(model, StoredModel):
    model = open_model(model, step)
  if param_dtype not in (None, *PARAM_DTYPES):
    raise UserError(f'param_dtype is {param_dtype!r}; allowed: {list(PARAM_DTYPES)}.')
  expected = params_lib.flatten(abstract)
  layers = {path: params_lib.disk_paths(path, leaf.shape[0]) for path, leaf in expected.items()}
  report = check(model, expected, optional)
  flat = {}
  # In the file's order: layers that lie in one array are cheap to read one after another.
  order = {name: place for place, name in enumerate(model.arrays)}
  for path in sorted(expected, key=lambda p: order.get(layers[p][0], -1)):
    if layers[path][0] in report.new:
      continue
    leaf = expected[path]
    if param_dtype is None or params_lib.matches(optional, path):
      read = {path: _read(model, layers[path], leaf, np.dtype(leaf.dtype))}
    elif param_dtype != int8.INT8:
      read = {path: _read(model, layers[path], leaf, np.dtype(param_dtype))}
    elif int8.is_quantizable(path):
      read = _read_int8(model, layers[path], path, leaf)
    else:
      read = {path: _read(model, layers[path], leaf, np.dtype(np.float32))}
    for name, host in read.items():
      flat[name] = _place(host, shardings[name] if shardings is not None else None)
  _log.log(logging.WARNING if report.unused else logging.INFO, '%s: %s', model.source, report)
  return params_lib.unflatten(flat), report


def check(model: StoredModel, expected: Mapping, optional: Sequence[str] = ()) -> Report:
  """Sets a stored model against the parameters that are expected, without reading any.

  Args:
    model: what `open_model` returned.
    expected: {path: jax.ShapeDtypeStruct}, looped or scanned.
    optional: see `read_params`.

  Returns:
    What becomes of every parameter.

  Raises:
    UserError: a parameter is missing or has another shape; both sides are named.
  """
  kept, new, missing, wrong = [], [], [], []
  for path, leaf in expected.items():
    names = params_lib.disk_paths(path, leaf.shape[0])
    shape = tuple(leaf.shape[1:] if _STACKED.search(path) else leaf.shape)
    absent = [name for name in names if name not in model.arrays]
    if len(absent) == len(names) and params_lib.matches(optional, path):
      new += names
      continue
    missing += absent
    kept += [name for name in names if name in model.arrays]
    wrong += [f'{name} is {list(model.arrays[name].shape)} in the file and {list(shape)} in the '
              'model' for name in names
              if name in model.arrays and model.arrays[name].shape != shape]
  if missing:
    raise UserError(f'{model.source} does not hold {len(missing)} parameters of the model: '
                    f'{", ".join(_some(missing))}. It holds, for example: '
                    f'{", ".join(_some(sorted(model.arrays)))}. Choose the model configuration '
                    'of this checkpoint, or another checkpoint.')
  if wrong:
    raise UserError(f'{model.source}: {"; ".join(_some(wrong))}. Choose the model configuration '
                    'of this checkpoint, or another checkpoint.')
  known = set(kept) | set(new)
  unused = [name for name in model.arrays if name not in known]
  return Report(kept=tuple(kept), new=tuple(new), unused=tuple(unused))


def _read(model, names, leaf, dtype) -> np.ndarray:
  """One parameter on the host; the layers of a stacked one are read into their place."""
  if len(leaf.shape) == len(model.arrays[names[0]].shape):
    return model.arrays[names[0]].read(dtype)
  stacked = empty(leaf.shape, dtype)
  for i, name in enumerate(names):
    stacked[i] = model.arrays[name].read(dtype)
  return stacked


def _read_int8(model, names, path, leaf):
  """One parameter and its scales on the host; a layer is quantised before the next is read."""
  read = {name: empty(shape.shape, shape.dtype)
          for name, shape in params_lib.flatten(int8.abstract({path: leaf})).items()}
  for i, name in enumerate(names):
    index = () if names == [path] else i
    array = row_major(model.arrays[name].read(np.float32))
    read[path][index], read[path + int8.SCALE][index] = int8.quantize(path, array)
  return read


def _summing(model: StoredModel, sums: dict) -> StoredModel:
  """The same model; what is read of it leaves its share of the fingerprint in `sums`."""
  def watched(name, array):
    def reader(dtype):
      read = array.read(dtype)
      sums.update(jax.block_until_ready(params_lib.layer_sums(name, jnp.asarray(read))))
      return read
    return dataclasses.replace(array, reader=reader)
  return dataclasses.replace(
      model, arrays={name: watched(name, array) for name, array in model.arrays.items()})


def _place(host, sharding):
  if sharding is None:
    return jax.device_put(host)  # a view of it on a CPU, where its alignment allows that
  if sharding.is_fully_replicated:
    host = row_major(host)  # else every device of a CPU would have to copy it
  return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _some(items, most=6):
  """The first few of a list, and how many more there are."""
  items = list(items)
  return items[:most] + ([f'and {len(items) - most} more'] if len(items) > most else [])


def load_backbone(
    path,
    *,
    config: T5Config | None = None,
    dtype: str | None = None,
    param_dtype: str = 'float32',
    scan_layers: bool | None = None,
    vocabulary: Vocabulary | str | None = None,
    step: int | None = None,
    shardings: Mapping[str, jax.sharding.Sharding] | None = None,
    seed: int = 0,
) -> Backbone:
  """Loads a pre-trained model; its shape comes from the files.

  Args:
    path: a T5X checkpoint (checkpoint_N folder, its parent, or the file `checkpoint`), a Hugging
      Face folder, 'demo' (the bundled backbone), or 'random' (needs `config`).
    config: the shape that is expected and the options to run with; refused if the files disagree.
      None takes the shape from the files and the defaults for the rest.
    dtype: activations, 'float32' or 'bfloat16'; None keeps the config's.
    param_dtype: parameters in memory, 'float32', 'bfloat16' or 'int8'; see `read_params`.
    scan_layers: stack the layers in memory; None keeps the config's.
    vocabulary: a vocabulary, a SentencePiece file or 'bytes'; None takes the one in the folder.
    step: which checkpoint_N of a T5X folder; None takes the latest.
    shardings: see `read_params`.
    seed: of a random model.

  Returns:
    The backbone. `base_step` is the step of a T5X checkpoint.

  Raises:
    UserError: no such model, a damaged file, or a config that does not fit it.
  """
  options = {'dtype': dtype, 'scan_layers': scan_layers}
  options = {name: value for name, value in options.items() if value is not None}
  if str(path) == RANDOM:
    if config is None:
      raise UserError("A 'random' model needs a configuration of its shape: give a models/*.gin, "
                      'or config=T5Config(...).')
    return _random_backbone(dataclasses.replace(config, **options), param_dtype, vocabulary,
                            shardings, seed)
  model = open_model(path, step)
  if config is None:
    _log.info('%s: shape read off the files: %s; not told by them and taken from T5: %s',
              model.source, model.config, ', '.join(model.assumed) or 'nothing')
  else:
    shapes_lib.check_config(config, model.config, model.assumed, model.source)
  config = dataclasses.replace(config or model.config, **options)
  params, original = _read_backbone(model, config, param_dtype, shardings)
  return Backbone(config=config, module=T5(config=config), params=params, base_step=model.step,
                  vocabulary=open_vocabulary(vocabulary, model, config), source=model.source,
                  original=original)


def _random_backbone(config, param_dtype, vocabulary, shardings, seed):
  module, original = T5(config=config), None
  if param_dtype == int8.INT8:  # made in float32, and read as from a file
    arrays = from_params(random_params(module, seed))
    params, original = _read_backbone(StoredModel(source=RANDOM, arrays=arrays, config=config),
                                      config, param_dtype, shardings)
  else:
    params = random_params(module, seed, param_dtype, shardings)
  return Backbone(config=config, module=module, source=RANDOM, params=params, original=original,
                  vocabulary=open_vocabulary(vocabulary, None, config))


def _read_backbone(model, config, param_dtype, shardings):
  """(parameters, fingerprint of what they were where they are int8 now, else None)."""
  sums = {}
  if param_dtype == int8.INT8:
    model = _summing(model, sums)
  params, _ = read_params(model, abstract_backbone(config), param_dtype=param_dtype,
                          shardings=shardings)
  return params, params_lib.fingerprint_of(sums) if sums else None


def abstract_backbone(config: T5Config):
  """Shapes of the parameters of a T5; one layer is traced, however many there are."""
  scanned = abstract_params(T5(config=dataclasses.replace(config, scan_layers=True)))
  if config.scan_layers:
    return scanned
  flat = {}
  for path, leaf in params_lib.flatten(scanned).items():
    names = params_lib.disk_paths(path, leaf.shape[0])
    shape = leaf.shape if names == [path] else leaf.shape[1:]
    flat.update(dict.fromkeys(names, jax.ShapeDtypeStruct(shape, leaf.dtype)))
  return params_lib.unflatten(flat)


def random_params(module, seed: int = 0, param_dtype: str = 'float32', shardings=None):
  """Freshly initialised parameters, loudly: prompts on them are good for tests alone.

  Args:
    module: the backbone.
    seed: equal seeds give equal parameters.
    param_dtype: 'float32' or 'bfloat16'.
    shardings: {path: sharding}; None puts everything on the default device.
  """
  _log.warning("The backbone is RANDOM (INITIAL_CHECKPOINT_PATH = 'random', seed %d): nothing "
               'was loaded. This is for tests and benchmarks; results mean nothing.', seed)
  out = None
  if shardings is not None:
    out = params_lib.unflatten(shardings)

  def make():
    return params_lib.cast(init_params(module, jax.random.key(seed)), param_dtype)

  return jax.jit(make, out_shardings=out)()


def open_vocabulary(given, model: StoredModel | None, config: T5Config) -> Vocabulary | None:
  """The vocabulary that was asked for, else the one beside the weights.

  Args:
    given: a vocabulary, a SentencePiece file, 'bytes' or None.
    model: whose folder may hold one.
    config: of the model.

  Raises:
    UserError: no such file, or more ids than the model has embeddings.
  """
  if isinstance(given, Vocabulary):
    vocabulary = given
  elif given is not None:
    vocabulary = load_vocabulary(given)
  elif model is not None and model.vocabulary is not None:
    vocabulary = load_vocabulary(model.vocabulary, model.extra_ids)
  else:
    return None
  if vocabulary.vocab_size > config.vocab_size:
    raise UserError(f'The vocabulary has {vocabulary.vocab_size} ids and the model '
                    f'{config.vocab_size} embeddings. Give the vocabulary of this model.')
  return vocabulary
