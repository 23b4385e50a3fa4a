"""T5's own tasks on made-up rows with the features of TensorFlow Datasets (needs t5 and seqio)."""

import functools

FEATURES = ('inputs', 'targets')
LENGTHS = {'inputs': 512, 'targets': 64}


def rows():
  """Rows by dataset: label classes in order, unlabelled ones, spaces and marks of many kinds."""
  pair = [{'first': 'It  "rained", again.', 'second': 'Was it wet ?'},
          {'first': 'a\u00a0b\u2009c \u2019tis', 'second': ' caf\u00e9 '},
          {'first': 'X', 'second': '\u4e2d\u6587 end\n'}]
  found = {}
  for name, columns, labels in (
      ('cola', ('sentence',), 2), ('sst2', ('sentence',), 2),
      ('mrpc', ('sentence1', 'sentence2'), 2), ('qqp', ('question1', 'question2'), 2),
      ('mnli', ('premise', 'hypothesis'), 3), ('mnli_matched', ('premise', 'hypothesis'), 3),
      ('mnli_mismatched', ('premise', 'hypothesis'), 3), ('ax', ('premise', 'hypothesis'), 3),
      ('qnli', ('question', 'sentence'), 2), ('rte', ('sentence1', 'sentence2'), 2),
      ('wnli', ('sentence1', 'sentence2'), 2)):
    found[f'glue/{name}'] = [
        {**dict(zip(columns, (row['first'], row['second']), strict=False)), 'idx': i,
         'label': -1 if i == labels or i == 2 else i} for i, row in enumerate(pair)]
  found['glue/stsb'] = [
      {'sentence1': row['first'], 'sentence2': row['second'], 'label': label, 'idx': 0}
      for row, label in zip(2 * pair, (2.1, 0.5, -1.0, 4.75, 2.3, 5.0), strict=True)]
  found['glue/wnli_referents'] = [
      {'sentence1': a, 'sentence2': b, 'label': i % 2, 'idx': i} for i, (a, b) in enumerate((
          ('The fish ate the worm. It was tasty.', 'The worm was tasty.'),
          ('Bob asked Tom if he can lend some money.', 'Bob asked Tom if Tom can lend some money.'),
          ('The boys took their bikes. They were fast!', "The boys' bikes were fast."),
          ('Ann hit the ball, so they saw it.', 'They saw the ball.'),
          ('Lily spoke to Donna, breaking her silence.',
           "Lily spoke to Donna, breaking Donna's silence.")))]
  texts = ['Red, not "blue".', 'It\u2019s  a\ttest\n(really).', 'caf\u00e9 \u20ac5.50']
  found['squad'] = [
      {'id': str(i), 'title': 't', 'question': 'Which\u2014one?',
       'context': f'{text} The end here.', 'answers': {'text': answers}}
      for i, (text, answers) in enumerate(zip(
          texts, (['Red', 'red, not'], ['a\ttest'], ['\u20ac5.50']), strict=True))]
  found['trivia_qa'] = [
      {'question': 'Who? ', 'entity_pages': {'wiki_context': ['ANN B., of course', 'none']},
       'search_results': {'search_context': ['It was\nann b']},
       'answer': {'normalized_aliases': ['ann b', 'course', '\u00e9t\u00e9']}}]
  found['cnn_dailymail'] = [{'article': text, 'highlights': f'{text}\n'} for text in texts]
  for language in ('de', 'fr', 'ro'):
    found[f'wmt/{language}'] = [{'en': text, language: f'({text})'} for text in texts]
  found['dpr'] = [
      {'sentence': 'Bob asked Tom if he can, he said.', 'pronoun': 'he',
       'candidates': ['Bob', 'Tom'], 'label': 1},
      {'sentence': 'It ran; it hid.', 'pronoun': 'it', 'candidates': ['the cat', 'the mouse'],
       'label': 0}]
  for name, columns in (('boolq', ('passage', 'question')), ('rte', ('premise', 'hypothesis')),
                        ('cb', ('premise', 'hypothesis')), ('axg', ('premise', 'hypothesis')),
                        ('axb', ('sentence1', 'sentence2')),
                        ('wic', ('sentence1', 'sentence2', 'word')),
                        ('copa', ('choice1', 'choice2', 'premise', 'question'))):
    found[f'super_glue/{name}'] = [
        {**{column: f'{text} {column}' for column in columns}, 'label': label, 'idx': i}
        for i, (text, label) in enumerate(zip(texts, (1, 0, -1), strict=True))]
  found['super_glue/multirc'] = [
      {'paragraph': f'<b>Sent 1: </b>{text}<br>', 'question': 'q?', 'answer': '</b>a',
       'label': label, 'idx': {'paragraph': 1, 'question': 2, 'answer': i}}
      for i, (text, label) in enumerate(zip(texts, (1, 0, -1), strict=True))]
  found['super_glue/record'] = [
      {'passage': 'A.\n@highlight\nB\n@highlight\nC', 'query': 'The @placeholder', 'idx':
       {'passage': 1, 'query': i}, 'entities': ['Ann', 'B, C'], 'answers': answers}
      for i, answers in enumerate((['Ann'], ['Ann', 'B, C']))]
  found['super_glue/wsc'] = [
      {'text': 'Ann told Bob that X she won .', 'span1_text': 'Ann', 'span1_index': 0,
       'span2_text': 'she', 'span2_index': 5, 'label': i, 'idx': i} for i in (1, 0)]
  return found


# Name in T5's registry -> rows.
TASKS = {
    **{f'glue_{name}_v002': f'glue/{name}' for name in (
        'cola', 'sst2', 'mrpc', 'qqp', 'mnli', 'mnli_matched', 'mnli_mismatched', 'ax', 'qnli',
        'rte', 'wnli', 'stsb')},
    'glue_wnli_v002_simple_eval': 'glue/wnli_referents',
    'squad_v010_allanswers': 'squad', 'squad_v010': 'squad', 'squad_v010_context_free': 'squad',
    'squad_v010_allanswers_span': 'squad', 'trivia_qa_v010': 'trivia_qa',
    'cnn_dailymail_v002': 'cnn_dailymail', 'dpr_v001_simple': 'dpr',
    'wmt_t2t_ende_v003': 'wmt/de', 'wmt14_ende_v003': 'wmt/de', 'wmt14_enfr_v003': 'wmt/fr',
    'wmt15_enfr_v003': 'wmt/fr', 'wmt16_enro_v003': 'wmt/ro', 'wmt19_ende_v003': 'wmt/de',
    **{f'super_glue_{name}_v102': f'super_glue/{name}' for name in (
        'boolq', 'cb', 'copa', 'multirc', 'record', 'rte', 'wic', 'axb', 'axg')},
    'super_glue_wsc_v102_simple_train': 'super_glue/wsc',
    'super_glue_wsc_v102_simple_eval': 'super_glue/wsc',
    'super_glue_boolq_v102_1_sentinel': 'super_glue/boolq',
    'super_glue_record_v102_1_sentinel': 'super_glue/record',
    'super_glue_wsc_v102_simple_1_sentinel_train': 'super_glue/wsc',
    'super_glue_wsc_v102_simple_1_sentinel_eval': 'super_glue/wsc',
    'dpr_v001_simple_1_sentinel': 'dpr',
}


def examples(name, given, vocabulary_file, lengths):
  """What T5's task makes of rows: dicts with ids of both features and with their texts."""
  import seqio
  import t5.data.tasks  # noqa: F401 (registers)
  vocabulary = seqio.SentencePieceVocabulary(str(vocabulary_file), 100)
  feature = seqio.Feature(vocabulary, add_eos=True)
  theirs = seqio.TaskRegistry.get(name)
  task = seqio.Task(
      name, source=seqio.FunctionDataSource(
          functools.partial(_dataset, given=given), splits=['train']),
      preprocessors=theirs.preprocessors, output_features={f: feature for f in FEATURES},
      postprocess_fn=theirs.postprocess_fn, metric_fns=[])
  return list(task.get_dataset(lengths, 'train', shuffle=False).as_numpy_iterator())


def golden(name, vocabulary_file):
  """[[text of inputs, of targets, ids of inputs, of targets]] of a task's rows, as it is stored.

  TriviaQA keeps no texts: they are read off the ids.
  """
  import seqio
  vocabulary = seqio.SentencePieceVocabulary(str(vocabulary_file), 100)
  made = examples(name, rows()[TASKS[name]], vocabulary_file, LENGTHS)
  return [[*(ex[f'{f}_pretokenized'].decode() if f'{f}_pretokenized' in ex
             else vocabulary.decode(ex[f].tolist()) for f in FEATURES),
           *(ex[f].tolist() for f in FEATURES)] for ex in made]


def _dataset(split, shuffle_files=False, seed=None, *, given):
  del split, shuffle_files, seed
  import tensorflow as tf
  datasets = [tf.data.Dataset.from_tensors(_tensors(row)) for row in given]
  return functools.reduce(lambda a, b: a.concatenate(b), datasets)


def _tensors(value, key=''):
  import tensorflow as tf
  if isinstance(value, dict):
    return {name: _tensors(part, name) for name, part in value.items()}
  kinds = {float: tf.float32, int: tf.int32 if key in ('idx', 'span1_index', 'span2_index')
           else tf.int64}
  return tf.constant(value, kinds.get(type(value)))
