"""`prompt-tuning doctor`: checks a configuration before it costs anything.

Takes the command line of `train`. It does what `train` does at its start, then a few steps on one
batch and one batch of answers of the untuned base. It writes nothing but the cache of tokenised
examples, which `train` then finds.
"""

import contextlib
import textwrap
from collections.abc import Iterator

import jax

from prompt_tuning import partitioning, processes
from prompt_tuning.checkpoints import restore
from prompt_tuning.cli import checkup, dry_run, evaluation, process
from prompt_tuning.cli import config as config_lib
from prompt_tuning.cli import data as data_lib
from prompt_tuning.cli import model as model_lib
from prompt_tuning.cli import train as train_lib
from prompt_tuning.cli.train import TrainConfig
from prompt_tuning.data import loader as loader_lib
from prompt_tuning.data import overlap
from prompt_tuning.data.mixture import Mixture
from prompt_tuning.data.views import Joined
from prompt_tuning.decoding.generate import DecodeConfig, generate_jit
from prompt_tuning.diagnosis import data_checks, findings, model_checks, step_checks
from prompt_tuning.diagnosis.findings import Finding
from prompt_tuning.errors import UserError
from prompt_tuning.training import step
from prompt_tuning.vocabulary import load_vocabulary

FAILED = 1
_WIDTH = 96


def main(flags) -> int:
  """Runs the verb; 1 where there is a problem."""
  process.start(None if flags.dry_run else flags)
  config_lib.parse(flags.gin_file, flags.overrides, flags.gin_search_paths)
  config = config_lib.build(TrainConfig, flags.run_file)
  if flags.dry_run:
    dry_run.print_training(config)
    return 0
  found = examine(config)
  print_findings(found)
  return FAILED if any(f.severity == findings.PROBLEM for f in found) else 0


def examine(config: TrainConfig) -> list[Finding]:
  """All findings; what cannot be built is one, and ends the examination."""
  found: list[Finding] = []
  with _refusals(found):
    data_lib.check_splits(config.data)
    shared = {name: overlap.check_examples(*used)
              for name, used in data_lib.splits_in_use(config.data).items()}
    model = model_lib.load(config.model, config.data.task.labels)
    train = data_lib.training_cache(config.data, model.vocabulary, config.model_dir)
    caches = data_lib.evaluation_caches(config.data, None, model.vocabulary, config.model_dir)
    for name, cache in caches.items():
      found += checkup.of_member(config.data.task, name,
                                 data_checks.check_duplicates(shared[name], cache))
    dev = Joined(caches) if isinstance(config.data.task, Mixture) else caches[config.data.task.name]
    first, last = train_lib.step_range(config, model)
    found += checkup.cheap(config, model, train, dev, first, last)
    vocabulary = _check_vocabulary(config, model, train)
    found += vocabulary
    if any(f.severity == findings.PROBLEM for f in vocabulary):
      return found  # the ids may lie outside of the model
    found += _probe(config, model, train, first, last)
    for member in config.data.task.evaluated:
      found += checkup.of_member(config.data.task, member.name, _ask_untuned(
          config, model, member, caches[member.name]))
  return found


@contextlib.contextmanager
def _refusals(found: list[Finding]) -> Iterator[None]:
  try:
    yield
  except UserError as error:
    found.append(findings.refused(error))


def _check_vocabulary(config, model, cache):
  """Sets the vocabulary against the model and against the one beside the checkpoint."""
  stored = None
  if config.model.checkpoint != restore.RANDOM:
    base = restore.open_model(config.model.checkpoint)
    stored = base.vocabulary and load_vocabulary(base.vocabulary, base.extra_ids)
  return model_checks.check_vocabulary(
      model.vocabulary, model.peft.backbone.config.vocab_size,
      model_checks.highest_id(data_checks.Sample(cache).tokens), stored)


def _probe(config, model, cache, first, last):
  """A few real steps."""
  trainable, frozen = model.split()
  if not trainable:
    return []
  loader = data_lib.training_batches(
      config.data, cache, model, config.batch_size, config.loss, config.num_microbatches)
  batch = partitioning.shard_batch(next(loader), model.mesh)
  loader.close()
  state = train_lib.new_state(config, model, trainable, first)
  step_fn = step.make_train_step(
      model.peft, config.optimizer, loss=config.loss, num_microbatches=config.num_microbatches)
  result = step_checks.probe(step_fn, state, frozen, batch, jax.random.key(config.seed))
  sizes = step_checks.step_sizes(
      config.optimizer, trainable,
      sorted({*result.steps, *step_checks.sampled_steps(first, last)}))
  return step_checks.check_probe(result, sizes, last - first)


def _ask_untuned(config, model, task, cache):
  """Greedy answers of the bare base to one batch of the evaluation split."""
  if not task.metric_fns:
    return []  # nothing is generated
  batches = loader_lib.for_evaluation(
      cache, config.eval_batch_size, max_batches=1,
      buckets=data_lib.buckets(config.data, cache, 0), **data_lib.share(model.mesh))
  greedy = evaluation.with_length(DecodeConfig(), config.data)
  [batch] = batches
  decoded = generate_jit(model.peft.backbone, model.params,
                         partitioning.shard_batch(batch.arrays, model.mesh), greedy)
  answers = model_checks.answers_of(batch, processes.to_host(decoded.sequences), model.vocabulary)
  return model_checks.untuned_answers(answers, task.labels)


def print_findings(found: list[Finding]):
  """Prints problems first, with causes and next steps, and a count."""
  for severity in findings.SEVERITIES:
    for finding in (f for f in found if f.severity == severity):
      _print(severity, f'{finding.topic}: {finding.found}')
      if severity != findings.NOTE:
        _print('cause', finding.cause)
        _print('next', finding.next_step)
  counts = [sum(f.severity == severity for f in found) for severity in findings.SEVERITIES[:2]]
  print(f'{counts[0]} problem{"" if counts[0] == 1 else "s"}, '
        f'{counts[1]} warning{"" if counts[1] == 1 else "s"}.')


def _print(word, text):
  print(textwrap.fill(text, _WIDTH, initial_indent=f'{word:8} ', subsequent_indent=9 * ' ',
                      break_long_words=False, break_on_hyphens=False))
