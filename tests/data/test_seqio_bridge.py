"""Tasks there and back; runs where seqio is installed."""

import functools
import importlib.util
import json

import numpy as np
import pytest

from prompt_tuning import vocabulary
from prompt_tuning.data import cache, cache_processes, sources, task
from prompt_tuning.data.tasks import local_text
from prompt_tuning.errors import UserError

HAS_SEQIO = importlib.util.find_spec('seqio') is not None
needs_seqio = pytest.mark.skipif(not HAS_SEQIO, reason='seqio is not installed')
# TensorFlow and seqio raise warnings of their own while they are imported.
pytestmark = pytest.mark.filterwarnings('default')
LENGTHS = {'inputs': 12, 'targets': 6}
THEIR_TASKS = '''
import functools
import seqio
import tensorflow as tf

def dataset(split, shuffle_files=False, seed=None, *, start=0):
  rows = [str(i) * (3 + 4 * (i % 4)) for i in range(start, start + 6)]
  return tf.data.Dataset.from_tensor_slices({'inputs': rows, 'targets': rows, 'n': list(range(6))})

def accuracy(targets, predictions):
  return {'accuracy': sum(t == p for t, p in zip(targets, predictions)) / len(targets)}

feature = seqio.Feature(seqio.ByteVocabulary())
for name, start in (('their_task', 0), ('their_other_task', 6)):
  seqio.TaskRegistry.add(
      name, source=seqio.FunctionDataSource(
          functools.partial(dataset, start=start), splits=['train', 'validation']),
      preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim],
      postprocess_fn=lambda text, example=None, is_target=False: text + '!',
      metric_fns=[accuracy], output_features={'inputs': feature, 'targets': feature})
seqio.MixtureRegistry.add('their_mixture', [('their_task', 3.0), ('their_other_task', 1.0)])
'''


@pytest.fixture(scope='module')
def their_module(tmp_path_factory):
  folder = tmp_path_factory.mktemp('their')
  (folder / 'their_seqio_tasks.py').write_text(THEIR_TASKS)
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(folder)
    yield 'their_seqio_tasks'


def test_raw_fields_are_part_of_the_fingerprint(monkeypatch):
  from prompt_tuning.data import seqio_bridge
  rows = [[{'inputs': [3], 'targets': [4], 'answers': answers}] for answers in (['x'], ['y'])]
  found = []
  for examples in rows:
    monkeypatch.setattr(seqio_bridge, '_examples', lambda *_, examples=examples: examples)
    found.append(seqio_bridge.SeqioSource('t').fingerprint('train'))
  assert found[0] != found[1]


def test_without_seqio_the_message_says_so(monkeypatch):
  import sys

  from prompt_tuning.data import seqio_bridge
  monkeypatch.setitem(sys.modules, 'seqio', None)
  assert seqio_bridge.find('anything') is None
  with pytest.raises(UserError, match='needs seqio'):
    seqio_bridge.register(task.get('glue_sst2_v200'), vocabulary.ByteVocabulary())


@needs_seqio
def test_the_cache_of_a_seqio_task_is_written_by_two_processes(their_module, tmp_path):
  found = task.get('their_task', module=their_module)
  write = functools.partial(cache_processes.write_in_processes, processes=2, modules=[their_module])
  infos = [cache.build(found, 'train', vocabulary.ByteVocabulary(), LENGTHS, tmp_path / name,
                       **options).info for name, options in (('a', {}), ('b', {'write': write}))]
  assert infos[0] == infos[1] and infos[0]['examples'] == 6


@needs_seqio
def test_a_seqio_task_by_name(their_module, tmp_path):
  found = task.get('their_task', module=their_module)
  vocab = vocabulary.ByteVocabulary()
  built = cache.build(found, 'validation', vocab, LENGTHS, tmp_path)
  assert len(built) == 6
  import seqio
  wanted = seqio.get_mixture_or_task('their_task').get_dataset(
      LENGTHS, 'validation', shuffle=False).as_numpy_iterator()
  for (inputs, targets), example in zip(built.tokens(range(6)), wanted, strict=True):
    assert inputs.tolist() == example['inputs'].tolist()
    assert targets.tolist() == example['targets'].tolist()
  assert built.info['truncated']['inputs']['examples'] > 0  # SeqIO cut nothing unseen
  record = built.records([1])[0]
  assert record['targets_pretokenized'] == '1111111' and record['example']['n'] == 1
  assert found.postprocess_fn('a', example={}, is_target=True) == 'a!'
  assert found.metrics(['a', 'b'], ['a', 'c']) == {'accuracy': 0.5}
  with pytest.raises(UserError, match='brings its own vocabulary'):
    cache.build(found, 'train', vocabulary.ByteVocabulary(7), LENGTHS, tmp_path)


@needs_seqio
def test_a_mixture_keeps_its_rates(their_module, tmp_path):
  found = task.get('their_mixture', module=their_module)
  assert [(member.name, rate) for member, rate in found.parts] == [
      ('their_other_task', 1.0), ('their_task', 3.0)]
  assert found.trained == found.evaluated == found.members
  built = cache.build(found.members[1], 'train', vocabulary.ByteVocabulary(), LENGTHS, tmp_path)
  assert [record['inputs_pretokenized'][0] for record in built.records(range(6))] == list('012345')


@needs_seqio
def test_ours_registered_there(tmp_path):
  import seqio

  from prompt_tuning.data import seqio_bridge
  (tmp_path / 'train.jsonl').write_text(''.join(
      json.dumps({'t': 'x' * (3 * i), 'y': i % 2}) + '\n' for i in range(8)))
  ours = local_text.make(
      train_file=str(tmp_path / 'train.jsonl'), eval_file=str(tmp_path / 'train.jsonl'),
      input_template='say {t}', target_field='y', class_labels=['no', 'yes'])
  vocab = vocabulary.ByteVocabulary()
  theirs = seqio_bridge.register(ours, vocab, name='ours_in_seqio')
  assert seqio_bridge.register(ours, vocab, name='ours_in_seqio') is theirs
  built = cache.build(ours, 'train', vocab, LENGTHS, tmp_path)
  rows = list(theirs.get_dataset(LENGTHS, 'train', shuffle=False).as_numpy_iterator())
  assert len(rows) == len(built) == 8
  for (inputs, targets), row in zip(built.tokens(range(8)), rows, strict=True):
    np.testing.assert_array_equal(inputs, row['inputs'])
    np.testing.assert_array_equal(targets, row['targets'])
  assert theirs.postprocess_fn('yes', example=rows[1], is_target=True) == 1
  assert theirs.predict_metric_fns[0]([1, 0], [1, 1]) == {'accuracy': 50.0}
  assert seqio.get_mixture_or_task('ours_in_seqio') is theirs


@needs_seqio
def test_built_in_tasks_equal_seqios_ids(golden_dir, shared_dir, tmp_path):
  import dataclasses

  from prompt_tuning.data import seqio_bridge
  golden = json.loads((golden_dir / 'text' / 'preprocess.json').read_text())
  vocab = vocabulary.load_vocabulary(shared_dir / 'data' / 'vocab' / 't5.sentencepiece.model')
  compared = 0
  for name in ('glue_sst2_v002', 'super_glue_cb_v102'):
    wanted = golden['tasks'][name]
    source = sources.ListSource({'train': tuple(golden['raw'][wanted['raw']])})
    theirs = seqio_bridge.register(  # T5 itself may have registered the name
        dataclasses.replace(task.get(name), source=source), vocab, name=f'ours_{name}')
    rows = theirs.get_dataset(None, 'train', shuffle=False).as_numpy_iterator()
    for row, example in zip(rows, wanted['examples'], strict=True):
      assert row['inputs'].tolist() == example['inputs']
      assert row['targets'].tolist() == example['targets']
      compared += 1
  assert compared == 4
