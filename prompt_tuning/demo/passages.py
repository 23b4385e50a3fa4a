"""Passages: the plain text that the bundled backbone is pre-trained on.

A passage is a few sentences about one matter, so that what comes later depends on having
understood what came before: a review and how its writer felt, a fact and what follows from it or
whether somebody got it right, a question and its repetition in other words. That dependence is
what span corruption and language modelling learn from. A bare
label word closes about one passage in thirty, after a cue, as ratings close reviews on the web.
"""

import zlib

from prompt_tuning.demo import facts, lexicon, opinions, questions, reports, stances

HELD_OUT_SHARE = 4  # One sentence in so many is kept for the tasks and never pre-trained on.
REASON_SHARE = 0.4  # Of the judgements, so many come with a reason, before or after.
LABEL_SHARE = 0.05  # Of the passages that judge something, so many end in the bare label.

SHARES = {'review': 0.24, 'claim': 0.18, 'question': 0.16, 'report': 0.16, 'restated': 0.18,
          'life': 0.08}
FOLLOWS = ('So', 'It follows that', 'This means that', 'In other words,', 'Therefore')
AGAIN = ('In other words:', 'That is to say:', 'Or:')
RIGHT = (('That was wrong.', 'That was right.'), ('It was not so.', 'It was so.'),
         ('A mistake.', 'Correct.'), ('He told a lie.', 'He told the truth.'),
         ('No, not so.', 'Yes, indeed.'), ('False.', 'True.'))
SAME = (('They meant different things.', 'They meant the same.'),
        ('No, that is another matter.', 'Yes, it is one matter.'),
        ('The two do not agree.', 'The two agree.'), ('They differ.', 'They match.'),
        ('Two things.', 'One thing.'))
SIDES = (('They are against it.', 'They are for it.'), ('Thumbs down.', 'Thumbs up.'),
         ('This is about something bad.', 'This is about something good.'),
         ('It is seen as negative.', 'It is seen as positive.'))
REASONS = {(0, 0): 'Both blame it.', (1, 1): 'Both praise it.',
           (0, 1): 'The first blames, the second praises.',
           (1, 0): 'The first praises, the second blames.'}
ANSWERS = ('no', 'yes')
KINSHIP = ('different', 'same')


def held_out(sentence):
  """Says whether a sentence is kept for the tasks: a fixed quarter, by its letters."""
  letters = ''.join(c for c in sentence.lower() if c.isalnum())
  return zlib.crc32(letters.encode()) % HELD_OUT_SHARE == 0


def capital(clause):
  """Returns a clause as a sentence."""
  return f'{clause[0].upper()}{clause[1:]}.'


def passage(rng):
  """Draws one passage.

  Args:
    rng: a `random.Random`.

  Returns:
    (body, closing, sentences): the text is body and closing with a space between; `sentences` are
    the statements in it, none of which is held out for the tasks.
  """
  kind = rng.choices(tuple(SHARES), tuple(SHARES.values()))[0]
  while True:
    body, closing, sentences = _MAKERS[kind](rng)
    if not any(held_out(s) for s in sentences):
      return body, closing, sentences


def _close(rng, closings, truth, labels, cues, more):
  """Returns (cue, closing): what depends on `truth`, with `more` beside it, or the bare label."""
  if rng.random() < LABEL_SHARE:
    return rng.choice(cues), labels[truth]
  sentence = rng.choice(closings)[truth]
  if rng.random() < REASON_SHARE:
    sentence = rng.choice((f'{sentence} {more}', f'{more} {sentence}'))
  return '', sentence


def _review(rng):
  polarity = rng.randrange(2)
  count = rng.choice((1, 1, 1, 2, 3))
  domain = rng.choice(tuple(lexicon.REVIEWED))
  clauses = [capital(opinions.opinion(rng, polarity, opinions.PLAIN_MIX, domain))
             for _ in range(count)]
  body = ' '.join(clauses)
  second = rng.choice(opinions.CLOSINGS)[polarity]
  cue, closing = _close(rng, opinions.CLOSINGS, polarity, opinions.LABELS,
                        ('The verdict:', 'Overall:', 'In one word:', 'Opinion:'), second)
  return f'{body} {cue}'.strip(), closing, clauses


def _claim(rng):
  """An opinion, and what somebody makes of it."""
  polarity, truth = rng.randrange(2), rng.randrange(2)
  told, thing = stances.opinion(rng, polarity, opinions.PLAIN_MIX)
  heard = polarity if truth else 1 - polarity
  said = stances.claim(rng, heard, thing)
  body = rng.choice((f'{told} {capital(said)}', f'{told} {capital(said)}',
                     f'{told} {rng.choice(lexicon.PEOPLE)} said that {said}.'))
  cue, closing = _close(rng, RIGHT, truth, ANSWERS, ('Is that so?', 'The answer:', 'Correct:'),
                        REASONS[polarity, heard])
  return f'{body} {cue}'.strip(), closing, [told, said]


def _stance(rng, about, word, link):
  """One sentence and which side it takes, or two sentences and whether they agree."""
  matter, polarity = about(rng), rng.randrange(2)
  first, form = word(rng, polarity, matter)
  if rng.random() < 0.35:
    return first, rng.choice(SIDES)[polarity], [first]
  truth = rng.randrange(2)
  other = polarity if truth else 1 - polarity
  second, _ = word(rng, other, matter, form)
  body = link.format(a=first, b=second) if rng.random() < 0.3 else f'{first} {second}'
  cue, closing = _close(rng, SAME, truth, KINSHIP,
                        ('Same or different:', 'These two are:', 'Compared:'),
                        REASONS[polarity, other])
  return f'{body} {cue}'.strip(), closing, [first, second]


def _question(rng):
  return _stance(rng, stances.topic, stances.question, '{a} Somebody else asked: {b}')


def _report(rng):
  return _stance(rng, stances.plan, stances.report, 'The Herald: {a} The Post: {b}')


def _restated(rng):
  """A fact, a question or an event, and the same in other words."""
  draw = rng.random()
  if draw < 0.5:
    matter = facts.fact(rng)
    told, follows = facts.state(rng, matter), facts.restate(rng, matter)
    return capital(told), f'{rng.choice(FOLLOWS)} {follows}.', [told, follows]
  make, word = ((questions.intent, questions.ask) if draw < 0.75
                else (reports.event, reports.report))
  matter = make(rng)
  first, form = word(rng, matter)
  second, _ = word(rng, matter, form)
  return first, f'{rng.choice(AGAIN)} {second}', [first, second]


def _life(rng):
  """A person, or the order of things: sentences that no task asks about."""
  if rng.random() < 0.4:
    thing = rng.choice(lexicon.THINGS)
    quality = rng.choice(tuple(lexicon.OPPOSITES))
    kind = lexicon.KIND_OF[thing]
    lines = rng.sample((
        f'{lexicon.a(thing)} is {lexicon.a(kind)}',
        f'{lexicon.plural(thing)} are {lexicon.plural(kind)}',
        f'what is {quality} is not {lexicon.OPPOSITES[quality]}',
        f'many people want {lexicon.a(f"{quality} {thing}")}',
        f'{lexicon.a(f"{quality} {thing}")} is the opposite of '
        f'{lexicon.a(f"{lexicon.OPPOSITES[quality]} {thing}")}'), 3)
    return ' '.join(capital(x) for x in lines[:-1]), capital(lines[-1]), lines
  name = f'{rng.choice(lexicon.PEOPLE)} {rng.choice(lexicon.SURNAMES)}'
  trade, town = rng.choice(lexicon.TRADES), rng.choice(lexicon.TOWNS)
  thing, place = rng.choice(lexicon.THINGS), rng.choice(lexicon.PLACES)
  first = f'{name} is {lexicon.a(trade)} from {town}'
  lines = rng.sample((
      f'the {trade} is {rng.choice(lexicon.NUMBERS)} years old',
      f'on {rng.choice(lexicon.DAYS)}s {name.split()[0]} works at the {place}',
      f'{name.split()[0]} owns {rng.choice(lexicon.NUMBERS)} {lexicon.plural(thing)}',
      f'{name.split()[0]} was born in {rng.choice(lexicon.MONTHS)}',
      f'the {trade} likes {town}', f'the {place} in {town} is near'), 3)
  return ' '.join(capital(x) for x in [first] + lines[:-1]), capital(lines[-1]), [first] + lines


_MAKERS = {'review': _review, 'claim': _claim, 'question': _question, 'report': _report,
           'restated': _restated, 'life': _life}
