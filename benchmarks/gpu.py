"""Prompt tuning of T5 1.1 XL and XXL on one GPU, random bfloat16 or int8 weights: speed and memory.

Every row is a process of its own and finds the largest batch that fits by the compiler's account
of its memory. Prints a Markdown table, and all numbers as one line of JSON. Utilisation is the
FLOPs that a step cannot do without (no recomputation), per second, against a bfloat16 matrix
product measured in the same process. PEFT stands beside it where torch, transformers and peft can
be imported.

  python benchmarks/gpu.py                                     # XL and XXL on one H200
  python benchmarks/gpu.py --shape=xl --remat=minimal --attention=xla,cudnn --frozen=bfloat16
  JAX_PLATFORMS=cpu python benchmarks/gpu.py --shape=tiny --memory_gb=0.1 --most_batch=4
"""

import argparse
import importlib.util
import itertools
import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
LISTS = {'shape': 'xl,xxl', 'jobs': 'train,decode', 'frozen': 'bfloat16,int8',
         'remat': 'minimal,full', 'attention': 'xla,cudnn', 'scan': '1'}
NUMBERS = {'prompt': 100, 'inputs': 512, 'targets': 16, 'first_batch': 8, 'most_batch': 1024,
           'repeats': 10, 'product': 8192}
TARGET = 0.5  # of the matrix product's speed
COLUMNS = ('shape', 'job', 'frozen', 'layers', 'remat', 'attention', 'batch', 's', 'tokens/s',
           'GB by the compiler', 'GB at most', 'utilisation')


def rows_of(args):
  """The rows: every choice of a training step, and greedy decoding for each frozen dtype."""
  lists = {name: getattr(args, name).split(',') for name in LISTS}
  fixed = {name: getattr(args, name) for name in (*NUMBERS, 'memory_gb')}
  for shape in lists['shape']:
    if 'train' in lists['jobs']:
      for frozen, remat, attention, scan in itertools.product(
          lists['frozen'], lists['remat'], lists['attention'], lists['scan']):
        yield fixed | {'shape': shape, 'job': 'train', 'frozen': frozen, 'remat': remat,
                       'attention': attention, 'scan': scan == '1'}
    if 'decode' in lists['jobs']:
      for frozen in lists['frozen']:
        yield fixed | {'shape': shape, 'job': 'decode', 'frozen': frozen, 'remat': 'none',
                       'attention': 'xla', 'scan': lists['scan'][0] == '1'}


def measure(row, script):
  """Runs a row in a process of its own; what went wrong is its result where it fails."""
  env = {'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.95', **os.environ}
  env['PYTHONPATH'] = os.pathsep.join([str(HERE.parent), os.environ.get('PYTHONPATH', '')])
  done = subprocess.run([sys.executable, str(HERE / script), json.dumps(row)], env=env,
                        capture_output=True, text=True)
  if done.returncode:
    print(done.stderr, file=sys.stderr)
    errors = [text for text in done.stderr.splitlines() if 'Error' in text]
    return {'failed': errors[-1][:150] if errors else f'exit code {done.returncode}'}
  return json.loads(done.stdout.splitlines()[-1])


def line(row, result):
  """A line of the table."""
  cells = [row['shape'], row['job'], row['frozen'], 'scanned' if row['scan'] else 'looped',
           row['remat'], row['attention']]
  if not result.get('batch'):
    reason = result.get('failed') or result.get('skipped') or 'does not fit'
    return '| ' + ' | '.join(cells + [reason] + [''] * (len(COLUMNS) - len(cells) - 1)) + ' |'
  peak, used = result.get('peak_bytes'), ''
  if 'flops' in result:
    used = f"{result['flops'] / result['seconds'] / result['product_flops_per_second']:.0%}"
  needed = result.get('needed_bytes')
  cells += [str(result['batch']), f"{result['seconds']:.3f}",
            f"{result['tokens'] / result['seconds']:,.0f}",
            f'{needed / 1e9:.1f}' if needed else '', f'{peak / 1e9:.1f}' if peak else '', used]
  return '| ' + ' | '.join(cells) + ' |'


def peft_rows(args, results):
  """PEFT's step for each shape, with the largest batch that ours trained in bfloat16."""
  if not all(map(importlib.util.find_spec, ('torch', 'transformers', 'peft'))):
    return
  for shape in args.shape.split(','):
    batches = [result['batch'] for row, result in results
               if (row['shape'], row['job'], row['frozen']) == (shape, 'train', 'bfloat16')
               and result.get('batch')]
    if batches:
      yield {name: getattr(args, name) for name in NUMBERS} | {
          'shape': shape, 'job': "PEFT's train", 'frozen': 'bfloat16', 'remat': 'full',
          'attention': 'torch', 'scan': False, 'batch': max(batches)}


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  for name, value in LISTS.items():
    parser.add_argument(f'--{name}', default=value, help=f'separated by commas; {value}')
  for name, value in NUMBERS.items():
    parser.add_argument(f'--{name}', type=int, default=value, help=f'default {value}')
  parser.add_argument('--memory_gb', type=float, help="default: 92 %% of the device's")
  args = parser.parse_args(argv)
  print('| ' + ' | '.join(COLUMNS) + ' |\n' + '|---' * len(COLUMNS) + '|', flush=True)
  results = []
  for row in rows_of(args):
    results.append((row, measure(row, 'gpu_row.py')))
    print(line(*results[-1]), flush=True)
  for row in peft_rows(args, results):
    results.append((row, measure(row, 'gpu_peft.py')))
    print(line(*results[-1]), flush=True)
  shares = [r['flops'] / r['seconds'] / r['product_flops_per_second'] for _, r in results
            if 'flops' in r]
  if shares:
    print(f'\nBest utilisation {max(shares):.0%}; the target is {TARGET:.0%}.\n')
  print(json.dumps([row | result for row, result in results]))


if __name__ == '__main__':
  main()
