"""Memory of a training step for every size, number of devices, dtype and method.

Compiles the real step for virtual devices (`train --dry_run` with MESH), a cell in a process of its
own, and prints the tables of docs/scale.md. Results are kept, so that a second start goes on;
cells that are not compiled yet show the closed form, with a ~.

  python benchmarks/scale.py --results=scale.jsonl --sizes=xxl
"""

import argparse
import itertools
import json
import pathlib
import subprocess
import sys

# size -> the meshes of 1, 8 and 32 devices
MESHES = {'xxl': ('1x1', '1x8', '4x8'), 'xl': ('1x1', '2x4', '8x4'),
          'large': ('1x1', '8x1', '32x1'), 'base': ('1x1', '8x1', '32x1'),
          'small': ('1x1', '8x1', '32x1')}
DTYPES = ('bfloat16', 'float32')
METHODS = ('prompt', 'lora', 'model_tuning')
MEMORIES = (16, 32, 80)  # GB of a device
BATCH, INPUTS, TARGETS = 32, 512, 16
ROOT = pathlib.Path(__file__).resolve().parent.parent


def cells():
  """(size, mesh, dtype, method) of every cell."""
  for size, meshes in MESHES.items():
    yield from itertools.product((size,), meshes, DTYPES, METHODS)


def configure(size, mesh, dtype, method):
  """(TrainConfig, dry_run.Plan) of a cell."""
  from prompt_tuning.cli import config as config_lib
  from prompt_tuning.cli import dry_run, train

  overrides = {
      'INITIAL_CHECKPOINT_PATH': 'random', 'MODEL_DIR': 'unused', 'MESH': mesh,
      'MIXTURE_OR_TASK_NAME': 'demo_nli', 'BATCH_SIZE': BATCH,
      'TASK_FEATURE_LENGTHS': {'inputs': INPUTS, 'targets': TARGETS}, 'PARAM_DTYPE': dtype,
      'ACTIVATION_DTYPE': dtype, 'SCAN_LAYERS': True, 'REMAT_POLICY': 'full'}
  if method == 'prompt':
    overrides['PROMPT_LENGTH'] = 20
  if method == 'model_tuning':
    overrides['PARAMETER_PARTITIONING_DIMS'] = 2
  config_lib.parse(
      [f'models/t5_1_1_{size}.gin', f'peft/{method}.gin', 'tasks/named.gin',
       'runs/train.gin' if method == 'prompt' else 'runs/finetune.gin'],
      [(name, str(value)) for name, value in overrides.items()])
  config = config_lib.build(train.TrainConfig)
  return config, dry_run.shapes(config)


def measure(size, mesh, dtype, method):
  """Compiles one cell, in this process."""
  from prompt_tuning.cli import dry_run, footprint

  config, plan = configure(size, mesh, dtype, method)
  found = footprint.compile_step(config, plan, dry_run.batch_shapes(config, config.batch_size))
  return {
      'cell': [size, mesh, dtype, method], 'parameters': found.parameter_bytes,
      'optimizer': found.optimizer_bytes, 'temporary': found.temporary_bytes,
      'together': found.total_bytes, 'flops': found.program.matmul_flops,
      'collectives': sum(c.size_bytes for c in found.program.collectives.values())}


def estimates():
  """{cell: bytes of a device in closed form} of all cells, in this process."""
  import jax

  from prompt_tuning.cli import dry_run

  jax.config.update('jax_num_cpu_devices', 32)
  assert len(jax.devices('cpu')) == 32  # started, so that no cell starts them with fewer
  return {cell: sum(dry_run.estimate(*configure(*cell)).values()) for cell in cells()}


def print_tables(compiled, estimated):
  """Memory by size and mesh; then the closed form beside the compiler's figure.

  Args:
    compiled: {cell: bytes of a device}.
    estimated: the same for all cells.
  """
  heads = [f'{method.replace("_", " ")} {"bf16" if dtype == "bfloat16" else dtype}'
           for method in METHODS for dtype in DTYPES]
  for content in (_cell, _difference):
    print('| model | devices | mesh |', ' | '.join(heads), '|')
    print('|---' * (3 + len(heads)) + '|')
    for size, meshes in reversed(MESHES.items()):
      for mesh in meshes:
        data, model = map(int, mesh.split('x'))
        line = [content((size, mesh, dtype, method), compiled, estimated) for method in METHODS
                for dtype in DTYPES]
        print(f'| {size} | {data * model} | {mesh} |', ' | '.join(line), '|')
    print()


def _cell(cell, compiled, estimated):
  """GB a device, and the smallest of MEMORIES that holds it with a tenth to spare."""
  size = compiled.get(cell, estimated[cell]) / 1e9
  fits = next((str(memory) for memory in MEMORIES if size <= 0.9 * memory), 'none')
  return f'{"" if cell in compiled else "~"}{size:.1f} ({fits})'


def _difference(cell, compiled, estimated):
  """By how much the closed form is off, in per cent of the compiler's figure."""
  return f'{100 * (estimated[cell] / compiled[cell] - 1):+.1f} %' if cell in compiled else '~'


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--results', type=pathlib.Path, required=True)
  parser.add_argument('--sizes', default=','.join(MESHES), help='which sizes to compile')
  parser.add_argument('--cell', nargs=4, help='measure one cell and print it')
  flags = parser.parse_args()
  sys.path.insert(0, str(ROOT))
  if flags.cell:
    print(json.dumps(measure(*flags.cell)))
    return
  results = []
  if flags.results.is_file():
    results = [json.loads(line) for line in flags.results.read_text().splitlines()]
  compiled = {tuple(result['cell']): result['together'] for result in results}
  for cell in cells():
    if cell in compiled or cell[0] not in flags.sizes.split(','):
      continue
    line = subprocess.run(
        [sys.executable, __file__, f'--results={flags.results}', '--cell', *cell], check=True,
        capture_output=True, text=True).stdout.splitlines()[-1]
    compiled[cell] = json.loads(line)['together']
    with flags.results.open('a') as file:
      file.write(line + '\n')
  print_tables(compiled, estimates())


if __name__ == '__main__':
  main()
