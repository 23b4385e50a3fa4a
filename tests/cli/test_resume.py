"""Which settings of a run may be given anew."""

import pytest

from prompt_tuning.cli import config, resume

THEIRS = {
    'BATCH_SIZE': '8', 'EVAL_BATCH_SIZE': '%BATCH_SIZE', 'STEPS': '30', 'PERIOD': '10',
    'train.TrainConfig.batch_size': '%BATCH_SIZE',
    'train.TrainConfig.eval_batch_size': '%EVAL_BATCH_SIZE',
    'train.TrainConfig.train_steps': '%STEPS', 'train.TrainConfig.eval_period': '%PERIOD',
    'schedules.linear_decay.decay_steps': '%STEPS', 'local_text.make.train_file': "'a.jsonl'",
    'optimizer.adafactor.learning_rate': '@schedules.linear_decay()'}


@pytest.mark.parametrize(('changes', 'words'), [
    ({}, []),
    ({'PERIOD': '5'}, []),
    ({'local_text.make.train_file': "'b.jsonl'"}, []),
    ({'EVAL_BATCH_SIZE': '4'}, []),
    # A macro is as free as all that it is used for.
    ({'STEPS': '60'}, ['STEPS: 30 there, 60 here']),
    ({'BATCH_SIZE': '16'}, ['BATCH_SIZE: 8 there, 16 here']),
    ({'train.TrainConfig.batch_size': '16'},
     ['train.TrainConfig.batch_size: 8 there, 16 here']),
    # Of what gin does not know, no default is known.
    ({'unknown.function.beta1': '0.9'}, ['unknown.function.beta1: absent there, 0.9 here']),
    ({'NEW': '1'}, []),  # nothing uses it
    ({'train.TrainConfig.batch_size': '8'}, []),
])
def test_changes(changes, words):
  assert resume.config_changes(THEIRS, THEIRS | changes) == words


def test_bindings_of_a_configuration():
  config.parse(['models/demo.gin', 'peft/prompt.gin', 'tasks/demo_sentiment.gin',
                'runs/train.gin'], [('MODEL_DIR', 'x'), ('BATCH_SIZE', '16')])
  bindings = config.bindings()
  assert bindings['BATCH_SIZE'] == '16' and bindings['SAVE_PERIOD'] == '%EVAL_PERIOD'
  assert bindings['prompt_tuning.cli.train.TrainConfig.batch_size'] == '%BATCH_SIZE'
  assert resume._resolved(bindings, 'prompt_tuning.cli.train.TrainConfig.save_period') == '1000'
  assert not any('gin.macro' in name for name in bindings)


def test_a_parameter_that_is_bound_to_its_default():
  """As after an update whose gin files bind what the run's did not know."""
  config.parse(['models/demo.gin', 'peft/prompt.gin', 'tasks/demo_sentiment.gin',
                'runs/train.gin'], [('MODEL_DIR', 'x')])
  name = 'prompt_tuning.cli.train.TrainConfig.num_microbatches'
  ours = config.bindings()
  theirs = {key: value for key, value in ours.items() if key != name}
  assert resume.config_changes(theirs, ours) == []
  assert resume.config_changes(theirs, ours | {'NUM_MICROBATCHES': '2'}) == [
      f'{name}: 1 there, 2 here']


def test_every_free_parameter_exists():
  """A parameter that was renamed would no longer be free."""
  config.parse(['models/demo.gin', 'peft/prompt.gin', 'tasks/local_text.gin', 'runs/train.gin'],
               [('MODEL_DIR', 'x'), ('INITIAL_CHECKPOINT_PATH', 'demo')])
  names = {name.rpartition('.')[2] for name in config.bindings()}
  config.parse(['models/t5_1_1_small.gin', 'peft/prompt.gin', 'tasks/sst2.gin', 'runs/train.gin'],
               [('MODEL_DIR', 'x'), ('INITIAL_CHECKPOINT_PATH', 'x')])
  names |= {name.rpartition('.')[2] for name in config.bindings()}
  assert len(resume.FREE) > 20
  assert not resume.FREE - names
