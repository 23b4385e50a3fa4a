"""What int8 costs in accuracy: the demo's tasks, through the command line.

For each task and seed, on the test split: a prompt trained on the float32 base and evaluated on it,
the same prompt evaluated on the int8 base, and a prompt trained and evaluated on the int8 base.

  python benchmarks/int8_accuracy.py OUT_DIR [--tasks=demo_nli,...] [--seeds=3]
"""

import json
import statistics

import demo_tasks

INT8 = '--gin.PARAM_DTYPE=int8'
SIDES = ('float32', 'its prompt on int8', 'trained on int8')


def measure(run, name, *flags):
  """Accuracy of a run's best checkpoint on the test split; greedy, exact match."""
  folder = run / name
  if not (folder / 'metrics.json').is_file():
    demo_tasks.cli('eval', f'--gin.MODEL_DIR={run}', '--gin.EVAL_SPLIT=test',
                   f'--gin.EVAL_OUTPUT_DIR={folder}', *flags)
  return json.loads((folder / 'metrics.json').read_text())['accuracy']


def row(task, args):
  """Accuracies of one task, one list for each of SIDES."""
  sides = [], [], []
  for seed in range(args.seeds):
    flag = f'--gin.RANDOM_SEED={seed}'
    wide, narrow = (args.out / task / f'{name}_{seed}' for name in ('float32', 'int8'))
    demo_tasks.train(wide, task, demo_tasks.PROMPT, args, flag)
    demo_tasks.train(narrow, task, demo_tasks.PROMPT, args, flag, INT8)
    for side, value in zip(sides, (measure(wide, 'wide'), measure(wide, 'narrow', INT8),
                                   measure(narrow, 'narrow')), strict=True):
      side.append(value)
  return sides


def main():
  args = demo_tasks.parser_of(__doc__.split('\n')[0]).parse_args()
  print('| task | ' + ' | '.join(SIDES) + ' |\n' + '|---' * 4 + '|', flush=True)
  for task in args.tasks.split(','):
    sides = row(task, args)
    print(f'| {task} | ' + ' | '.join(' '.join(f'{v:g}' for v in side) for side in sides) + ' |',
          flush=True)
    changes = [statistics.mean(side) - statistics.mean(sides[0]) for side in sides[1:]]
    assert all(change > -1 for change in changes), f'{task}: {changes}'


if __name__ == '__main__':
  main()
