"""The table and the learning curve at the end of scripts/demo.sh."""

import json
import math
import pathlib
import sys

import matplotlib
import rich.console
import rich.table

from prompt_tuning.checkpoints import prompt_file, restore

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402  (after the backend without a display is set)

ROWS = {'zero_shot': 'zero-shot', 'prompt': 'prompt tuned', 'model': 'model tuned'}


def main(folder: pathlib.Path):
  """Prints the table of the results in a folder and draws its learning curves."""
  console = rich.console.Console()
  console.print(table(folder))
  path = folder / 'learning_curve.png'
  draw(folder, path)
  console.print(f'Learning curve: {path}')


def table(folder: pathlib.Path) -> rich.table.Table:
  """One row for each way to use the backbone."""
  rows = rich.table.Table(title='Accuracy on the test split')
  for column in ('', 'accuracy', 'trainable parameters', 'bytes saved', 'seconds'):
    rows.add_column(column, justify='right' if column else 'left')
  seconds = total_seconds(folder)
  for name, title in ROWS.items():
    evaluated = folder / (name if name == 'zero_shot' else f'{name}/eval') / 'metrics.json'
    parameters, size = trained(folder, name)
    metrics = json.loads(evaluated.read_text())
    rows.add_row(title, f'{metrics["accuracy"]:.1f} %', f'{parameters:,}',
                 f'{size:,}' if size else '-', str(seconds[name]))
    if 'rank/accuracy' in metrics:
      rows.add_row(f'{title}, more probable label', f'{metrics["rank/accuracy"]:.1f} %', '0', '-',
                   '')
  return rows


def trained(folder: pathlib.Path, name: str) -> tuple[int, int]:
  """(trained parameters, bytes that a user keeps of them)."""
  if name == 'zero_shot':
    return 0, 0
  if name == 'model':
    arrays = restore.open_model(restore.DEMO).arrays.values()
    count = sum(math.prod(array.shape) for array in arrays)
    return count, 4 * count
  path = folder / name / 'prompt.safetensors'
  return prompt_file.load_prompt(path).array.size, path.stat().st_size


def total_seconds(folder: pathlib.Path) -> dict[str, int]:
  """Seconds of training and evaluation by row."""
  seconds = dict.fromkeys(ROWS, 0)
  for line in (folder / 'seconds').read_text().splitlines():
    name, value = line.split()
    seconds[name] += int(value)
  return seconds


def draw(folder: pathlib.Path, path: pathlib.Path):
  """Accuracy on the validation split after each evaluation of both runs."""
  figure, axes = plt.subplots(figsize=(6, 4))
  for name in ('prompt', 'model'):
    lines = (folder / name / 'metrics.jsonl').read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if 'eval/accuracy' in row]
    axes.plot([row['step'] for row in rows], [row['eval/accuracy'] for row in rows],
              marker='.', label=ROWS[name])
  axes.set_xlabel('step')
  axes.set_ylabel('accuracy on the validation split, %')
  axes.grid(alpha=0.3)
  axes.legend()
  figure.savefig(path, dpi=120, bbox_inches='tight')


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
