"""Metadata, dependency bounds and extras.

scripts/try_bounds.sh installs the lowest and the newest versions inside these bounds on every
supported Python and runs the tests with both.
"""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).resolve().parent

DEPENDENCIES = (
    'array-record>=0.8.1,<0.9',
    'flax>=0.12.7,<0.13',
    'gin-config>=0.5.0,<0.6',
    'grain>=0.2.16,<0.3',
    'jax>=0.10.0,<0.11',
    'ml-dtypes>=0.5.4,<0.7',
    'msgpack>=1.1.0,<2',
    'numpy>=2.1.0,<3',
    'optax>=0.2.8,<0.3',
    'orbax-checkpoint>=0.12.0,<0.13',
    'rich>=14.0.0,<16',
    'sentencepiece>=0.2.1,<0.3',
    'tensorboard>=2.20.0,<3',
    'tensorstore>=0.1.84,<0.2',
)

SEQIO = ('seqio>=0.0.19,<0.1', 'tensorflow>=2.20.0,<3')
METRICS = (
    'rouge-score>=0.1.2,<0.2',
    'sacrebleu>=2.5.0,<3',
)
PLOT = (
    'matplotlib>=3.10.0,<4',
)

EXTRAS = {
    # The accelerator's jaxlib; without an extra jax runs on the CPU.
    'cuda': ('jax[cuda12]',),
    'tpu': ('jax[tpu]',),
    # A user's own SeqIO tasks, and task data straight from TensorFlow Datasets.
    'seqio': SEQIO,
    'tfds': ('tensorflow-datasets>=4.9.9,<5', *SEQIO[1:]),
    # The cache of tokenised examples written by many machines. Beam wants protobuf below 7, and
    # SentencePiece 0.2.3 wants 7 without saying so.
    'beam': ('apache-beam>=2.72.0,<2.78', 'sentencepiece<0.2.3'),
    # BLEU and ROUGE.
    'metrics': METRICS,
    # `data check --plot`, and the curve of the demo.
    'plot': PLOT,
    'demo': PLOT,
    'test': (
        *METRICS,
        'hypothesis>=6.135,<7',
        *PLOT,
        'pytest>=8.4,<10',
        'pytest-xdist>=3.6,<4',
        'ruff>=0.14,<0.18',
        'safetensors>=0.6.2,<0.9',
        'scikit-learn>=1.7,<2',
        'setuptools>=77',
    ),
    # What tests and benchmarks compare with; nothing in the package imports it.
    'interop': ('torch==2.13.0', 'transformers>=5.15,<6', 'peft>=0.21,<0.22'),
}


def version() -> str:
  """Read without importing the package, whose dependencies are not there yet."""
  text = (ROOT / 'prompt_tuning' / 'version.py').read_text()
  return re.search(r"__version__ = '(.+)'", text).group(1)


def gin_packages() -> dict[str, str]:
  """The gin folders, installed inside the package: package name -> folder.

  gin/ has no `__init__.py`: with one it would shadow the gin library wherever the root of a
  checkout is on sys.path.
  """
  folders = {file.parent for file in (ROOT / 'gin').rglob('*.gin')} | {ROOT / 'gin'}
  names = sorted(folder.relative_to(ROOT).as_posix() for folder in folders)
  return {'prompt_tuning.' + name.replace('/', '.'): name for name in names}


setuptools.setup(
    name='prompt-tuning',
    version=version(),
    description='Prompt tuning and its neighbours for frozen T5 models in JAX and Flax.',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    python_requires='>=3.11,<3.14',
    packages=[*setuptools.find_packages(include=['prompt_tuning', 'prompt_tuning.*']),
              *gin_packages()],
    package_dir=gin_packages(),
    package_data={
        'prompt_tuning.demo': ['backbone/*', 'tasks/*/*.jsonl'],
        **{name: ['*.gin'] for name in gin_packages()},
    },
    install_requires=list(DEPENDENCIES),
    extras_require={name: list(packages) for name, packages in EXTRAS.items()},
    entry_points={'console_scripts': ['prompt-tuning = prompt_tuning.cli.main:main']},
)
