"""Loads a synthetic checkpoint as bfloat16: peak memory and speed, against numpy.

Every layout is written, loaded in a fresh process, which says its peak memory, then loaded again in
turns with a process in which numpy reads and casts the same bytes, and deleted. The files come out
of the page cache: it is the work of the processor that is compared, not the disk.

  python benchmarks/load.py --gigabytes=2
"""

import argparse
import contextlib
import math
import pathlib
import shutil
import tempfile

import msgpack
import numpy as np
import rounds
import tensorstore

from prompt_tuning import params as params_lib
from prompt_tuning.checkpoints import hf
from prompt_tuning.checkpoints.stored import StoredArray
from prompt_tuning.models.t5 import T5, T5Config
from prompt_tuning.peft.model import abstract_params

LAYOUTS = ('t5x', 't5x_gzip', 'safetensors', 'shards')
OVERHEAD = 500e6  # bytes above the parameters that are allowed
_CHUNK_BYTES = 64 * 2**20  # as T5X writes
_SHARD_BYTES = 500e6


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--gigabytes', type=float, default=2, help='of float32; default 2')
  parser.add_argument('--layouts', nargs='+', choices=LAYOUTS, default=LAYOUTS)
  parser.add_argument('--rounds', type=int, default=7, help='measured turns; default 7')
  parser.add_argument('--cores', type=int, default=1, help='that the processes share; default 1')
  parser.add_argument('--folder', help="where to write; default: the system's temporary folder")
  given = parser.parse_args()
  rounds.pin_cores(given.cores)
  config = t5_of_size(given.gigabytes * 1e9)
  for layout in given.layouts:
    with checkpoint(layout, config, given.folder) as folder:
      compare(layout, str(folder), given.rounds)


def compare(layout, folder, turns):
  """Prints memory and speed of one layout."""
  ours = rounds.Peer('prompt_tuning', 'peer_load.py', side='ours', folder=folder)
  size = ours.ask('run')['bytes']
  peak = ours.ask('memory')['bytes']
  sharded = rounds.Peer('over 8 devices', 'peer_load.py', side='ours', folder=folder, devices=8)
  sharded.ask('run')
  sharded_peak = sharded.ask('memory')['bytes']
  sharded.close()
  plain = rounds.Peer('numpy', 'peer_load.py', side='numpy', folder=folder)
  rounds.interleave([plain, ours], turns, warmups=1)
  print(f'\n{layout}: {2 * size / 1e9:.2f} GB of float32, {size / 1e9:.2f} GB as bfloat16; peak '
        f'{peak / 1e6:.0f} MB, over 8 virtual devices {sharded_peak / 1e6:.0f} MB')
  for peer in (plain, ours):
    print(rounds.timing(peer))
    peer.close()
  for name, value in (('', peak), (', 8 devices', sharded_peak)):
    rounds.report(f'peak memory / (parameters + 500 MB){name}', value / (size + OVERHEAD),
                  at_most=1.0)
  gzip = layout == 't5x_gzip'
  rounds.report_speed('loading: numpy s / ours', plain, ours, at_least=None if gzip else 0.7)


def t5_of_size(size) -> T5Config:
  """T5 1.1 of large's widths, with as many layers as come nearest to `size` bytes of float32."""
  def config(depth):
    return T5Config(vocab_size=32128, emb_dim=1024, num_heads=16, head_dim=64, mlp_dim=2816,
                    num_encoder_layers=depth, num_decoder_layers=depth)
  one, two = (4 * params_lib.count(abstract_params(T5(config=config(depth)))) for depth in (1, 2))
  return config(max(1, round((size - one) / (two - one)) + 1))


@contextlib.contextmanager
def checkpoint(layout, config, parent):
  """A checkpoint of random numbers in one of the layouts; deleted afterwards."""
  shapes = params_lib.flatten(abstract_params(T5(config=config)))
  size = 4 * sum(math.prod(leaf.shape) for leaf in shapes.values())
  free = shutil.disk_usage(parent or tempfile.gettempdir()).free
  if free < 1.5 * size:
    raise SystemExit(f'{size / 1e9:.1f} GB do not fit: {free / 1e9:.1f} GB are free.')
  pool = np.random.default_rng(0).standard_normal(2**22 + 7, dtype=np.float32)
  arrays = {path: StoredArray(
      shape=leaf.shape, dtype=np.dtype(np.float32), source=path,
      reader=lambda dtype, shape=leaf.shape: np.resize(pool, shape).astype(dtype, copy=False))
      for path, leaf in shapes.items()}
  with tempfile.TemporaryDirectory(dir=parent) as folder:
    target = pathlib.Path(folder) / 'checkpoint_0'
    if layout.startswith('t5x'):
      write_t5x(target, arrays, {'id': 'gzip', 'level': 1} if layout == 't5x_gzip' else None)
    else:
      hf.write_folder(target, config, arrays,
                      max_shard_bytes=_SHARD_BYTES if layout == 'shards' else math.inf)
    yield target


def write_t5x(folder, arrays, compressor):
  """Writes a native checkpoint without optimizer state, with or without compression."""
  specs = {}
  for path, array in arrays.items():
    chunks = list(array.shape)
    while math.prod(chunks) * 4 > _CHUNK_BYTES:
      chunks[0] = -(-chunks[0] // 2)
    name = 'target.' + path.replace('/', '.')
    specs[path] = {
        'driver': 'zarr', 'dtype': 'float32', 'kvstore': {'driver': 'file', 'path': name},
        'metadata': {'shape': list(array.shape), 'chunks': chunks, 'compressor': compressor}}
    place = {'driver': 'file', 'path': f'{folder / name}/'}
    store = tensorstore.open({**specs[path], 'kvstore': place}, create=True).result()
    store.write(array.read()).result()
  index = {'version': 3, 'optimizer': {'target': params_lib.unflatten(specs),
                                       'state': {'step': 0, 'param_states': {}}}}
  (folder / 'checkpoint').write_bytes(msgpack.packb(index))


if __name__ == '__main__':
  main()
