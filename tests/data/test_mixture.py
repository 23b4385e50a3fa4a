"""Rates, what an epoch of a mixture holds, and the mixtures of T5."""

import types

import numpy as np
import pytest

from prompt_tuning import vocabulary
from prompt_tuning.data import cache, loader, mixture, packing, plan, sources, task, views
from prompt_tuning.data.mixture import ByExamples, MixedDraws, Mixture
from prompt_tuning.errors import UserError

LENGTHS = {'inputs': 40, 'targets': 4}
PAIR = ['demo_nli', 'demo_sentiment']


def a_task(name, count, **kwargs):
  """Inputs of 3 to 30 bytes."""
  rows = tuple({'inputs': f'{name}{i}' + 'x' * (i * 7 % 28), 'targets': 't'} for i in range(count))
  return task.Task(
      name=name, source=sources.ListSource({'train': rows, 'validation': rows[:1]}), **kwargs)


def metric(targets, predictions):
  return {'metric': float(len(targets) + len(predictions))}


# What seqio.mixing_rate_num_examples gives.
@pytest.mark.parametrize(('options', 'count', 'rate'), [
    ({}, 2490, 2490.0), ({'maximum': 1000}, 2490, 1000.0), ({'maximum': 2**21}, 2490, 2490.0),
    ({'temperature': 2.0}, 2500, 50.0), ({'maximum': 1024, 'temperature': 10 / 3}, 2490, 8.0)])
def test_rates_by_examples(options, count, rate):
  assert ByExamples(**options)(count) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(('rates', 'sizes', 'counts'), [
    ((5.0, 15.0), (5, 15), (5, 15)),  # proportional: every example once an epoch
    ((ByExamples(), ByExamples(maximum=5)), (5, 15), (10, 10)),
    ((1, 1, 1), (3, 2, 2), (3, 2, 2)),
    ((1, 1, 1), (6, 1, 1), (3, 3, 2)),
    ((1.0, 1e6), (4, 4), (1, 8))])  # never none
def test_counts_of_an_epoch(rates, sizes, counts):
  parts = tuple((a_task(f'task{i}', size), rate) for i, (rate, size) in enumerate(
      zip(rates, sizes, strict=True)))
  joined = views.Joined({f'task{i}': views.Selected(
      types.SimpleNamespace(lengths=np.ones((size, 2), int)), np.arange(size))
      for i, size in enumerate(sizes)})
  assert Mixture(name='m', parts=parts).draws(joined).counts == counts


def some_lengths(count):
  return np.random.default_rng(count).integers(1, [40, 4], (count, 2)).astype(np.int32)


def test_every_example_comes_equally_often_and_fits_its_place():
  lengths = tuple(map(some_lengths, (3, 50, 7)))
  draws = MixedDraws(lengths, (8, 20, 7))
  epochs = [draws.rows(5, epoch) for epoch in range(200)]
  whole = np.concatenate(lengths)
  for rows in epochs:
    found = np.bincount(np.searchsorted([3, 53, 60], rows, side='right'), minlength=3)
    assert found.tolist() == [8, 20, 7]
    assert (whole[rows] <= draws.sizes).all()
  assert draws.sizes.sum() < 1.1 * whole[np.concatenate(epochs)].sum() / len(epochs)
  for count in (10, 200):
    seen = np.bincount(np.concatenate(epochs[:count]), minlength=60) / count
    for part, often in ((seen[:3], 8 / 3), (seen[3:53], 0.4), (seen[53:], 1.0)):
      assert abs(part - often).max() <= 2 / count
  assert len({tuple(np.sort(rows)) for rows in epochs[:10]}) == 10
  # A pure function of seed and epoch.
  np.testing.assert_array_equal(MixedDraws(lengths, (8, 20, 7)).rows(5, 7), epochs[7])
  assert not np.array_equal(draws.rows(6, 7), epochs[7])


@pytest.fixture(scope='module')
def joined(tmp_path_factory):
  folder = tmp_path_factory.mktemp('joined')
  built = {name: cache.build(a_task(name, size), 'train', vocabulary.ByteVocabulary(), LENGTHS,
                             folder) for name, size in (('a', 5), ('b', 40))}
  built['c'] = views.Selected(built['b'], np.asarray([7, 3]))
  return views.Joined(built)


def test_caches_behind_each_other(joined):
  assert joined.sizes == (5, 40, 2) and len(joined) == len(joined.lengths) == 47
  rows = [46, 0, 44, 5, 45, 0]
  records = joined.records(rows)
  assert [(record['task'], record['id']) for record in records] == [
      ('c', '3'), ('a', '0'), ('b', '39'), ('b', '0'), ('c', '7'), ('a', '0')]
  for (inputs, targets), record, lengths in zip(
      joined.tokens(rows), records, joined.lengths[rows].tolist(), strict=True):
    assert bytes((inputs[:-1] - 3).tolist()).decode() == record['inputs_pretokenized']
    assert [len(inputs), len(targets)] == lengths
  assert joined.parts['c'].ids == ['7', '3']
  other = views.Selected(joined.parts['b'], np.asarray([3, 7]))
  assert len({part.name for part in (*joined.parts.values(), other)}) == 4


@pytest.mark.parametrize('packed', [False, True])
def test_batches_of_a_mixture(joined, packed):
  """Buckets and packed rows hold what is drawn; any number of processes shares it."""
  draws = MixedDraws(tuple(part.lengths for part in joined.parts.values()), (12, 20, 15))
  options = dict(batch_size=8, seed=3, draws=draws)
  if packed:
    options['packing'] = packing.choose_packing(
        draws.sizes, 8, lambda inputs, targets: inputs + 20, row_multiple=2)
    assert any(group.ranks.shape[1] > 1 for group in options['packing'].groups)
  whole = loader.training_plan(joined, **options)
  halves = [loader.training_plan(joined, process_index=i, process_count=2, **options)
            for i in range(2)]
  assert whole.epoch_length == 6
  for epoch in (0, 2):
    batches = [whole[epoch * 6 + n] for n in range(6)]
    rows = np.concatenate([batch.rows.ravel() for batch in batches])
    assert sorted(rows[rows >= 0]) == sorted(draws.rows(3, epoch))
    for n, batch in enumerate(batches):
      shares = [half[epoch * 6 + n].rows for half in halves]
      np.testing.assert_array_equal(np.concatenate(shares), batch.rows)
  batches = loader.TrainLoader(joined, whole)
  batches.index = 7
  weights = [next(batches)['decoder_loss_weights'].sum() for _ in range(5)]
  batches.close()
  assert weights == [2 * (whole[n].rows >= 0).sum() for n in range(7, 12)]


def test_rare_tasks_weigh_little_in_the_choice_of_buckets():
  lengths = np.asarray([[8, 2]] * 10 + [[32, 2]] * 90)
  even = plan.choose_buckets(lengths, max_buckets=2, min_gain=0.3)
  rare = plan.choose_buckets(lengths, max_buckets=2, min_gain=0.3,
                             draws=MixedDraws((lengths[:10], lengths[10:]), (90, 10)))
  assert (even, rare) == (((32, 2),), ((8, 2), (32, 2)))


# t5.data.glue_utils and t5.data.mixtures.
T5 = {
    'glue_v002_proportional': {
        'glue_cola_v002': 8551, 'glue_sst2_v002': 67349, 'glue_mrpc_v002': 3668,
        'glue_qqp_v002': 363849, 'glue_stsb_v002': 5749, 'glue_mnli_v002': 392702,
        'glue_qnli_v002': 104743, 'glue_rte_v002': 2490, 'glue_mnli_mismatched_v002': 0,
        'glue_mnli_matched_v002': 0, 'glue_ax_v002': 0},
    'super_glue_v102_proportional': {
        'dpr_v001_simple': 1322, 'super_glue_wsc_v102_simple_train': 259,
        'super_glue_wsc_v102_simple_eval': 0, 'super_glue_boolq_v102': 9427,
        'super_glue_cb_v102': 250, 'super_glue_copa_v102': 400, 'super_glue_multirc_v102': 27243,
        'super_glue_record_v102': 138854, 'super_glue_rte_v102': 2490,
        'super_glue_wic_v102': 5428, 'super_glue_axb_v102': 0, 'super_glue_axg_v102': 0},
    'glue_mnli_and_dev_v002': {
        'glue_mnli_v002': 1, 'glue_mnli_mismatched_v002': 1, 'glue_mnli_matched_v002': 1},
    'squad_trivia_qa_equal': {'squad_v010_allanswers': 1, 'trivia_qa_v010': 1},
    'wsc_dpr_simple_proportional': {
        'dpr_v001_simple': 1322, 'super_glue_wsc_v102_simple_train': 259,
        'super_glue_wsc_v102_simple_eval': 0},
}
T5['super_glue_v102_proportional_sentinel'] = {
    'super_glue_wsc_v102_simple_1_sentinel_train': 259,
    'super_glue_wsc_v102_simple_1_sentinel_eval': 0} | {
        f'{name}_1_sentinel': rate for name, rate in T5['super_glue_v102_proportional'].items()
        if 'simple_' not in name}
SUPER_GLUE = {f'task_index_{name}': rate
              for name, rate in T5['super_glue_v102_proportional'].items()
              if 'super_glue_ax' not in name and 'dpr' not in name}
# google-research/prompt-tuning: data/super_glue.py, data/qa.py, spot/data/glue.py.
PROMPT_TUNING = {
    'task_index_super_glue_v102_examples_proportional': SUPER_GLUE,
    'task_index_super_glue_with_dpr_v102_examples_proportional':
        SUPER_GLUE | {'task_index_dpr_v001_simple': 1322},
    'mt5_super_glue_wsc_and_dev_v102_simple_examples': {
        'super_glue_wsc_v102_simple_train': 1, 'super_glue_wsc_v102_simple_eval': 1},
    'glue_mnli_and_dev_v200_examples': {
        'glue_mnli_v200': 1, 'glue_mnli_mismatched_v200': 1, 'glue_mnli_matched_v200': 1},
    'spot_glue_mnli_and_dev_v200': {
        'spot_glue_mnli_train_v200': 1, 'spot_glue_mnli_validation_matched_v200': 1,
        'spot_glue_mnli_validation_mismatched_v200': 1},
    'glue_mrpc_from_qqp_zeroshot_v002': {'glue_qqp_v002': 1, 'glue_mrpc_from_qqp_v002': 1},
    'mt5_task_index_glue_qqp_from_mrpc_zeroshot_v002_examples': {
        'task_index_glue_mrpc_v002': 1, 'task_index_glue_qqp_from_mrpc_v002': 1},
    'byt5_squad_to_duorc_examples': {'squad_v010_allanswers': 1, 'mrqa_duorc_v001': 1},
    'squad_to_mrqa_examples': {'squad_v010_allanswers': 1} | {f'mrqa_{name}_v001': 1 for name in (
        'bioasq', 'drop', 'duorc', 'race', 'relation_extraction', 'textbookqa')},
}


@pytest.mark.parametrize('name', [*T5, *PROMPT_TUNING])
def test_tasks_and_rates_of_the_reference(name):
  found = task.get(name)
  assert {member.name: rate for member, rate in found.parts} == (T5 | PROMPT_TUNING)[name]


# The rows of BERT in the GLUE leaderboard (WNLI left out of its 80.5) and in the SuperGLUE paper.
@pytest.mark.parametrize(('name', 'scores', 'average'), [
    ('glue_v002_proportional', {
        'glue_cola_v002': [60.5], 'glue_sst2_v002': [94.9], 'glue_mrpc_v002': [89.3, 85.4],
        'glue_stsb_v002': [87.6, 86.5], 'glue_qqp_v002': [72.1, 89.3],
        'glue_mnli_matched_v002': [86.7], 'glue_mnli_mismatched_v002': [85.9],
        'glue_qnli_v002': [92.7], 'glue_rte_v002': [70.1]}, (9 * 80.52 - 65.1) / 8),
    ('super_glue_v102_proportional', {
        'super_glue_boolq_v102': [77.4], 'super_glue_cb_v102': [75.7, 83.6],
        'super_glue_copa_v102': [70.6], 'super_glue_multirc_v102': [70.0, 24.1],
        'super_glue_record_v102': [72.0, 71.3], 'super_glue_rte_v102': [71.7],
        'super_glue_wic_v102': [69.6], 'super_glue_wsc_v102_simple_eval': [64.4]}, 69.0)])
def test_scores_of_the_benchmarks(name, scores, average):
  found = task.get(name)
  assert {member.name for member in found.evaluated} == set(scores)
  results = {name: {f'm{i}': value for i, value in enumerate(values)}
             for name, values in scores.items()}
  assert found.average(results) == pytest.approx(average, abs=0.01)


def test_co_training_halves_what_is_there_twice():
  rates = {member.name: rate for member, rate in task.get('all_mix').parts}
  assert (rates['glue_rte_v002'], rates['super_glue_rte_v102'], rates['c4_v020_unsupervised'],
          rates['glue_qnli_v002']) == (1245, 1245, 1e6, 104743)
  assert rates['squad_v010_allanswers'](87599) == 87599 and len(rates) == 29
  left = [member.name for member in task.get('leave_one_out_super_glue_v102_proportional').members]
  assert len(left) == 17 and not any(name.startswith(('super_', 'dpr')) for name in left)


def test_which_tasks_are_trained_and_evaluated():
  only_train = task.Task(name='t', source=sources.ListSource({'train': ()}), metric_fns=(metric,))
  only_dev = task.Task(name='d', source=sources.ListSource({'validation': ()}),
                       metric_fns=(metric,), labels=('no', 'yes'))
  both = a_task('b', 3, metric_fns=(metric,), labels=('yes', 'maybe'))
  bare = a_task('n', 2)
  names = lambda tasks: [found.name for found in tasks]  # noqa: E731
  found = Mixture(name='m', parts=((only_train, 2), (only_dev, 1), (both, 0), (bare, 1)))
  assert names(found.trained) == ['t', 'n'] and names(found.evaluated) == ['d', 'b']
  assert found.labels == ('no', 'yes')
  assert names(Mixture(name='m', parts=((bare, 1), (only_train, 0))).evaluated) == ['n']
  for parts, words in (((only_dev, 1),), 'nothing to train'), (((only_train, 1),), 'to evaluate'):
    lacking = Mixture(name='m', parts=parts)
    with pytest.raises(UserError, match=words):
      assert lacking.trained and lacking.evaluated
  for options in (dict(parts=()), dict(parts=((bare, 1), (bare, 2))), dict(parts=((bare, -1.0),)),
                  dict(parts=((bare, 1),), scored=(('x',),))):
    with pytest.raises(UserError, match="Mixture 'm'"):
      Mixture(name='m', **options)


def test_files_of_a_mixture(tmp_path):
  """Tasks that are neither trained nor scored need no files."""
  with pytest.raises(UserError, match="'mine' does not read"):
    Mixture(name='m', parts=((a_task('mine', 2), 1),)).read_from(str(tmp_path))
  found = task.get('glue_v200_proportional', data_dir=str(tmp_path))
  assert 'glue_ax_v200' not in [member.name for member in found.members]
  assert all(member.source.data_dir == str(tmp_path) for member in found.members)


@pytest.mark.parametrize(('rates', 'wanted'), [
    ('equal', (1, 1)), ([3, 1], (3, 1)), ({'demo_sentiment': 2, 'demo_nli': 1}, (1, 2)),
    ('examples', (ByExamples(maximum=9, temperature=2.0),) * 2)])
def test_a_mixture_of_a_configuration(rates, wanted):
  found = mixture.make(PAIR, rates, maximum=9, temperature=2.0)
  assert (found.name, tuple(rate for _, rate in found.parts)) == (
      'demo_nli+demo_sentiment', wanted)


@pytest.mark.parametrize(('tasks', 'options', 'words'), [
    ('demo_nli', {}, 'MIXTURE_TASKS'), ([], {}, 'MIXTURE_TASKS'),
    (PAIR, {'rates': 'sizes'}, "'examples', 'equal'"),
    (PAIR, {'rates': [1, 2, 3]}, 'MIXTURE_RATES'),
    (PAIR, {'rates': {'demo_nli': 1}}, 'MIXTURE_RATES'),
    (PAIR, {'rates': ['1', '2']}, 'MIXTURE_RATES'),
    (['demo_nli'], {'temperature': 0.0}, 'above 0'),
    (['squad_to_mrqa', 'demo_nli'], {}, 'a mixture itself'),
    (['demo_nly'], {}, 'demo_nli')])
def test_mistakes(tasks, options, words):
  with pytest.raises(UserError, match=words):
    mixture.make(tasks, **options)
