"""The arrows between modules: a module imports only from its own row and from rows above it."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / 'prompt_tuning'

# From the ground up; the same table stands in docs/architecture.md.
ROWS = ('errors', 'version', 'atomic_file', 'params', 'processes', 'partitioning',
        'tokenizer_json', 'vocabulary', 'losses', 'models', 'peft', 'decoding', 'training',
        'checkpoints', 'data', 'evaluation', 'diagnosis', 'demo', 'cli')
# Where a heavy or optional library may be imported at all, and whether inside functions only.
HOMES = {
    'tensorflow': ('data.seqio_bridge',),
    'tensorflow_datasets': ('data.published',),
    'seqio': ('data.seqio_bridge', 'vocabulary'),
    'gin': ('cli',),
    'orbax': ('checkpoints.run',),
    'tensorstore': ('checkpoints.location', 'checkpoints.zarr_array', 'checkpoints.t5x_writer'),
    'grain': ('data',),
    'array_record': ('data',),
    'apache_beam': ('data.cache_processes',),
    'matplotlib': ('cli',),
    'tensorboard': ('training.writers',),
    'rich': ('training.writers', 'cli'),
    'torch': (), 'transformers': (), 'peft': (), 'pickle': (), 'absl': (),
}
LOCAL_ONLY = ('tensorflow', 'tensorflow_datasets', 'seqio', 'orbax', 'tensorstore', 'grain',
              'array_record', 'apache_beam', 'matplotlib', 'tensorboard')


def sources():
  return sorted(p for p in PACKAGE.rglob('*.py') if p.name != '__init__.py' or p.parent != PACKAGE)


def name_of(path):
  """'data.tasks.glue' for prompt_tuning/data/tasks/glue.py."""
  return '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)


def imports(path):
  """(imported module, whether at the top level) of every import in a file."""
  tree = ast.parse(path.read_text())
  top = {id(node) for node in tree.body}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name, id(node) in top
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      for alias in node.names:
        yield f'{node.module}.{alias.name}', id(node) in top


def row_of(module):
  """Row of 'prompt_tuning.data.task.Task', or None for other packages."""
  parts = module.split('.')
  return ROWS.index(parts[1]) if parts[0] == 'prompt_tuning' and len(parts) > 1 else None


def test_every_module_has_a_row():
  tops = {name_of(path).split('.')[0] for path in sources()} - {'__main__'}
  assert tops == set(ROWS)


@pytest.mark.parametrize('path', sources(), ids=name_of)
def test_imports_point_upwards(path):
  own = name_of(path)
  if own == '__main__':
    pytest.skip('the entry point stands above no row')
  for module, _ in imports(path):
    row = row_of(module)
    assert row is None or row <= ROWS.index(own.split('.')[0]), f'{own} imports {module}'


@pytest.mark.parametrize('path', sources(), ids=name_of)
def test_heavy_libraries_stay_at_home(path):
  own = name_of(path)
  for module, top_level in imports(path):
    library = module.split('.')[0]
    if library in HOMES:
      homes = HOMES[library]
      assert any(own == home or own.startswith(home + '.') for home in homes), (
          f'{own} imports {library}; its place is {homes}')
      assert not (top_level and library in LOCAL_ONLY), f'{own} imports {library} at its top level'


def test_no_file_is_long():
  lines = {name_of(path): len(path.read_text().splitlines()) for path in sources()}
  assert max(lines.values()) <= 500, sorted(lines.items(), key=lambda item: -item[1])[:3]


def test_importing_the_package_is_light():
  code = ('import sys, prompt_tuning\n'
          'prompt_tuning.UserError, prompt_tuning.T5Config, prompt_tuning.SoftPrompt\n'
          'heavy = ("tensorflow", "gin", "seqio", "orbax", "grain")\n'
          'print([name for name in heavy if name in sys.modules])')
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                       cwd=PACKAGE.parent)
  assert out.stdout.strip() == '[]'


def test_every_public_name_exists():
  import prompt_tuning
  names = [name for name in prompt_tuning.__all__ if name != '__version__']
  assert len(names) > 15
  for name in names:
    assert getattr(prompt_tuning, name).__doc__
  with pytest.raises(AttributeError, match='no attribute'):
    prompt_tuning.nothing  # noqa: B018
