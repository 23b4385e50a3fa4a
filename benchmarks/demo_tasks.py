"""The bundled demo in numbers: each task, three seeds, through the command line.

Prints, on the test splits: zero-shot accuracy (greedy, exact match; and of the likelier label),
that of a tuned prompt and of a tuned model, bag of words; and how many steps a prompt needs to
80 % of its final accuracy on the validation split from class labels and from random values.

  python benchmarks/demo_tasks.py OUT_DIR [--tasks=demo_nli,...] [--seeds=3] [--checkpoint=demo]
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

import bag_of_words

from prompt_tuning.demo import examples

PROMPT = ('peft/prompt.gin', 'runs/demo.gin')
MODEL = ('peft/model_tuning.gin', 'runs/demo_finetune.gin')
RANDOM = ('--gin.PROMPT_INIT=@prompt_init.Uniform()',)


def cli(verb, *flags):
  """Runs a verb; what it logs is shown where it fails."""
  done = subprocess.run([sys.executable, '-m', 'prompt_tuning', verb, *flags],
                        capture_output=True, text=True)
  if done.returncode:
    sys.exit(f'{verb} {flags} failed:\n{done.stderr}')


def train(folder, task, files, args, *flags):
  """Trains and measures on the test split, unless the folder says that it was done."""
  result = folder / 'eval' / 'metrics.json'
  if not result.is_file():
    gin_files = ('models/demo.gin', f'tasks/{task}.gin', *files)
    cli('train', *(f'--gin_file={name}' for name in gin_files), f'--gin.MODEL_DIR={folder}',
        f'--gin.INITIAL_CHECKPOINT_PATH={args.checkpoint}', f'--gin.CACHE_DIR={args.out}/cache',
        *flags)
    cli('eval', f'--gin.MODEL_DIR={folder}', '--gin.EVAL_SPLIT=test')
  return json.loads(result.read_text())['accuracy']


def zero_shot(folder, task, args):
  """Measures the bare backbone."""
  result = folder / 'metrics.json'
  if not result.is_file():
    cli('eval', '--gin_file=models/demo.gin', f'--gin_file=tasks/{task}.gin',
        '--gin_file=runs/eval.gin', f'--gin.CHECKPOINT_PATH={args.checkpoint}',
        '--gin.EVAL_SPLIT=test', '--gin.RANK_LABELS=True', '--gin.EVAL_BATCH_SIZE=200',
        f'--gin.EVAL_OUTPUT_DIR={folder}', f'--gin.CACHE_DIR={args.out}/cache')
  metrics = json.loads(result.read_text())
  return metrics['accuracy'], metrics['rank/accuracy']


def steps_to(folder, share=0.8):
  """First evaluated step that reaches a share of the last accuracy on the validation split."""
  rows = map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines())
  curve = [(row['step'], row['eval/accuracy']) for row in rows if 'eval/accuracy' in row]
  return next(step for step, accuracy in curve if accuracy >= share * curve[-1][1])


def row(task, args):
  """All numbers of one task, as text."""
  out, seeds = args.out / task, range(args.seeds)
  prompts, models, labels, random = [], [], [], []
  for seed in seeds:
    flags = (f'--gin.RANDOM_SEED={seed}', '--gin.EVAL_PERIOD=10')
    prompts.append(train(out / f'prompt_{seed}', task, PROMPT, args, *flags))
    models.append(train(out / f'model_{seed}', task, MODEL, args, flags[0]))
    labels.append(steps_to(out / f'prompt_{seed}'))
    train(out / f'random_{seed}', task, PROMPT, args, *flags, *RANDOM)
    random.append(steps_to(out / f'random_{seed}'))
  greedy, ranked = zero_shot(out / 'zero_shot', task, args)
  words = bag_of_words.accuracy(examples.examples(task), bag_of_words.counts(1))
  several = lambda values: ' '.join(f'{v:.1f}' for v in values)
  return (f'| {task} | {greedy:.1f} / {ranked:.1f} | {100 * words:.1f} | {several(prompts)} | '
          f'{several(models)} | {statistics.mean(prompts) - statistics.mean(models):+.1f} | '
          f'{several(labels)} | {several(random)} |')


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('out', type=pathlib.Path)
  parser.add_argument('--tasks', default=','.join(examples.MAKERS))
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--checkpoint', default='demo')
  args = parser.parse_args()
  print('| task | zero-shot greedy / rank | bag of words | prompt | model | difference | '
        'steps to 80 %, labels | random |\n|---|---|---|---|---|---|---|---|', flush=True)
  for task in args.tasks.split(','):
    print(row(task, args), flush=True)


if __name__ == '__main__':
  main()
