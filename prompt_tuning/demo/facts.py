"""Facts about the small world: a meaning, and the sentences that state it.

A `Fact` is a tuple of slots. `state` says it in full, `restate` says the same or less in other
words, so that whoever predicts the second from the first learns what follows from what.
"""

import dataclasses

from prompt_tuning.demo import lexicon

# Transfers: (active, converse) in the past; the giver is {s}, the receiver {r}.
TRANSFERS = (
    (('sold', 'to'), ('bought', 'from')), (('gave', 'to'), ('received', 'from')),
    (('lent', 'to'), ('borrowed', 'from')), (('sent', 'to'), ('got', 'from')),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fact:
  """One fact; which slots mean something depends on `kind`."""
  kind: str
  subject: str
  other: str = ''
  thing: str = ''
  quality: str = ''
  relation: int = 0
  day: str = ''
  place: str = ''


def person(rng):
  """Returns a person's name, or a trade with its article (`the baker`)."""
  return rng.choice(lexicon.PEOPLE) if rng.random() < 0.5 else f'the {rng.choice(lexicon.TRADES)}'


def two_people(rng):
  """Returns two different people."""
  first, second = person(rng), person(rng)
  return (first, second) if first != second else two_people(rng)


def place(rng):
  """Returns a place with its article."""
  return f'the {rng.choice(lexicon.PLACES)}'


def day(rng, share=0.4):
  """Returns a day, or '' where the fact does not say when."""
  return rng.choice(lexicon.DAYS) if rng.random() < share else ''


def _transfer(rng):
  subject, other = two_people(rng)
  return Fact(kind='transfer', subject=subject, other=other, thing=rng.choice(lexicon.THINGS),
              quality=rng.choice(lexicon.COLOURS + tuple(lexicon.OPPOSITES)),
              relation=rng.randrange(len(TRANSFERS)), day=day(rng))


def _quality(rng):
  return Fact(kind='quality', subject=person(rng), thing=rng.choice(lexicon.THINGS),
              quality=rng.choice(tuple(lexicon.OPPOSITES)))


def _comparison(rng):
  subject, other = rng.sample(lexicon.THINGS, 2)
  return Fact(kind='comparison', subject=f'the {subject}', other=f'the {other}',
              quality=rng.choice(tuple(lexicon.COMPARATIVES)))


def _location(rng):
  return Fact(kind='location', subject=person(rng), thing=rng.choice(lexicon.ROOMS),
              place=place(rng), day=day(rng))


def _visit(rng):
  subject, other = two_people(rng)
  return Fact(kind='visit', subject=subject, other=other,
              day=day(rng), relation=rng.randrange(len(MEETINGS)))


# Two-place events with their passive: subject did it to other.
MEETINGS = (('praised', 'praised'), ('helped', 'helped'), ('called', 'called'),
            ('followed', 'followed'), ('thanked', 'thanked'), ('taught', 'taught'),
            ('invited', 'invited'), ('blamed', 'blamed'), ('beat', 'beaten'), ('drew', 'drawn'))
MAKERS = {'transfer': _transfer, 'quality': _quality, 'comparison': _comparison,
          'location': _location, 'visit': _visit}


def fact(rng):
  """Returns a new fact."""
  return MAKERS[rng.choice(tuple(MAKERS))](rng)


def state(rng, f):
  """Returns a clause that states every slot of the fact."""
  if f.kind == 'quality':
    return f'{genitive(f.subject)} {f.thing} is {f.quality}'
  if f.kind == 'comparison':
    return f'{f.subject} is {f.quality} than {f.other}'
  if f.kind == 'transfer':
    (verb, to), _ = TRANSFERS[f.relation]
    core = f"{f.subject} {verb} {lexicon.a(f'{f.quality} {f.thing}')} {to} {f.other}"
  elif f.kind == 'location':
    core = f'{f.subject} was in the {f.thing} of {f.place}'
  else:
    core = f'{f.subject} {MEETINGS[f.relation][0]} {f.other}'
  return _dated(rng, core, f.day, 1.0)


def genitive(who):
  """Returns the possessive: `the baker` -> `the baker's`."""
  return f"{who}'" if who.endswith('s') else f"{who}'s"


def restate(rng, f):
  """Returns a clause that follows from the fact, in other words, often with less detail."""
  return {'transfer': _restate_transfer, 'quality': _restate_quality,
          'comparison': _restate_comparison, 'location': _restate_location,
          'visit': _restate_visit}[f.kind](rng, f)


def _restate_transfer(rng, f):
  what = f.thing
  if rng.random() < 0.3:
    what = f'{f.quality} {what}'
  elif rng.random() < 0.4:
    what = lexicon.KIND_OF[what]
  what = lexicon.a(what)
  (give, to), (take, from_) = TRANSFERS[f.relation]
  core = rng.choice((f'{f.other} {take} {what} {from_} {f.subject}',
                     f'{f.subject} {give} {what} {to} {f.other}',
                     f'{what} went from {f.subject} to {f.other}'))
  return _dated(rng, core, f.day, 0.5)


def _dated(rng, core, day, share):
  if not day or rng.random() >= share:
    return core
  return rng.choice((f'{core} on {day}', f'on {day} {core}'))


def _restate_quality(rng, f):
  what = f.thing
  if rng.random() < 0.3:
    what = lexicon.KIND_OF[what]
  owner = genitive(f.subject)
  said = f.quality if rng.random() < 0.4 else f'not {lexicon.OPPOSITES[f.quality]}'
  return rng.choice((f'{owner} {what} is {said}',
                     f'{f.subject} has {lexicon.a(what)} that is {said}',
                     f'the {what} of {f.subject} is {said}'))


def _restate_comparison(rng, f):
  converse = f'{f.other} is {lexicon.COMPARATIVES[f.quality]} than {f.subject}'
  return rng.choice((converse, converse, f'{f.subject} is {f.quality} than {f.other}',
                     f'{f.other} is not {f.quality} than {f.subject}',
                     f'{f.subject} is not {lexicon.COMPARATIVES[f.quality]} than {f.other}'))


def _restate_location(rng, f):
  if rng.random() < 0.4:
    core = rng.choice((f'{f.subject} was in the {f.thing}', f'the {f.thing} had {f.subject} in it'))
  else:
    core = rng.choice((f'{f.subject} was at {f.place}', f'{f.subject} was in {f.place}',
                       f'{f.place} had {f.subject} in it'))
  return _dated(rng, core, f.day, 0.5)


def _restate_visit(rng, f):
  active, passive = MEETINGS[f.relation]
  core = rng.choice((f'{f.subject} {active} {f.other}', f'{f.other} was {passive} by {f.subject}',
                     f'it was {f.subject} who {active} {f.other}'))
  return _dated(rng, core, f.day, 0.5)
