"""A classification and a generation dataset as published, trained on for 20 steps."""

import sys

import pytest

from benchmarks import real_data


@pytest.mark.parametrize('name', ['super_glue_cb_v102', 'mrqa_race_v001'])
def test_trains(name, shared_dir, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  data = shared_dir / 'data'
  folder = real_data.data_dir(name, data, tmp_path)
  assert real_data.count(name, folder) == real_data.DATASETS[name].rows
  lines = real_data.train(name, data, tmp_path)
  losses = [line['train/loss'] for line in lines if 'train/loss' in line]
  assert len(losses) == real_data.STEPS and all(loss > 0 for loss in losses)
  assert any('eval/' in key for line in lines for key in line)
