"""Prompt files: .npy, a plain [P, H] array, and .safetensors, with metadata.

.npy is what google-research/prompt-tuning writes and ships, also without a suffix
(numpy_checkpoints/checkpoint_N/encoder.prompt.prompt.prompt) and as bfloat16, which numpy calls V2.
.safetensors holds every trainable leaf of any method by its per-layer path, and says which base and
vocabulary it belongs to. Nothing is ever unpickled.
"""

import contextlib
import dataclasses
import json
import pathlib
import re
import tokenize
from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np

from prompt_tuning import params as params_lib
from prompt_tuning import version
from prompt_tuning.atomic_file import write_atomically
from prompt_tuning.checkpoints import hub_folder, names, safetensors_file, t5x
from prompt_tuning.errors import UserError
from prompt_tuning.peft import description
from prompt_tuning.peft.method import Method
from prompt_tuning.peft.soft_prompt import SoftPrompt

_WORDS = {'method', 'base_fingerprint', 'vocabulary_hash', 'task', 'library_version'}
_MAGIC = b'\x93NUMPY'
_HEADER = 10_000  # bytes; numpy's own limit
_FOREIGN = re.compile(r'prompt_embeddings|[^/]+\.[^/]+')  # of an adapter; of torch's modules


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
  """What a prompt file holds.

  Attributes:
    leaves: {per-layer path: array}; a soft prompt is the one leaf encoder/prompt/prompt/prompt.
    metadata: of .safetensors: method, methods (their settings), base_fingerprint,
      vocabulary_hash, length, task, metric, seed, library_version and what was added; empty for
      .npy.
    source: the file, for messages.

  Raises:
    UserError: leaves that cannot be trained ones (integers, NaN), or a soft prompt that is no
      [P, H] array.
  """

  leaves: dict[str, np.ndarray]
  metadata: dict
  source: str = ''

  def __post_init__(self):
    for path, leaf in self.leaves.items():
      floating = leaf.dtype == ml_dtypes.bfloat16 or np.issubdtype(leaf.dtype, np.floating)
      if not floating or not leaf.size or (path == names.PROMPT and leaf.ndim != 2):
        raise UserError(f'{self.source} holds {leaf.dtype}{list(leaf.shape)} as {path}; expected '
                        'are floating-point numbers, and a soft prompt is a [P, H] array of them, '
                        'each 1 or more.')
      if bad := leaf.size - np.count_nonzero(np.isfinite(leaf)):
        raise UserError(f'{self.source}: {bad} of the {leaf.size} numbers of {path} are NaN or '
                        'infinite: the run that wrote it had failed. Give an earlier prompt of it.')

  @property
  def array(self) -> np.ndarray:
    """The soft prompt, [P, H].

    Raises:
      UserError: the file holds something else than one soft prompt.
    """
    if set(self.leaves) != {names.PROMPT}:
      raise UserError(f'{self.source} holds no single soft prompt but {self.summary()}. Give a '
                      'prompt file, or the methods of the configuration that wrote this one.')
    return self.leaves[names.PROMPT]

  @property
  def length(self) -> int:
    """P, the rows of the soft prompt."""
    return self.array.shape[0]

  @property
  def methods(self) -> tuple[Method, ...]:
    """The methods that these leaves belong to.

    Raises:
      UserError: the file does not tell, as one of an earlier version.
    """
    if 'methods' in self.metadata:
      return description.rebuild(self.metadata['methods'], self.source)
    if set(self.leaves) == {names.PROMPT}:
      return (SoftPrompt(length=self.length),)
    raise UserError(f'{self.source} does not tell the settings of the methods it was made with: '
                    f'{self.summary()}. Export it from its run (--gin.MODEL_DIR=...).')

  def summary(self) -> str:
    paths = sorted(self.leaves)
    more = f' and {len(paths) - 3} more' if len(paths) > 3 else ''
    method = self.metadata.get('method')
    return f'{f"the leaves of {method}: " if method else ""}{", ".join(paths[:3])}{more}'

  def check(
      self, *, emb_dim: int | None = None, length: int | None = None,
      base_fingerprint: str | None = None, vocabulary_hash: str | None = None,
      methods: Sequence[Method] | None = None, allow_mismatch: bool = False,
  ):
    """Refuses a prompt that belongs elsewhere; None is not compared.

    Args:
      emb_dim: H of the model.
      length: P that is expected (PROMPT_LENGTH).
      base_fingerprint: of the backbone; compared if the file has one.
      vocabulary_hash: of the vocabulary; compared if the file has one.
      methods: that are configured; compared with the settings in the file, if it has them.
      allow_mismatch: accept another base fingerprint, and nothing else.

    Raises:
      UserError: naming both sides.
    """
    prompt = self.leaves.get(names.PROMPT)  # other methods' leaves are compared by `fill`
    if prompt is not None and emb_dim not in (None, prompt.shape[1]):
      raise UserError(f'{self.source} is a prompt of width {prompt.shape[1]} and the model has '
                      f'emb_dim {emb_dim}. Give a prompt made for this model.')
    if prompt is not None and length not in (None, prompt.shape[0]):
      raise UserError(f'{self.source} is a prompt of length {prompt.shape[0]} and PROMPT_LENGTH is '
                      f'{length}. Set PROMPT_LENGTH = {prompt.shape[0]}.')
    theirs = self.metadata.get('base_fingerprint')
    if base_fingerprint and theirs and theirs != base_fingerprint and not allow_mismatch:
      raise UserError(f'{self.source} was made for the base {theirs[:16]}... and this one is '
                      f'{base_fingerprint[:16]}.... Give its base, or '
                      '--gin.ALLOW_MISMATCH=True (import: --allow_mismatch) if this '
                      'base is meant.')
    theirs = self.metadata.get('vocabulary_hash')
    if vocabulary_hash and theirs and theirs != vocabulary_hash:
      raise UserError(f'{self.source} was made with the vocabulary {theirs[:16]}... and this one '
                      f'is {vocabulary_hash[:16]}.... Give the vocabulary it was made with.')
    if methods and 'methods' in self.metadata:
      if wrong := description.differences(methods, self.methods):
        raise UserError(f'{self.source}: {"; ".join(wrong)}. Set what the file has.')

  def fill(self, trainable):
    """The file's leaves as a tree like `trainable`, ready to take its place.

    Args:
      trainable: nested dict of arrays or jax.ShapeDtypeStruct, looped or scanned.

    Returns:
      A tree of the same structure, shapes and dtypes.

    Raises:
      UserError: a leaf is missing, left over or has another shape.
    """
    expected = params_lib.flatten(trainable)
    scanned = any(re.search(r'(^|/)layers/', path) for path in expected)
    found = self._stacked() if scanned else self.leaves
    wrong = [f'{path} is {_shape(found, path)} in the file and {_shape(expected, path)} in the '
             'model' for path in sorted({*expected, *found})
             if _shape(found, path) != _shape(expected, path)]
    if wrong:
      more = f'; and {len(wrong) - 4} more' if len(wrong) > 4 else ''
      raise UserError(f'{self.source} does not fit the model and its methods: '
                      f'{"; ".join(wrong[:4])}{more}. Give the model and the methods of this file.')
    return params_lib.unflatten({path: found[path].astype(leaf.dtype)
                                 for path, leaf in expected.items()})

  def _stacked(self):
    try:
      return params_lib.flatten(params_lib.stack_layers(params_lib.unflatten(self.leaves)))
    except ValueError as error:
      raise UserError(f'{self.source} does not fit a scanned model: {error}.') from error


def _shape(leaves, path) -> str:
  return str(list(leaves[path].shape)) if path in leaves else 'absent'


def load_prompt(path, step: int | None = None) -> Prompt:
  """Reads a prompt file; the kind is told by its content.

  Args:
    path: .safetensors, .npy, or a suffix-less file of numpy_checkpoints; also a folder that holds
      just one of them, such as numpy_checkpoints/checkpoint_N, or a T5X checkpoint with a prompt.
    step: which checkpoint_N of a T5X folder; None takes the latest.

  Returns:
    The prompt, with its dtype as stored.

  Raises:
    UserError: no such file, another format (a pickle is never opened), or a damaged file.
  """
  if t5x.is_checkpoint(path):
    return _from_t5x(path, step)
  path = _only_file(pathlib.Path(path))
  if kind(path) == 'npy':
    return Prompt({names.PROMPT: _load_npy(path)}, {}, str(path))
  stored, metadata = safetensors_file.read(path)
  if foreign := [name for name in stored if _FOREIGN.fullmatch(name)]:
    raise UserError(f'{path} names its tensors as Hugging Face and PEFT do ({foreign[0][:200]}): '
                    'it is one file of a folder. Give that folder, with its config.json or '
                    'adapter_config.json.')
  leaves = {name: array.read() for name, array in stored.items()}
  return Prompt(leaves, _decode(metadata), str(path))


def kind(path) -> str:
  """'npy' or 'safetensors', by the content of a prompt file (or of the one in a folder).

  Raises:
    UserError: no such file, or neither.
  """
  path = _only_file(pathlib.Path(path))
  try:
    with path.open('rb') as file:
      start = file.read(16)
  except OSError as error:
    raise UserError(f'Cannot read the prompt file {path}: {error}') from error
  if start.startswith(_MAGIC):
    return 'npy'
  if start[8:9] == b'{':
    return 'safetensors'
  raise UserError(f'{path} is neither .npy nor .safetensors. A pickle (.pt, .bin, .pkl) can run '
                  'code when it is opened and is never read: save the array with numpy.save.')


def _only_file(path):
  if not path.is_dir():
    return path
  files = [child for child in path.iterdir() if child.is_file()
           and (child.suffix in ('.npy', '.safetensors') or child.name.endswith('prompt'))]
  if len(files) != 1:
    raise UserError(f'{path} is a folder with {len(files)} prompt files; give one file. Here are: '
                    f'{sorted(child.name for child in path.iterdir())[:6]}.')
  return hub_folder.member(path, files[0].name)


def _load_npy(path) -> np.ndarray:
  try:
    with path.open('rb') as file:
      start = file.read(12)
    if len(start) < 12 or int.from_bytes(start[8:10 if start[6] == 1 else 12], 'little') > _HEADER:
      raise ValueError('its header is incomplete or too long.')  # numpy would take memory for it
    # Mapped first: a header that claims more than the file holds is refused before memory is
    # taken for it.
    with np.errstate(over='ignore'):
      array = np.array(np.load(path, mmap_mode='r', allow_pickle=False))
  except (ValueError, TypeError, OSError, EOFError, OverflowError, MemoryError, SyntaxError,
          tokenize.TokenError) as error:
    raise UserError(f'Cannot read the prompt file {path}: {error}') from error
  if array.dtype == np.dtype('V2'):
    array = array.view(ml_dtypes.bfloat16)
  return array


def _from_t5x(path, step) -> Prompt:
  """The prompt inside a T5X checkpoint of google-research/prompt-tuning."""
  model = t5x.open_checkpoint(path, step)
  if names.PROMPT not in model.arrays:
    others = [path for path in model.arrays if 'prompt' in path][:3]
    raise UserError(f'{model.source} holds a model without {names.PROMPT}, the one prompt that is '
                    f'read here{f"; it has {others}" if others else ""}. Give a prompt file.')
  return Prompt({names.PROMPT: model.arrays[names.PROMPT].read()}, {}, model.source)


def save_prompt(path, array, metadata: Mapping | None = None):
  """Writes a prompt file: there whole or not at all.

  Args:
    path: .npy (a [P, H] array alone) or .safetensors (any method, with metadata).
    array: [P, H], or a tree of trainable leaves, looped or scanned; written per layer.
    metadata: for .safetensors: method, methods, base_fingerprint, vocabulary_hash, task, metric,
      seed, ...; length and library_version are added.

  Raises:
    UserError: another suffix, or leaves that .npy cannot hold.
  """
  path = pathlib.Path(path)
  leaves = _leaves(array)
  prompt = leaves.get(names.PROMPT)
  if path.suffix == '.safetensors':
    known = {'method': 'soft_prompt'} if set(leaves) == {names.PROMPT} else {}
    length = {} if prompt is None else {'length': prompt.shape[0]}
    entries = {**known, **length, **(metadata or {}),
               'library_version': version.__version__}
    safetensors_file.write(path, leaves, {name: value if isinstance(value, str)
                                          else json.dumps(value)
                                          for name, value in entries.items()})
  elif path.suffix == '.npy' and set(leaves) == {names.PROMPT}:
    if prompt.dtype == ml_dtypes.bfloat16:  # numpy alone could not read it back
      prompt = prompt.astype(np.float32)
    write_atomically(path, lambda file: np.save(file, prompt, allow_pickle=False))
  elif path.suffix == '.npy':
    raise UserError(f'{path}: .npy holds one soft prompt, and these are {sorted(leaves)[:3]}. '
                    'Write .safetensors.')
  else:
    raise UserError(f'{path}: a prompt file ends in .safetensors or .npy.')


def _leaves(array) -> dict[str, np.ndarray]:
  """{per-layer path: host array}."""
  if isinstance(array, Mapping):
    flat = params_lib.flatten(params_lib.unstack_layers(array))
  else:
    flat = {names.PROMPT: array}
  leaves = {path: np.asarray(leaf) for path, leaf in flat.items()}
  if names.PROMPT in leaves and leaves[names.PROMPT].ndim != 2:
    raise UserError(f'A prompt is a [P, H] array; this one has shape '
                    f'{list(leaves[names.PROMPT].shape)}.')
  return leaves


def _decode(metadata) -> dict:
  """Numbers, lists and maps back from JSON; words stay words."""
  decoded = dict(metadata)
  for name in set(metadata) - _WORDS:
    with contextlib.suppress(ValueError, RecursionError):  # another tool's text
      decoded[name] = json.loads(metadata[name])
  return decoded
