"""Several processes of one run: how they find each other, wait, agree, and who writes.

Every process runs the same program. What decides its course (a request to stop, the metrics that
patience looks at) is therefore agreed on; files are written by the first process alone.
"""

import collections
import contextlib
import json
import os
import threading
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prompt_tuning.errors import UserError

TIMEOUT = 300  # seconds in which all processes have to be there
SILENCE = 30  # seconds without a sign of life after which a process counts as dead

_ENVIRONMENT = {'coordinator_address': 'JAX_COORDINATOR_ADDRESS',
                'num_processes': 'JAX_NUM_PROCESSES', 'process_id': 'JAX_PROCESS_ID'}
# Launchers whose processes JAX finds by itself, and what says how many it has started.
_LAUNCHED = ('SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE')
_DELAY = 2  # steps between a question and its answer


def start(coordinator_address: str | None = None, num_processes: int | None = None,
          process_id: int | None = None, timeout: int = TIMEOUT):
  """Joins the processes of this run; does nothing where there is just one.

  What is not given is taken from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID,
  then found by JAX on TPU pods, under SLURM and Open MPI, and in Kubernetes.

  Args:
    coordinator_address: HOST:PORT of process 0.
    num_processes: how many there are; 1 never looks for others.
    process_id: which this is, from 0 on.
    timeout: seconds in which all have to be there; after them the program ends with code 2.

  Raises:
    UserError: values that cannot be, half of them, or a port that is taken.
  """
  if are_joined():
    return
  given = {'coordinator_address': coordinator_address, 'num_processes': num_processes,
           'process_id': process_id}
  given = {name: _from_environment(name) if value is None else value
           for name, value in given.items()}
  _check(given)
  if given['num_processes'] == 1 or (set(given.values()) == {None} and not _is_launched()):
    return
  known = None not in given.values()
  late = threading.Timer(timeout, _give_up, [given, timeout])
  late.daemon = True
  late.start()
  try:
    # Past its own time limit JAX would abort the process with a stack trace.
    jax.distributed.initialize(
        **given, initialization_timeout=timeout + 60, heartbeat_timeout_seconds=SILENCE,
        cluster_detection_method='deactivate' if known else None)
  except ValueError as error:  # no cluster that JAX knows
    started = os.environ.get('OMPI_COMM_WORLD_SIZE', '1') != '1'  # by Open MPI 5
    if started or set(given.values()) != {None}:
      raise UserError(
          f'{_named(given) or "Started by Open MPI"}: {error} Outside of TPU pods, SLURM, Open MPI '
          '4 and Kubernetes give --coordinator_address, --num_processes and --process_id, all '
          'three, to every process.') from None
  except RuntimeError as error:
    raise UserError(f'{_named(given)}: the processes cannot be joined: {error}. Is the port free '
                    'on the host of process 0?') from None
  finally:
    late.cancel()


def _from_environment(name: str):
  value = os.environ.get(_ENVIRONMENT[name]) or None
  if value is None or name == 'coordinator_address':
    return value
  try:
    return int(value)
  except ValueError:
    raise UserError(f'{_ENVIRONMENT[name]} is {value!r}; give a whole number.') from None


def _named(given) -> str:
  return ' '.join(f'--{name}={value}' for name, value in given.items() if value is not None)


def _check(given):
  address, count, index = given.values()
  if address is not None and not address.rpartition(':')[2].isdigit():
    raise UserError(f'--coordinator_address={address}: give HOST:PORT, the host of process 0 and '
                    'a port that is free there.')
  if count is not None and count < 1:
    raise UserError(f'--num_processes={count}; give 1 or more.')
  if index is not None and not 0 <= index < (count or index + 1):
    raise UserError(f'--process_id={index}; give 0 to {"N" if count is None else count} - 1, each '
                    'to one process.')


def _is_launched() -> bool:
  """Whether JAX should look for other processes: a look may take time, or warn."""
  counts = [os.environ[name] for name in _LAUNCHED if name in os.environ]
  if counts:
    return counts != ['1']
  if 'JOB_COMPLETION_INDEX' in os.environ and 'KUBERNETES_SERVICE_HOST' in os.environ:
    return True
  from jax._src import cloud_tpu_init  # whether this is a TPU machine; JAX has found out already
  return cloud_tpu_init.running_in_cloud_tpu_vm


def _give_up(given, timeout):
  """Ends the process: the call that waits for the others cannot be interrupted."""
  os.write(2, (
      f'prompt-tuning: {_named(given) or "found by JAX"}: not all processes were there within '
      f'{timeout} s. Give every one the same --coordinator_address and --num_processes and a '
      '--process_id of its own, from 0 on; process 0 has to run on the host of the address, and '
      'its port has to be open to the others.\n').encode())
  os._exit(2)


def are_joined() -> bool:
  """Whether `start` has found others, or a launcher that could have started them."""
  return jax.distributed.is_initialized()


def is_first() -> bool:
  """Whether this is the process that writes files and log lines."""
  return jax.process_index() == 0


def wait(name: str):
  """Waits until all processes have come here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def first_before_others(name: str):
  """Runs the block on the first process, then on all others: they find what it has made."""
  if not is_first():
    wait(name)
  try:
    yield
  finally:
    if is_first():  # also where it failed: the others then fail by themselves
      wait(name)


def from_first(value):
  """The first process's value, a JSON one, everywhere."""
  if jax.process_count() == 1:
    return value
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  text = np.resize(text, size) if len(text) else np.zeros(size, np.uint8)
  return json.loads(multihost_utils.broadcast_one_to_all(text).tobytes())


def replicated(tree):
  """A tree of device arrays with every entry on every process; returns at once."""
  def place(leaf):
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
      return leaf
    return jax.device_put(leaf, NamedSharding(leaf.sharding.mesh, PartitionSpec()))
  return jax.tree.map(place, tree)


def to_host(tree):
  """Copies of a tree's arrays on the host, whole on every process."""
  return jax.tree.map(lambda leaf: np.array(leaf), replicated(tree))


class Agreement:
  """Asks all processes a question at every step; the answer comes two questions later.

  The devices add up what the processes say, in order with their other work, so that every process
  reads the same answer at the same step and no step waits for another machine.

  Args:
    ask: () -> bool.
  """

  def __init__(self, ask: Callable[[], bool]):
    self._ask = ask
    self._answers = collections.deque()
    devices = np.asarray(jax.devices())
    self._each = NamedSharding(Mesh(devices, 'all'), PartitionSpec('all'))
    self._any = jax.jit(lambda said: said.any(), out_shardings=NamedSharding(
        self._each.mesh, PartitionSpec()))

  def __call__(self) -> bool:
    """Whether any process said yes at a step that lies behind; equal on all processes."""
    said = np.full(jax.local_device_count(), self._ask())
    self._answers.append(self._any(jax.make_array_from_process_local_data(self._each, said)))
    return len(self._answers) > _DELAY and bool(self._answers.popleft())
