"""The bundled demo in numbers: each task, three seeds, through the command line.

Prints, on the test splits: zero-shot accuracy (greedy, exact match; and of the likelier label),
that of a tuned prompt and of a tuned model, bag of words; and how many steps a prompt needs to
80 % of its final accuracy on the validation split from class labels, from uniform random values
and from random words of the vocabulary.

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
INITS = {'labels': 'ClassLabels', 'uniform': 'Uniform', 'words': 'SampledVocab'}
CURVE = ('--gin.EVAL_PERIOD=1', '--gin.TRAIN_STEPS_RELATIVE=50', '--gin.SAVE_PERIOD=50')


def cli(verb, *flags):
  """Runs a verb; what it logs is shown where it fails."""
  done = subprocess.run([sys.executable, '-m', 'prompt_tuning', verb, *flags],
                        capture_output=True, text=True)
  if done.returncode:
    sys.exit(f'{verb} {flags} failed:\n{done.stderr}')


def train(folder, task, files, args, *flags):
  """Trains, unless the folder says that it was done."""
  if not (folder / 'done').exists():
    gin_files = ('models/demo.gin', f'tasks/{task}.gin', *files)
    cli('train', *(f'--gin_file={name}' for name in gin_files), f'--gin.MODEL_DIR={folder}',
        f'--gin.INITIAL_CHECKPOINT_PATH={args.checkpoint}', f'--gin.CACHE_DIR={args.out}/cache',
        *flags)
    (folder / 'done').touch()
  return folder


def measure(folder):
  """Accuracy of the best checkpoint of a run on the test split."""
  result = folder / 'eval' / 'metrics.json'
  if not result.is_file():
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
  out = args.out / task
  greedy, ranked = zero_shot(out / 'zero_shot', task, args)
  words = bag_of_words.accuracy(examples.examples(task), bag_of_words.counts(1))
  prompts, models, steps = [], [], {name: [] for name in INITS}
  for seed in range(args.seeds):
    flag = f'--gin.RANDOM_SEED={seed}'
    prompts.append(measure(train(out / f'prompt_{seed}', task, PROMPT, args, flag)))
    models.append(measure(train(out / f'model_{seed}', task, MODEL, args, flag)))
    for name, init in INITS.items() if args.inits else ():
      steps[name].append(steps_to(train(
          out / f'{name}_{seed}', task, PROMPT, args, flag, *CURVE,
          f'--gin.PROMPT_INIT=@prompt_init.{init}()')))
  several = lambda values: ' '.join(f'{v:g}' for v in values)
  return (f'| {task} | {greedy:.1f} / {ranked:.1f} | {100 * words:.1f} | {several(prompts)} | '
          f'{several(models)} | {statistics.mean(prompts) - statistics.mean(models):+.1f} | '
          + ' | '.join(several(values) for values in steps.values()) + ' |')


def parser_of(description):
  """The flags that say which runs are made, and where."""
  parser = argparse.ArgumentParser(description=description)
  parser.add_argument('out', type=pathlib.Path)
  parser.add_argument('--tasks', default=','.join(examples.MAKERS))
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--checkpoint', default='demo')
  return parser


def main():
  parser = parser_of(__doc__.split('\n')[0])
  parser.add_argument('--inits', type=int, default=1, help='0 leaves the initialisers out')
  args = parser.parse_args()
  print('| task | zero-shot greedy / rank | bag of words | prompt | model | difference | '
        'steps to 80 %: labels | uniform | words |\n' + 9 * '|---' + '|', flush=True)
  for task in args.tasks.split(','):
    print(row(task, args), flush=True)


if __name__ == '__main__':
  main()
