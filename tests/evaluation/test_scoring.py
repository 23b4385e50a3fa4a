"""Label scores against the model's own logits, and rank classification."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluation import copy_model

from prompt_tuning.data import metrics
from prompt_tuning.data.postprocessors import LabelId
from prompt_tuning.data.task import Task
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation import scoring
from prompt_tuning.models.t5 import T5, T5Config
from prompt_tuning.peft.model import PeftModel
from prompt_tuning.peft.soft_prompt import SoftPrompt

LABELS = ('bad', 'good', 'not so good')
INPUTS = np.asarray([[50, 90, 33, 1, 0], [80, 1, 0, 0, 0], [44, 4, 60, 22, 1]], np.int32)


@pytest.fixture(scope='module')
def tiny():
  """(model, params, log-probabilities [label, row, position, V] of whole calls)."""
  config = T5Config(vocab_size=384, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32,
                    num_encoder_layers=1, num_decoder_layers=1)
  model = PeftModel(backbone=T5(config), methods=(SoftPrompt(length=4),))
  params = jax.jit(model.init)(jax.random.key(0), INPUTS, INPUTS, INPUTS)['params']
  call = jax.jit(model.apply)
  log_probs = []
  for label in scoring.label_ids(LABELS, copy_model.VOCABULARY):
    targets = np.tile(label, (3, 1))
    logits = call({'params': params}, INPUTS, np.pad(targets, ((0, 0), (1, 0)))[:, :-1], targets)
    log_probs.append(np.asarray(jax.nn.log_softmax(logits)))
  return model, params, log_probs


def test_label_ids():
  ids = scoring.label_ids(('a', 'bcd'), copy_model.VOCABULARY)
  assert ids.tolist() == [[100, 1, 0, 0], [101, 102, 103, 1]]


@pytest.mark.parametrize('normalize, max_positions', [(False, 1024), (True, 72), (False, 1)])
def test_scores_equal_those_of_whole_calls(tiny, monkeypatch, normalize, max_positions):
  """All labels at once, two at a time and one by one."""
  monkeypatch.setattr(scoring, '_MAX_POSITIONS', max_positions)
  model, params, log_probs = tiny
  ids = scoring.label_ids(LABELS, copy_model.VOCABULARY)
  # A lambda, so that no compiled function is taken from another case.
  scores = jax.jit(lambda params, batch: scoring.score_labels(
      model, params, batch, ids, normalize_by_length=normalize))(
          params, {'encoder_input_tokens': INPUTS})
  assert scores.shape == (3, 3)
  compared = 0
  for column, label in enumerate(LABELS):
    tokens = [*copy_model.VOCABULARY.encode(label), 1]
    for row in range(3):
      want = sum(log_probs[column][row, i, token] for i, token in enumerate(tokens))
      want /= len(tokens) if normalize else 1
      np.testing.assert_allclose(scores[row, column], want, rtol=1e-5)
      compared += 1
  assert compared == 9


def test_only_inputs_enter_the_compiled_function(tiny):
  model, params, _ = tiny
  ids = scoring.label_ids(LABELS, copy_model.VOCABULARY)
  batch = {'encoder_input_tokens': INPUTS}
  first = scoring.score_labels_jit(model, params, batch, ids)
  second = scoring.score_labels_jit(model, params, {**batch, 'text': 'x'}, jnp.asarray(ids))
  np.testing.assert_array_equal(first, second)


def test_rank_classification(tmp_path):
  task = Task(name='copy', source=None, labels=('bad', 'good'),
              postprocess_fn=LabelId(('bad', 'good')), metric_fns=(metrics.f1,))
  batches = [copy_model.batch([('good', 'good'), ('bad', 'good'), ('bad', 'bad')], 4),
             copy_model.batch([('goof', 'good')], 4, first=3)]
  result = scoring.rank_classification(
      task, copy_model.CopyModel(), {}, batches, copy_model.VOCABULARY,
      output_file=tmp_path / 'ranked.jsonl')
  # The input nearest to a label in its spelling gives that label.
  assert [p['prediction'] for p in result.predictions] == ['good', 'bad', 'bad', 'good']
  assert result.metrics == {
      'accuracy': 75.0, 'f1': pytest.approx(100 * 2 * 2 / (2 + 3))}
  for prediction in result.predictions:
    assert list(prediction['scores']) == ['bad', 'good']
    assert max(prediction['scores'], key=prediction['scores'].get) == prediction['prediction']
  assert len((tmp_path / 'ranked.jsonl').read_text().splitlines()) == 4


def test_labels_are_needed():
  task = Task(name='free', source=None)
  with pytest.raises(UserError, match='CLASS_LABELS'):
    scoring.rank_classification(task, copy_model.CopyModel(), {}, [], copy_model.VOCABULARY)
  with pytest.raises(UserError, match='no tokens'):
    scoring.label_ids(('a', ''), copy_model.VOCABULARY)
