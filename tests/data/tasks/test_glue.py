"""GLUE, SuperGLUE and MRQA: names, metrics, file layouts, real files."""

import pytest

from benchmarks import real_data
from prompt_tuning.data import files, metrics, task
from prompt_tuning.errors import UserError


def test_metrics_are_t5s():
  perfect = {'glue_sst2_v200': ['accuracy'], 'glue_mrpc_v200': ['f1', 'accuracy'],
             'super_glue_cb_v102': ['mean_3class_f1', 'accuracy']}
  for name, names in perfect.items():
    found = task.get(name)
    classes = list(range(len(found.labels)))
    assert found.metrics(classes, classes) == dict.fromkeys(names, 100.0)


def test_older_names_and_modules():
  for name in ('glue_sst2_v200_examples', 'mt5_glue_sst2_v200', 'byt5_glue_sst2_v200_examples'):
    assert task.get(name, module='prompt_tuning.data.glue').name == 'glue_sst2_v200'
  for module in ('prompt_tuning.spot.data.tasks', 'prompt_tuning.data.c4', 't5.data.mixtures'):
    assert task.get('byt5_taskless_xsum_v110_examples', module=module).name == 'taskless_xsum_v110'
  with pytest.raises(UserError, match="'prompt_tuning.data.glu' cannot be imported"):
    task.get('glue_sst2_v200', module='prompt_tuning.data.glu')
  assert task.get('taskless_super_glue_cb_v102_examples').name == 'taskless_super_glue_cb_v102'


# Split -> rows in ../shared/data, which holds parts of some datasets.
REAL = {
    **{name: dataset.rows for name, dataset in real_data.DATASETS.items() if not dataset.links},
    'glue_mrpc_from_qqp_v200': {'validation': 408},
    'super_glue_wsc_v102_simple_train': {'train': 259},
    'super_glue_wsc_v102_simple_eval': {'validation': 104},
    'super_glue_record_v102': {'train': 160},
    # Inputs of E2E have several rows, rows of WebNLG several references.
    'e2e_nlg_v001': {'validation': 4672, 'test': 4693},
    'samsum_v100': {'validation': 818, 'test': 819},
}
MEASURED = 300  # examples of each split: ROUGE and edit rates of thousands take minutes


@pytest.mark.parametrize('name', REAL)
def test_real_files(name, shared_dir):
  found = task.get(name, data_dir=str(shared_dir / 'data'))
  assert set(found.splits) == set(REAL[name])
  for split, size in REAL[name].items():
    examples = [example for _, example in found.examples(split)]
    assert len(examples) == size
    if found.labels and '_from_' not in name:
      assert {example['targets'] for example in examples} == set(found.labels)
    perfect = [(found.postprocess_fn(e['targets'], example=e, is_target=True),
                found.postprocess_fn(e['targets'], example=e)) for e in examples[:MEASURED]]
    for metric, value in found.metrics(*map(list, zip(*perfect, strict=True))).items():
      # Of WSC, half of the nouns asked about are not the right ones.
      right = 100 - value if metrics.lower_is_better(metric) else value
      assert right > 95 or name.endswith('simple_eval'), metric


@pytest.mark.parametrize('name, least', [
    ('boolq', 32), ('cb', 32), ('copa', 32), ('multirc', 100), ('record', 32), ('rte', 32),
    ('wic', 32), ('wsc', 32)])
def test_few_shot_files(name, least, shared_dir):
  folder = shared_dir / 'data' / 'superglue' / 'fewglue_32dev'
  found = task.get(f'super_glue_{name}_v102', data_dir=str(folder))
  for split in ('train', 'validation'):
    count = sum(1 for _ in found.examples(split))
    assert count == least if least == 32 and name != 'record' else count >= least


def test_the_folder_itself(shared_dir):
  folder = shared_dir / 'data' / 'superglue' / 'fewglue_32dev' / 'CB'
  found = task.get('super_glue_cb_v102', data_dir=str(folder))
  assert sum(1 for _ in found.examples('validation')) == 32


def test_questions_in_another_layout_are_read_as_text(shared_dir):
  rows = files.read_rows(shared_dir / 'data' / 'glue' / 'QQP' / 'olora_dev.json.gz')
  assert sum(1 for _ in rows) == 7600


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
