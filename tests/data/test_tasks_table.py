"""docs/tasks.md is what the registry says."""

import pathlib
import runpy

from prompt_tuning.data import task

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_the_table_is_up_to_date():
  made = runpy.run_path(str(ROOT / 'scripts' / 'tasks_table.py'))['text']()
  assert (ROOT / 'docs' / 'tasks.md').read_text() == made, (
      'python scripts/tasks_table.py > docs/tasks.md')
  plain = [name for name in task.names() if not name.startswith(('taskless_', 'task_index_'))]
  missing = [name for name in plain if f'`{name}`' not in made and not name.endswith('_v002')]
  assert len(plain) > 50 and not missing
