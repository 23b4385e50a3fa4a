"""The scripts for clusters: read by bash, and what the TPU script asks the workers to do."""

import os
import pathlib
import subprocess

import pytest

from prompt_tuning.cli import main

SCRIPTS = pathlib.Path(__file__).resolve().parent.parent / 'scripts'
SHELL = sorted(path.name for path in SCRIPTS.iterdir() if path.suffix in ('.sh', '.sbatch'))


@pytest.mark.parametrize('name', SHELL)
def test_bash_can_read_it(name):
  assert {'tpu_pod.sh', 'slurm.sbatch'} <= set(SHELL)
  done = subprocess.run(['bash', '-n', str(SCRIPTS / name)], capture_output=True, text=True)
  assert done.returncode == 0 and not done.stderr


def test_every_worker_gets_the_words_as_they_were_given(tmp_path):
  """A stand-in for gcloud keeps what it is called with and runs the workers' command here."""
  (tmp_path / 'gcloud').write_text('#!/bin/bash\nprintf "%s\\n" "$@" > "$KEPT"\n'
                                   'last="${@: -1}"; bash -c "${last#--command=}"\n')
  python = tmp_path / 'checkout' / '.venv' / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  python.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
  for path in (tmp_path / 'gcloud', python):
    path.chmod(0o755)
  words = ['train', "--gin.CLASS_LABELS=['yes', 'no']", '--gin.INPUT_TEMPLATE=say: {text}']
  env = dict(os.environ, PATH=f'{tmp_path}:{os.environ["PATH"]}', KEPT=str(tmp_path / 'kept'),
             TPU='slice', ZONE='zone', FOLDER=str(tmp_path / 'checkout'))
  done = subprocess.run(['bash', SCRIPTS / 'tpu_pod.sh', '--', *words], env=env, check=True,
                        capture_output=True, text=True)
  assert done.stdout.splitlines() == ['-m', 'prompt_tuning', *words]
  kept = (tmp_path / 'kept').read_text().splitlines()
  assert kept[:7] == ['compute', 'tpus', 'tpu-vm', 'ssh', 'slice', '--worker=all', '--zone=zone']


def test_the_jobset_has_flags_of_train():
  yaml = pytest.importorskip('yaml')
  job = yaml.safe_load((SCRIPTS / 'jobset.yaml').read_text())
  pods = job['spec']['replicatedJobs'][0]['template']['spec']
  container, = pods['template']['spec']['containers']
  assert container['command'][:2] == ['prompt-tuning', 'train']
  count, = (word for word in container['command'] if word.startswith('--num_processes'))
  assert pods['completions'] == pods['parallelism']
  assert count == f'--num_processes={pods["completions"]}'
  index = '--process_id=$(JOB_COMPLETION_INDEX)'
  assert index in container['command']  # Kubernetes fills it in
  words = [word.replace(index, '--process_id=3') for word in container['command'][1:]]
  verb, flags = main.parse_flags(words)
  assert verb == 'train' and flags.num_processes == 4 and flags.process_id == 3
  assert flags.coordinator_address == 'sst2-train-0-0.sst2:8476'
