"""Checkpoints of a run: trainable parameters, optimizer state, rng, position of the data, history.

Never the frozen parameters, so a save is a few kilobytes over its arrays. Written by orbax in the
background; a step's folder gets its name only when it is whole.
"""

import contextlib
import dataclasses
import importlib.metadata
import logging
import math
import os
import pathlib
import platform
import re
import shutil
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning import processes, version
from prompt_tuning.errors import UserError

_ARRAYS, _RUN = 'arrays', 'run'
_REPLACED = 'replaced_'  # a step's folder while the step is written anew
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Restored:
  """A checkpoint in memory.

  Attributes:
    step: the step it was saved at.
    arrays: a tree like the one that was asked for.
    info: the JSON values saved beside it.
    versions: {library: version} that wrote it.
  """

  step: int
  arrays: Any
  info: dict
  versions: dict


class RunCheckpoints:
  """The checkpoints of one run, a folder a step.

  Example:
    with RunCheckpoints(folder, keep_last=2) as checkpoints:
      checkpoints.save(step, {'trainable': ..., 'opt_state': ..., 'rng': ...},
                       {'data_index': 32, 'history': [...]}, score=accuracy)
      restored = checkpoints.restore({'trainable': ..., 'opt_state': ..., 'rng': ...})
  """

  def __init__(self, directory, *, keep_last: int = 1, keep_best: int = 1,
               keep_every: int | None = None, maximize: bool = True, create: bool = True):
    """Opens a folder.

    Args:
      directory: the folder; nothing else should live in it.
      keep_last: how many of the newest to keep, at least 1.
      keep_best: how many with the best score to keep; the earlier one wins a tie.
      keep_every: keep every step that this number divides.
      maximize: whether a higher score is better.
      create: make the folder and clear away unfinished saves. False leaves the folder as it is,
        for reading the run of another process.

    Raises:
      UserError: a folder that cannot be made.
    """
    if keep_last < 1 or keep_best < 0 or (keep_every is not None and keep_every < 1):
      raise UserError(f'keep_last is {keep_last}, keep_best {keep_best}, keep_every {keep_every}; '
                      'allowed are at least 1, at least 0, and at least 1 or None.')
    self.directory = pathlib.Path(directory).absolute()
    self._keep_last, self._keep_best, self._keep_every = keep_last, keep_best, keep_every
    self._sign = 1 if maximize else -1
    self._writable = create
    try:
      if create:
        with processes.first_before_others('put back'):
          _put_back(self.directory)
      self._manager = _open_manager(self.directory, self._preserve, create)
    except OSError as error:
      raise UserError(f'Cannot use {self.directory} for checkpoints: {error}. Give a MODEL_DIR '
                      'that can be written.') from error
    self._scores = self._stored_scores()

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self.close()

  def all_steps(self) -> list[int]:
    """Steps that are kept, in order."""
    return sorted(self._manager.all_steps())

  def latest_step(self) -> int | None:
    """The newest step, None in a new folder."""
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """The kept step with the best score; None where none has a score."""
    ranked = self._ranked(self.all_steps())
    return ranked[0] if ranked else None

  def score(self, step: int) -> float | None:
    """The score a step was saved with."""
    return self._scores.get(step)

  def save(self, step: int, arrays, info: dict | None = None, *,
           score: float | None = None, replace: bool = False) -> bool:
    """Starts writing a checkpoint; the values are copied before this returns.

    Args:
      step: the step; one that is there already is left as it is, unless `replace`.
      arrays: tree of arrays and typed keys: trainable parameters, optimizer state, rng. optax's
        named tuples are fine.
      info: JSON values: position of the data, history of metrics, the run's configuration.
      score: what the best checkpoint is chosen by; NaN counts as none.
      replace: write a step that is there anew. The old one is only removed once the new one is
        whole, so this one save waits for the disk.

    Returns:
      Whether a save was started.

    Raises:
      UserError: this save cannot begin, or an earlier one failed, for example because the disk is
        full.
    """
    step = int(step)
    self.wait()
    if not self.directory.is_dir():  # orbax would make it anew, with nothing else of the run in it
      raise self._failed(FileNotFoundError('the folder is gone'))
    there = step in self._manager.all_steps()
    if there and not replace:
      return False
    if there:
      with self._replaced(step):
        self._start(step, arrays, info, score)
        self.wait()
    else:
      self._start(step, arrays, info, score)
    return True

  def _start(self, step, arrays, info, score):
    import orbax.checkpoint as ocp
    if score is not None and not math.isnan(score):
      self._scores[step] = float(score)
    run = {'step': step, 'scores': {str(s): v for s, v in self._scores.items()},
           'info': info or {}, 'versions': versions()}
    args = ocp.args.Composite(**{_ARRAYS: ocp.args.PyTreeSave(_to_host(arrays)),
                                 _RUN: ocp.args.JsonSave(run)})
    try:
      self._manager.save(step, args=args, force=True)
    except Exception as error:  # as in `wait`
      raise self._failed(error) from error

  @contextlib.contextmanager
  def _replaced(self, step):
    """Keeps a step under another name until the block has written it anew."""
    folder = self.directory / str(step)
    kept = folder.with_name(f'{_REPLACED}{step}')
    with processes.first_before_others('replace'):
      if processes.is_first():
        folder.rename(kept)
    self._manager.reload()
    yield
    if processes.is_first():
      shutil.rmtree(kept)

  def restore(self, like, step: int | None = None, *, partial: bool = False) -> Restored:
    """Reads a checkpoint: values, dtypes and structure as they were saved.

    Args:
      like: tree of arrays (or jax.ShapeDtypeStruct, or typed keys) as it was given to `save`; each
        value is placed as its counterpart here.
      step: which; None takes the latest, and where that one is damaged the one before: loudly,
        and the damaged one is renamed so that the run can write its step anew.
      partial: `like` may leave out some of what was saved, such as the optimizer's state.

    Raises:
      UserError: no checkpoint, one that cannot be read, or another structure.
    """
    self.wait()
    steps = self.all_steps()
    if step is not None and step not in steps:
      raise UserError(f'{self.directory} holds no step {step}; it holds {steps or "none"}.')
    for candidate in ([step] if step is not None else reversed(steps)):
      try:
        return self._restore(like, candidate, partial)
      except UserError:
        raise
      except Exception as error:  # orbax and tensorstore raise many kinds for a damaged file
        if step is not None or candidate == steps[0]:
          raise UserError(f'{self.directory / str(candidate)} cannot be read: {error}. Delete it '
                          'to go on without it.') from error
        self._set_aside(candidate, error)
    raise UserError(f'{self.directory} holds no checkpoint.')

  def info(self, step: int | None = None) -> dict:
    """The JSON values of a step (None: the latest that can be read); empty where there is none.

    Raises:
      UserError: the step, or every step, cannot be read.
    """
    steps = self.all_steps()[::-1] if step is None else [step]
    for candidate in steps:
      try:
        return self._run(candidate)['info']
      except Exception as error:  # as in `restore`
        if candidate == steps[-1]:
          raise UserError(
              f'{self.directory / str(candidate)} cannot be read: {error}.') from error
        _log.warning('%s cannot be read: %s', self.directory / str(candidate), error)
    return {}

  def wait(self):
    """Blocks until what was started is on disk.

    Raises:
      UserError: it could not be written.
    """
    try:
      self._manager.wait_until_finished()
    except Exception as error:  # a full disk is an OSError of orbax or a ValueError of tensorstore
      raise self._failed(error) from error

  def close(self):
    """Waits, then frees the threads."""
    try:
      self.wait()
    finally:
      self._manager.close()

  def _set_aside(self, step, error):
    """Takes a damaged step out of the way: as the newest it would push out the whole ones."""
    folder = self.directory / str(step)
    _log.warning('%s cannot be read; going back to the one before: %s', folder, error)
    if self._writable:
      with processes.first_before_others('set aside'):
        if processes.is_first():
          folder.rename(folder.with_name(f'damaged_{step}_{time.time_ns()}'))
      self._manager.reload()
      self._scores.pop(step, None)

  def _failed(self, error) -> UserError:
    code = re.search(r"os_error_code='(\d+)'", str(error))
    reason = os.strerror(int(code.group(1))) if code else error
    return UserError(f'Saving to {self.directory} failed: {reason}. The checkpoints before it are '
                     'whole. Make room or mend the folder, then start the same command again.')

  def _ranked(self, steps) -> list[int]:
    """Steps with a score, best first, the earlier one first among equals."""
    scored = [step for step in steps if step in self._scores]
    return sorted(scored, key=lambda step: (-self._sign * self._scores[step], step))

  def _preserve(self, steps) -> list[bool]:
    """Which of the steps (ascending) to keep."""
    keep = {*steps[-self._keep_last:], *self._ranked(steps)[:self._keep_best]}
    return [step in keep or (self._keep_every is not None and step % self._keep_every == 0)
            for step in steps]

  def _stored_scores(self) -> dict[int, float]:
    """Scores of the kept steps, from the newest file that can be read."""
    for step in reversed(self.all_steps()):
      try:
        return {int(s): v for s, v in self._run(step)['scores'].items()}
      except Exception as error:  # as in `restore`: a damaged file must not stop the run
        _log.warning('The scores in %s cannot be read: %s', self.directory / str(step), error)
    return {}

  def _run(self, step) -> dict:
    import orbax.checkpoint as ocp
    return self._manager.restore(
        step, args=ocp.args.Composite(**{_RUN: ocp.args.JsonRestore()}))[_RUN]

  def _restore(self, like, step, partial) -> Restored:
    import orbax.checkpoint as ocp
    stored = self._manager.item_metadata(step)[_ARRAYS]
    stored = {path: (tuple(leaf.shape), str(np.dtype(leaf.dtype)))
              for path, leaf in stored.tree.items()}
    leaves, structure = jax.tree.flatten(like)
    expected = {path: _data(leaf) for path, leaf in _flatten(like).items()}
    saved = {path: leaf for path, leaf in expected.items() if leaf.size}
    _compare(self.directory / str(step), stored, saved, partial)
    wanted = {path: np.empty((), leaf.dtype) for path, leaf in saved.items()}
    restored = self._manager.restore(step, args=ocp.args.Composite(**{
        _ARRAYS: ocp.args.PyTreeRestore(
            item=wanted, partial_restore=True,
            restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)),
        _RUN: ocp.args.JsonRestore()}))
    values = [_place(restored[_ARRAYS][path] if path in saved else np.empty(data.shape, data.dtype),
                     leaf)
              for (path, data), leaf in zip(expected.items(), leaves, strict=True)]
    run = restored[_RUN]
    return Restored(step, jax.tree.unflatten(structure, values), run['info'],
                    run.get('versions', {}))


def _put_back(directory):
  """Undoes what a process that was killed while it replaced a step has left."""
  for kept in directory.glob(f'{_REPLACED}*'):
    step = directory / kept.name.removeprefix(_REPLACED)
    if step.exists():
      shutil.rmtree(kept)
    else:
      kept.rename(step)


def _open_manager(directory, preserve, create):
  """orbax's manager with one folder a step and our rule of what stays."""
  import orbax.checkpoint as ocp

  class Policy:
    def should_preserve(self, checkpoints, *, context):
      return preserve([checkpoint.step for checkpoint in checkpoints])

  registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
  # Named here so that a step can be read before one was saved.
  for name, handler, save, restore in (
      (_ARRAYS, ocp.PyTreeCheckpointHandler(), ocp.args.PyTreeSave, ocp.args.PyTreeRestore),
      (_RUN, ocp.JsonCheckpointHandler(), ocp.args.JsonSave, ocp.args.JsonRestore)):
    registry.add(name, save, handler)
    registry.add(name, restore, handler)
  options = ocp.CheckpointManagerOptions(
      create=create, cleanup_tmp_directories=create, save_root_metadata=False,
      preservation_policy=Policy(),
      # A folder that cannot be made is then an error here; made in the background, it leaves
      # threads that wait many minutes for it.
      async_options=ocp.AsyncOptions(create_directories_asynchronously=False))
  return ocp.CheckpointManager(directory, options=options, handler_registry=registry)


def _is_key(leaf) -> bool:
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _flatten(tree) -> dict[str, Any]:
  """{'/'-joined key path: leaf} of any tree; named tuples give their field names."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def _data(leaf):
  """Shape and dtype of a leaf on disk, where a typed key is its data."""
  if _is_key(leaf):
    return jax.eval_shape(jax.random.key_data, leaf)
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _to_host(tree) -> dict[str, np.ndarray]:
  """Copies, because the next step donates these very buffers while orbax still writes."""
  flat = processes.to_host({path: jax.random.key_data(leaf) if _is_key(leaf) else leaf
                            for path, leaf in _flatten(tree).items()})
  return {path: array for path, array in flat.items() if array.size}  # orbax refuses empty ones


def _compare(source, stored, like, partial):
  """Refuses a tree that differs from what was saved."""
  wrong = [f'{path} is not in it' for path in like if path not in stored]
  if not partial:
    wrong += [f'{path} is left over' for path in stored if path not in like]
  for path, leaf in like.items():
    if path not in stored:
      continue
    if stored[path] != (leaf.shape, str(leaf.dtype)):
      wrong.append(f'{path} is {stored[path][1]}{list(stored[path][0])} in it and '
                   f'{leaf.dtype}{list(leaf.shape)} in this run')
  if wrong:
    more = f'; and {len(wrong) - 4} more' if len(wrong) > 4 else ''
    raise UserError(f'{source} does not fit this run: {"; ".join(wrong[:4])}{more}. Continue with '
                    'the configuration that wrote it, or choose another MODEL_DIR.')


def _place(value, like):
  """A restored host array where its counterpart lies."""
  if isinstance(like, np.ndarray | np.generic):
    return value
  if _is_key(like):
    impl = []
    jax.eval_shape(lambda key: impl.append(jax.random.key_impl(key)), like)
    return jax.random.wrap_key_data(jnp.asarray(value), impl=impl[0])
  sharding = getattr(like, 'sharding', None)
  if sharding is None or not getattr(like, 'committed', True):
    return jnp.asarray(value)
  return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def versions() -> dict[str, str]:
  """{library: version} of what decides a run's numbers and the format of its checkpoints."""
  names = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'orbax-checkpoint', 'grain')
  return {'prompt_tuning': version.__version__, 'python': platform.python_version()} | {
      name: importlib.metadata.version(name) for name in names}
