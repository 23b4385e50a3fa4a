"""Newspaper sentences: an event and the ways to report it."""

import dataclasses

from prompt_tuning.demo import lexicon

# Each row one meaning: synonyms as (active past, participle).
EVENTS = (
    (('approved', 'approved'), ('backed', 'backed'), ('agreed to', 'agreed to')),
    (('rejected', 'rejected'), ('refused', 'refused'), ('turned down', 'turned down')),
    (('praised', 'praised'), ('commended', 'commended'), ('spoke well of', 'spoken well of')),
    (('criticised', 'criticised'), ('blamed', 'blamed'), ('found fault with', 'found fault with')),
    (('bought', 'bought'), ('purchased', 'purchased'), ('acquired', 'acquired')),
    (('sold', 'sold'), ('parted with', 'parted with')),
    (('repaired', 'repaired'), ('restored', 'restored'), ('mended', 'mended')),
    (('damaged', 'damaged'), ('harmed', 'harmed'), ('wrecked', 'wrecked')),
    (('opened', 'opened'), ('unlocked', 'unlocked')),
    (('closed', 'closed'), ('shut', 'shut')),
    (('visited', 'visited'), ('came to see', 'seen'), ('called at', 'visited')),
    (('found', 'found'), ('discovered', 'discovered'), ('came upon', 'come upon')),
    (('helped', 'helped'), ('assisted', 'assisted'), ('supported', 'supported')),
    (('defeated', 'defeated'), ('beat', 'beaten'), ('overcame', 'overcome')),
)
# Rows whose two sides are alike: people or bodies.
MUTUAL = (2, 3, 12, 13, 10)
BODIES = ('council', 'mayor', 'police', 'farmers', 'workers', 'museum', 'bank', 'school',
          'teachers', 'sailors', 'football club', 'fire brigade', 'choir', 'bakers', 'governor',
          'railway')
OBJECTS = ('bridge', 'mill', 'harbour', 'tower', 'theatre', 'hospital', 'library', 'market hall',
           'church', 'station', 'lighthouse', 'park', 'factory', 'castle', 'chapel', 'gallery',
           'ferry', 'road', 'garden', 'vineyard')
AGES = ('old', 'new', 'big', 'small')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
  """Who did what to whom, when; `object_` is a body where the event is mutual."""
  row: int
  subject: str
  object_: str
  time: str
  amount: str = ''


def _body(rng):
  town = f' of {rng.choice(lexicon.TOWNS)}' if rng.random() < 0.25 else ''
  return f'the {rng.choice(BODIES)}{town}'


def _object(rng):
  age = f'{rng.choice(AGES)} ' if rng.random() < 0.4 else ''
  town = f' in {rng.choice(lexicon.TOWNS)}' if rng.random() < 0.2 else ''
  return f'the {age}{rng.choice(OBJECTS)}{town}'


def _time(rng):
  return (f'on {rng.choice(lexicon.DAYS)}' if rng.random() < 0.6
          else f'in {rng.choice(lexicon.MONTHS)}')


def event(rng):
  """Returns a new event."""
  row = rng.randrange(len(EVENTS))
  if rng.random() < 0.45:
    row = rng.choice(MUTUAL)
  subject = _body(rng)
  object_ = _body(rng) if row in MUTUAL else _object(rng)
  return Event(row=row, subject=subject, time=_time(rng), object_=object_) if (
      subject != object_) else event(rng)


REPORTS = (
    '{s} {v} {o} {t}', '{t} {s} {v} {o}', '{o} {was} {w} by {s} {t}', '{t} {o} {was} {w} by {s}',
    'it was {t} that {s} {v} {o}', '{o} {was} {w} {t}, and it was done by {s}',
    '{s} {v} {o}, and that was {t}', 'it was {s} who {v} {o} {t}',
)


def report(rng, e, form=None):
  """Returns a sentence that reports the event, and which form it has; `form` is not used again."""
  form = rng.choice([i for i in range(len(REPORTS)) if i != form])
  verb, participle = rng.choice(EVENTS[e.row])
  plural = e.object_.split()[1] in ('police', 'farmers', 'workers', 'teachers', 'sailors', 'bakers')
  text = REPORTS[form].format(s=e.subject, v=verb, w=participle, o=e.object_, t=e.time,
                              was='were' if plural else 'was')
  return f'{text[0].upper()}{text[1:]}.', form
