"""Rows of published files whose rows hold several examples, as TensorFlow Datasets flattens them.

Each function takes one row of a file and yields flat rows. Rows that are flat already pass.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

Row = Mapping[str, Any]


def multirc(row: Row) -> Iterator[Row]:
  """One row for each answer of each question of a SuperGLUE MultiRC passage."""
  if 'paragraph' in row:
    yield row
    return
  passage = row['passage']
  for question in passage['questions']:
    for answer in question['answers']:
      yield {
          'paragraph': passage['text'], 'question': question['question'], 'answer': answer['text'],
          'label': answer.get('label', -1),
          'idx': {'paragraph': row['idx'], 'question': question['idx'], 'answer': answer['idx']}}


def record(row: Row) -> Iterator[Row]:
  """One row for each query of a SuperGLUE ReCoRD passage; entities and answers sorted."""
  if 'qas' not in row:
    yield {'entities': [], 'answers': [], **row}
    return
  text = row['passage']['text']
  entities = {text[e['start']:e['end'] + 1] for e in row['passage']['entities']}
  for query in row['qas']:
    yield {
        'passage': text, 'query': query['query'], 'entities': sorted(entities),
        'answers': sorted({answer['text'] for answer in query.get('answers', [])}),
        'idx': {'passage': row['idx'], 'query': query['idx']}}


def wsc(row: Row) -> Iterator[Row]:
  """A SuperGLUE WSC row with its spans written as in its text, where they are not."""
  row = {**row, **row.get('target', {})}
  words = row['text'].split()
  for span in ('span1', 'span2'):
    found = row[f'{span}_text']
    if found in row['text'] or ' and Zinoviev' in found or found.startswith('Kamenev, '):
      continue  # Kamenev and Zinoviev: their names stand apart in the text
    if 'theyscold' in found:
      row['span2_index'] = 10
    case = str.lower if words[row[f'{span}_index']][0].islower() else str.upper
    row[f'{span}_text'] = (case(found[0]) + found[1:]).rstrip('.').replace('\n', ' ')
  yield row


def questions(row: Row) -> Iterator[Row]:
  """Questions with contexts of an article of SQuAD, of MRQA 2019's lines, or flat ones.

  MRQA's line with a header gives none. White space of MRQA texts becomes single spaces, and the
  first answer that was found in the context is the one to train on, as
  google-research/prompt-tuning has them. https://github.com/mrqa/MRQA-Shared-Task-2019
  """
  if 'header' in row:
    return
  if 'paragraphs' in row:
    yield from _squad(row)
  elif 'qas' in row:
    for question in row['qas']:
      found = question.get('detected_answers') or [{}]
      yield _question(question['qid'], question['question'], row['context'], question['answers'],
                      found[0].get('text'))
  else:
    answers = row['answers']  # one text in the TSV files of google-research/prompt-tuning
    answers = answers.split('|||') if isinstance(answers, str) else answers
    yield _question(row['id'], row['question'], row['context'], answers, row.get('answer'))


def nli(row: Row) -> Iterator[Row]:
  """A row of ANLI, whose labels are letters, or of SNLI, where annotators may have no majority."""
  key = 'gold_label' if 'gold_label' in row else 'label'
  names = {'e': 'entailment', 'n': 'neutral', 'c': 'contradiction', '-': -1}
  yield {**row, key: names.get(row.get(key), row.get(key))}


def review_file(row: Row) -> Iterator[Row]:
  """A review of IMDB (https://aclanthology.org/P11-1015), whose folder says what it is."""
  yield {'label': row['file'].split('/')[-2], **row} if 'file' in row else row


def yelp(row: Row) -> Iterator[Row]:
  """A line `"2","text"` of Yelp's files as TensorFlow Datasets reads it: the text as it stands."""
  line = row['text'].rstrip()
  yield {'label': {'1': 'negative', '2': 'positive'}[line[1]], 'text': line[5:-1].strip()}


def email(row: Row) -> Iterator[Row]:
  """A mail of AESLC (https://arxiv.org/abs/1906.03497): body, blank line, @subject, subjects."""
  if 'file' not in row:
    yield row
    return
  body, _, rest = row['text'].partition('\n\n')
  subject = rest.partition('\n')[2].split('\n\n')[0]
  yield {'email_body': f'{body}\n', 'subject_line': subject.rstrip('\n') + '\n'}


def pronoun(row: Row) -> Iterator[Row]:
  """A block of definite pronoun resolution: sentence, pronoun, `A,B`, the right one."""
  if 'lines' not in row:
    yield row
    return
  sentence, word, nouns, right = row['lines']
  candidates = [noun.strip() for noun in nouns.split(',')]
  if right not in candidates:
    raise KeyError(right)
  yield {'sentence': sentence, 'pronoun': word, 'candidates': candidates,
         'label': candidates.index(right)}


def translation(row: Row) -> Iterator[Row]:
  """A pair of sentences under their languages' codes, which some files call `translation`."""
  yield row.get('translation', row)


def triples(row: Row) -> Iterator[Row]:
  """An entry of WebNLG's JSON, of DART's, or a flat row."""
  if 'annotations' in row:
    yield {'triples': [' | '.join(triple) for triple in row['tripleset']],
           'lexs': [annotation['text'] for annotation in row['annotations']]}
  elif 'lexs' in row:
    yield row
  else:
    for entry in row.values():  # under its number
      yield {
          'triples': [' | '.join(triple[part] for part in ('subject', 'property', 'object'))
                      for triple in entry['modifiedtripleset']],
          'lexs': [lex['lex'] for lex in entry['lexicalisations']]}


def _squad(row: Row) -> Iterator[Row]:
  """Rows of one article."""
  for paragraph in row['paragraphs']:
    for question in paragraph['qas']:
      answers = [answer['text'] for answer in question['answers']]
      yield {'id': question['id'], 'question': question['question'],
             'context': paragraph['context'], 'answers': answers, 'answer': _first(answers)}


def _question(
    name: str, question: str, context: str, answers: list[str], answer: str | None) -> Row:
  answers = [_single_spaces(text) for text in answers]
  return {'id': name, 'question': _single_spaces(question), 'context': _single_spaces(context),
          'answers': answers,
          'answer': _first(answers) if answer is None else _single_spaces(answer)}


def _first(answers: list[str]) -> str:
  return answers[0] if answers else ''


def _single_spaces(text: str) -> str:
  return re.sub(r'\s+', ' ', text)
