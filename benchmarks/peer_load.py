"""Both sides of load.py: `prompt_tuning.load_backbone`, and numpy on the same bytes."""

import gzip
import json
import os
import pathlib
import struct
import sys

import ml_dtypes
import numpy as np
import rounds


def ours(folder, devices=1):
  """Returns load() -> bytes of the parameters, which are dropped."""
  if devices > 1:
    os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={devices}'
  import jax

  import prompt_tuning as pt
  from prompt_tuning import params as params_lib
  from prompt_tuning import partitioning
  from prompt_tuning.checkpoints import restore
  from prompt_tuning.cli import process
  from prompt_tuning.peft.model import abstract_params
  process.keep_memory()  # As every verb of the command line does.
  shardings = None
  if devices > 1:
    module = pt.T5(restore.open_model(folder).config)
    shardings = params_lib.flatten(partitioning.parameter_shardings(
        abstract_params(module), partitioning.make_mesh(devices)))

  def load():
    params = pt.load_backbone(folder, param_dtype='bfloat16', shardings=shardings).params
    return params_lib.size_bytes(jax.block_until_ready(params))

  return load


def plain(folder):
  """The same with numpy alone: each array, or chunk of one, is read and cast."""
  pieces = list(_pieces(pathlib.Path(folder)))

  def load():
    arrays = []
    for path, offset, count, compressed in pieces:
      values = (np.frombuffer(gzip.decompress(path.read_bytes()), np.float32) if compressed
                else np.fromfile(path, np.float32, count, offset=offset))
      arrays.append(values.astype(ml_dtypes.bfloat16))
    return sum(array.nbytes for array in arrays)

  return load


def _pieces(folder):
  """Yields (file, offset, number of float32, whether it is compressed)."""
  for path in sorted(folder.glob('*.safetensors')):
    with path.open('rb') as file:
      start = 8 + struct.unpack('<Q', file.read(8))[0]
      header = json.loads(file.read(start - 8))
    header.pop('__metadata__', None)
    for entry in header.values():
      begin, end = entry['data_offsets']
      yield path, start + begin, (end - begin) // 4, False
  for path in sorted(folder.glob('*/.zarray')):
    compressed = json.loads(path.read_text())['compressor'] is not None
    for chunk in path.parent.glob('[0-9]*'):
      yield chunk, 0, -1, compressed


def main():
  options = json.loads(sys.argv[1])
  load = {'ours': ours, 'numpy': plain}[options.pop('side')](**options)
  rounds.serve({'run': lambda: {'bytes': load()}})


if __name__ == '__main__':
  main()
