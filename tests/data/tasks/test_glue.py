"""GLUE and SuperGLUE tasks: the reference's strings, ids, labels and file layouts."""

import json

import pytest

from prompt_tuning import vocabulary
from prompt_tuning.data import cache, sources, task
from prompt_tuning.data.postprocessors import LabelId
from prompt_tuning.errors import UserError

TASKS = ['glue_sst2_v002', 'glue_rte_v002', 'glue_mrpc_v002', 'glue_qqp_v002',
         'super_glue_boolq_v102', 'super_glue_rte_v102', 'super_glue_cb_v102']


@pytest.fixture(scope='module')
def golden(golden_dir):
  return json.loads((golden_dir / 'text' / 'preprocess.json').read_text())


@pytest.fixture(scope='module')
def vocab(shared_dir):
  return vocabulary.load_vocabulary(shared_dir / 'data' / 'vocab' / 't5.sentencepiece.model')


def with_examples(name, golden):
  """The task reading the golden's raw examples."""
  import dataclasses
  found = task.get(name)
  raw = golden['raw'][golden['tasks'][name]['raw']]
  return dataclasses.replace(found, source=sources.ListSource({'train': tuple(raw)}))


@pytest.mark.parametrize('name', TASKS + [f'taskless_{n}' for n in TASKS])
def test_strings_and_ids_equal_the_reference(name, golden, vocab, tmp_path):
  built = cache.build(
      with_examples(name, golden), 'train', vocab, {'inputs': None, 'targets': None}, tmp_path)
  expected = golden['tasks'][name]['examples']
  assert len(built) == len(expected) > 0
  rows = range(len(built))
  for wanted, (inputs, targets), record in zip(
      expected, built.tokens(rows), built.records(rows), strict=True):
    assert inputs.tolist() == wanted['inputs']
    assert targets.tolist() == wanted['targets']
    assert record['inputs_pretokenized'] == wanted['inputs_pretokenized']
    assert record['targets_pretokenized'] == wanted['targets_pretokenized']
    assert record['example']['idx'] == wanted['idx']


def test_labels_and_postprocess_equal_the_reference(golden, golden_dir):
  post = json.loads((golden_dir / 'text' / 'postprocess.json').read_text())
  for name in TASKS:
    found = task.get(name)
    assert list(found.labels) == post['label_classes'][golden['tasks'][name]['raw']]
    assert [found.postprocess_fn(x, example={}, is_target=True) for x in found.labels] == list(
        range(len(found.labels)))
  label_id = LabelId(('not_entailment', 'entailment'))
  for text, expected in post['string_label_to_class_id']:
    assert label_id(text) == expected, text


def test_metrics_are_t5s():
  perfect = {'glue_sst2_v200': ['accuracy'], 'glue_mrpc_v200': ['f1', 'accuracy'],
             'super_glue_cb_v102': ['mean_3class_f1', 'accuracy']}
  for name, metrics in perfect.items():
    found = task.get(name)
    classes = list(range(len(found.labels)))
    assert found.metrics(classes, classes) == dict.fromkeys(metrics, 100.0)


def test_older_names_and_modules():
  for name in ('glue_sst2_v200_examples', 'mt5_glue_sst2_v200', 'byt5_glue_sst2_v200_examples'):
    assert task.get(name, module='prompt_tuning.data.glue').name == 'glue_sst2_v200'
  assert task.get('taskless_super_glue_cb_v102_examples').name == 'taskless_super_glue_cb_v102'


@pytest.mark.parametrize('name, sizes', [
    ('glue_sst2_v200', {'train': 67349, 'validation': 872}),
    ('glue_mrpc_v200', {'train': 3667, 'validation': 408, 'test': 1725}),
    ('glue_rte_v200', {'train': 2490, 'validation': 277}),
    ('glue_qqp_v200', {'train': 8999, 'validation': 1000}),
    ('super_glue_boolq_v102', {'train': 2000, 'validation': 3270}),
    ('super_glue_rte_v102', {'train': 2490, 'validation': 277}),
    ('super_glue_cb_v102', {'train': 250, 'validation': 56}),
])
def test_real_files(name, sizes, shared_dir):
  found = task.get(name, data_dir=str(shared_dir / 'data'))
  assert set(found.splits) == set(sizes)
  for split, size in sizes.items():
    targets = [example['targets'] for _, example in found.examples(split)]
    assert len(targets) == size
    assert set(targets) == set(found.labels)


def test_the_folder_itself_and_few_shot_files(shared_dir):
  folder = shared_dir / 'data' / 'superglue' / 'fewglue_32dev'
  for data_dir in (folder, folder / 'CB'):
    found = task.get('super_glue_cb_v102', data_dir=str(data_dir))
    assert sum(1 for _ in found.examples('validation')) == 32


def write(folder, **files):
  folder.mkdir(parents=True, exist_ok=True)
  for name, text in files.items():
    (folder / name.replace('__', '.')).write_text(text)
  return str(folder)


def test_folder_errors(tmp_path):
  with pytest.raises(UserError, match='is no folder'):
    task.get('glue_sst2_v200', data_dir=str(tmp_path / 'absent')).splits  # noqa: B018
  with pytest.raises(UserError, match='no train file.*train.tsv.*SST-2'):
    list(task.get('glue_sst2_v200', data_dir=str(tmp_path)).examples('train'))
  data = write(tmp_path / 'a', train__tsv='text\tlabel\nx\t1\n')
  with pytest.raises(UserError, match="no field 'sentence'; the first row has 'text', 'label'"):
    list(task.get('glue_sst2_v200', data_dir=data).examples('train'))
  data = write(tmp_path / 'b', train__tsv='sentence\tlabel\nx\tfair\n')
  with pytest.raises(UserError, match=r"train.tsv:2: 'fair' is no label.*negative, positive"):
    list(task.get('glue_sst2_v200', data_dir=data).examples('train'))
  data = write(tmp_path / 'c', dev_1__tsv='sentence\tlabel\n', dev_2__tsv='sentence\tlabel\n')
  with pytest.raises(UserError, match='several files'):
    task.get('glue_sst2_v200', data_dir=data).splits  # noqa: B018


def test_label_spellings_and_short_rows(tmp_path):
  rows = '{"question": "q", "passage": "p", "label": true}\n' * 2
  rows += '{"question": "q", "passage": "p", "label": "false"}\n'
  data = write(tmp_path / 'BoolQ', train__jsonl=rows)
  found = task.get('super_glue_boolq_v102', data_dir=data)
  assert [ex['targets'] for _, ex in found.examples('train')] == ['True', 'True', 'False']
  data = write(tmp_path / 'QQP', train__tsv='question1\tquestion2\tis_duplicate\na\tb\t1\nbroken\n')
  found = task.get('glue_qqp_v200', data_dir=data)
  assert [i for i, _ in found.examples('train')] == ['2']
  data = write(tmp_path / 'SST-2', test__tsv='index\tsentence\n0\tx\n')
  found = task.get('glue_sst2_v200', data_dir=data)
  assert [ex['targets'] for _, ex in found.examples('test')] == ['<unk>']


def test_tfds_absent_says_what_to_do():
  try:
    import tensorflow_datasets  # noqa: F401
    pytest.skip('tensorflow_datasets is installed')
  except ImportError:
    pass
  with pytest.raises(UserError, match='Set DATA_DIR'):
    list(task.get('glue_sst2_v200').examples('train'))
