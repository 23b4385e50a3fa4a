"""Every dataset of a data folder, trained on for 20 steps: does what was published load and run?

A tiny random T5 with the real vocabulary, through the command line. Prints for each dataset the
examples of its splits, the seconds of processor time and the loss of the first and last steps.

  python benchmarks/real_data.py DATA_FOLDER [--tasks=super_glue_cb_v102,...]
"""

import argparse
import dataclasses
import json
import pathlib
import tempfile
import time

from prompt_tuning.cli import main
from prompt_tuning.data import task as task_lib

STEPS = 20
MODEL = '''
from __gin__ import dynamic_registration
from prompt_tuning.models import t5
include 'models/t5_1_1_small.gin'
t5.T5Config:
  emb_dim = 16
  num_heads = 2
  head_dim = 8
  mlp_dim = 32
  num_encoder_layers = 1
  num_decoder_layers = 1
'''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
  """Where a dataset lies and what is in it.

  Attributes:
    folder: below the data folder.
    rows: split -> number of examples.
    links: name -> file of the folder, where there is none to train on or to evaluate on: the files
      are read under these names, in a folder of their own.
    lengths: TASK_FEATURE_LENGTHS.
  """
  folder: str
  rows: dict[str, int]
  links: dict[str, str] = dataclasses.field(default_factory=dict)
  lengths: tuple[int, int] = (96, 16)


def _superglue(name, train, validation, **options):
  return Dataset(folder=f'superglue/{name}', rows={'train': train, 'validation': validation},
                 **options)


def _mrqa(train, validation, **more):
  return Dataset(folder='mrqa', rows={'train': train, 'validation': validation, **more})


DATASETS = {
    'glue_sst2_v200': Dataset(folder='glue/SST-2', rows={'train': 67349, 'validation': 872}),
    'glue_mrpc_v200': Dataset(
        folder='glue/MRPC', rows={'train': 3667, 'validation': 408, 'test': 1725}),
    'glue_rte_v200': Dataset(folder='glue/RTE', rows={'train': 2490, 'validation': 277}),
    'glue_qqp_v200': Dataset(folder='glue/QQP', rows={'train': 8999, 'validation': 1000}),
    'super_glue_boolq_v102': _superglue('BoolQ', 2000, 3270),
    'super_glue_rte_v102': _superglue('RTE', 2490, 277),
    'super_glue_cb_v102': _superglue('CB', 250, 56),
    'super_glue_copa_v102': _superglue('COPA', 400, 100),
    'super_glue_wic_v102': _superglue('WiC', 5428, 638),
    'super_glue_multirc_v102': _superglue('MultiRC', 27243, 4848),
    'super_glue_wsc_v102': _superglue('WSC', 554, 104),
    'super_glue_record_v102': _superglue(
        'fewglue_32dev/ReCoRD', 44, 46, links={'train.jsonl': 'train.jsonl',
                                               'val.jsonl': 'dev32.jsonl'}),
    'mrqa_squad_v001': _mrqa(7938, 2910, validation_v11=10570, xquad=1190),
    'mrqa_race_v001': _mrqa(127, 128),
    'mrqa_duorc_v001': _mrqa(127, 126),
    'mrqa_relation_extraction_v001': _mrqa(127, 128),
    'e2e_nlg_v001': Dataset(
        folder='nlg/E2E', rows={'train': 4672, 'validation': 4693}, lengths=(96, 64),
        links={'trainset.csv.gz': 'devset.csv.gz', 'devset.csv.gz': 'testset_w_refs.csv.gz'}),
    'web_nlg_v001': Dataset(folder='nlg/WebNLG', lengths=(96, 64),
                            rows={'train': 18102, 'validation': 2268, 'test': 4928}),
    'samsum_v100': Dataset(
        folder='nlg/SAMSum', rows={'train': 818, 'validation': 819}, lengths=(96, 64),
        links={'train.json': 'valid.json', 'val.json': 'test.json'}),
}


def data_dir(name: str, data: pathlib.Path, scratch: pathlib.Path) -> pathlib.Path:
  """DATA_DIR of a dataset; `scratch` is filled where it needs links."""
  dataset = DATASETS[name]
  source = data / dataset.folder
  if not dataset.links:
    return source
  folder = scratch / name
  folder.mkdir(parents=True, exist_ok=True)
  for link, file in dataset.links.items():
    if not (folder / link).exists():
      (folder / link).symlink_to((source / file).resolve())
  return folder


def train(name: str, data: pathlib.Path, scratch: pathlib.Path) -> list[dict]:
  """Trains on a dataset; returns the lines of metrics.jsonl.

  Raises:
    RuntimeError: the command failed, or the splits do not have the examples that they should.
  """
  dataset, folder = DATASETS[name], data_dir(name, data, scratch)
  scratch.mkdir(parents=True, exist_ok=True)
  (scratch / 'tiny.gin').write_text(MODEL)
  inputs, targets = dataset.lengths
  run = scratch / f'run_{name}'
  values = {
      'MIXTURE_OR_TASK_NAME': name, 'DATA_DIR': folder, 'INITIAL_CHECKPOINT_PATH': 'random',
      'VOCABULARY': data / 'vocab' / 't5.sentencepiece.model', 'PROMPT_LENGTH': 4,
      'TASK_FEATURE_LENGTHS': f"{{'inputs': {inputs}, 'targets': {targets}}}", 'BATCH_SIZE': 8,
      'TRAIN_STEPS_RELATIVE': STEPS, 'EVAL_PERIOD': STEPS, 'EVAL_STEPS': 1, 'WRITE_PERIOD': 1,
      'MAX_BUCKETS': 1, 'PACKING': False, 'DOCTOR': False, 'MODEL_DIR': run}
  files = (scratch / 'tiny.gin', 'tasks/named.gin', 'peft/prompt.gin', 'runs/train.gin')
  code = main.main(['train', *(f'--gin_file={file}' for file in files),
                    *(f'--gin.{key}={value}' for key, value in values.items())])
  if code:
    raise RuntimeError(f'{name}: train ended with {code}')
  lines = map(json.loads, (run / 'metrics.jsonl').read_text().splitlines())
  return list(lines)


def count(name: str, folder: pathlib.Path) -> dict[str, int]:
  """Examples of every split."""
  found = task_lib.get(name, data_dir=str(folder))
  return {split: sum(1 for _ in found.examples(split)) for split in found.splits}


def _main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('data', type=pathlib.Path)
  parser.add_argument('--tasks', default=','.join(DATASETS))
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as scratch:
    for name in args.tasks.split(','):
      start = time.process_time()
      sizes = count(name, data_dir(name, args.data, pathlib.Path(scratch)))
      if sizes != DATASETS[name].rows:
        raise SystemExit(f'{name}: {sizes} examples, expected {DATASETS[name].rows}')
      lines = train(name, args.data, pathlib.Path(scratch))
      losses = [line['train/loss'] for line in lines if 'train/loss' in line]
      evaluated = {key: round(value, 2) for line in lines for key, value in line.items()
                   if key.startswith('eval/') and isinstance(value, float)}
      print(f'{name}: {sizes}, {time.process_time() - start:.0f} s, loss {losses[0]:.1f} to '
            f'{losses[-1]:.1f}, {evaluated}', flush=True)


if __name__ == '__main__':
  _main()
