"""Claims, forum questions and newspaper reports that are for or against something.

As in a review, what a sentence says is a function of its construction: `did not oppose` is for,
`has anything but good lamps` is against. Two sentences about one matter say the same when both are
for it or both against it; which words they use tells nothing.
"""

from prompt_tuning.demo import lexicon, opinions

# {x} the thing, {g} a word of the polarity that the sentence has, {o} one of the other.
CLAIMS = (
    'the {x} was {g}', 'it was {ag} {x}', 'the {x} was not {o}', 'the {x} was anything but {o}',
    'nobody found the {x} {o}', 'the {x} was {g}, not {o}', 'the {x} was far from {o}',
    'the {x} was {g} rather than {o}', 'most people would call the {x} {g}',
    'the {x} could not be called {o}',
)
LIKED = (
    ('the {x} gave displeasure', 'the {x} gave pleasure'),
    ('nobody liked the {x}', 'nobody disliked the {x}'),
    ('the {x} deserved blame', 'the {x} deserved praise'),
    ('the {x} was worse than hoped', 'the {x} was better than feared'),
    ('the {x} had more faults than merits', 'the {x} had more merits than faults'),
)

# Questions by intent: one matter asked in many ways.
QUESTIONS = {
    'why': ('why is the {x} in {t} so {g}', 'what makes the {x} in {t} so {g}',
            'why is the {x} in {t} not {o}', 'for what reason is the {x} in {t} {g}',
            'the {x} in {t} is {g} and not {o}, why', 'how come the {x} in {t} is {g}',
            'why does nobody call the {x} in {t} {o}',
            'why is the {x} in {t} anything but {o}', 'why is the {x} in {t} {g} rather than {o}'),
    'where': ('where in {t} are there {g} {xs}', 'who in {t} has {ag} {x}',
              'which shop in {t} has {xs} that are {g}', 'where in {t} are the {xs} not {o}',
              'does anybody in {t} have {ag} {x}', 'who in {t} has {g} {xs}, not {o} ones',
              'where in {t} are the {xs} far from {o}', 'in {t}, who has {xs} that are not {o}'),
    'whether': ('is it true that the {x} in {t} is {g}', 'is the {x} in {t} really {g}',
                'do you also find the {x} in {t} {g}', 'the {x} in {t} is {g}, is it not',
                'is it a fact that the {x} in {t} is not {o}', 'is the {x} in {t} never {o}',
                'would you call the {x} in {t} {g} rather than {o}',
                'is it so that the {x} in {t} is anything but {o}'),
}

# Reports: verbs of opposition and of support, as (past, participle, plain form).
VERBS = (
    (('rejected', 'rejected', 'reject'), ('opposed', 'opposed', 'oppose'),
     ('criticised', 'criticised', 'criticise'), ('condemned', 'condemned', 'condemn'),
     ('attacked', 'attacked', 'attack'), ('blocked', 'blocked', 'block'),
     ('refused', 'refused', 'refuse'), ('voted against', 'voted against', 'vote against')),
    (('approved', 'approved', 'approve'), ('backed', 'backed', 'back'),
     ('praised', 'praised', 'praise'), ('welcomed', 'welcomed', 'welcome'),
     ('defended', 'defended', 'defend'), ('supported', 'supported', 'support'),
     ('agreed to', 'agreed to', 'agree to'), ('voted for', 'voted for', 'vote for')),
)
REPORTS = (
    'the {b} of {t} {v} the {x}', 'the {x} was {w} by the {b} of {t}',
    'the {b} of {t} did not {n} the {x}', 'the {x} was not {nw} by the {b} of {t}',
    'in {t} the {b} {v} the {x}', 'it was the {x} that the {b} of {t} {v}',
    'the {b} of {t} {v} the {x} and did not {n} it',
    'the {b} of {t}, who once {nv} the {x}, now {v} it',
    'nobody in the {b} of {t} {nv} the {x}', 'the {b} of {t} never {nv} the {x}',
    'the {b} of {t} was expected to {n} the {x}, but {v} it',
    'far from wanting to {n} it, the {b} of {t} {v} the {x}',
)
BODIES = ('council', 'museum', 'police', 'school', 'bank', 'choir', 'railway', 'fire brigade',
          'football club', 'chamber', 'church', 'union')
PLANS = ('bridge', 'tower', 'theatre', 'hospital', 'library', 'market hall', 'station', 'park',
         'factory', 'road', 'tax', 'law', 'ferry', 'festival', 'school fee', 'new timetable',
         'harbour plan', 'peace plan', 'trade deal', 'budget')


def _words(rng, polarity):
  """A general adjective of a polarity, with its article too, and one of the other polarity."""
  good, bad = ((lexicon.BLAME, lexicon.PRAISE)[p] for p in (polarity, 1 - polarity))
  g, o = rng.choice(good), rng.choice(bad)
  return {'g': g, 'o': o, 'ag': lexicon.a(g)}


def _fill(rng, forms, form, **words):
  """Words a form other than `form`; returns the text and which form it is."""
  index = rng.choice([i for i in range(len(forms)) if i != form])
  return forms[index].format(**words), index


def claim(rng, polarity, thing):
  """Returns a short statement that a thing was good (1) or bad (0)."""
  if rng.random() < 0.3:
    return rng.choice(LIKED)[polarity].format(x=thing)
  return rng.choice(CLAIMS).format(x=thing, **_words(rng, polarity))


def topic(rng):
  """Returns what a question can be about: intent, thing, town."""
  domain = rng.choice([d for d in lexicon.REVIEWED if d != 'trip'])
  return (rng.choice(tuple(QUESTIONS)), rng.choice(lexicon.REVIEWED[domain][0]),
          rng.choice(lexicon.TOWNS))


def question(rng, polarity, about, form=None):
  """Returns a question that takes a thing to be good or bad, and its wording."""
  intent, thing, town = about
  text, form = _fill(rng, QUESTIONS[intent], form, x=thing, t=town, xs=lexicon.plural(thing),
                     **_words(rng, polarity))
  return f'{text[0].upper()}{text[1:]}?', form


def plan(rng):
  """Returns what a report can be about: a body, its town, a plan."""
  return rng.choice(BODIES), rng.choice(lexicon.TOWNS), rng.choice(PLANS)


def report(rng, polarity, about, form=None):
  """Returns a sentence that reports support or opposition, and its form."""
  body, town, what = about
  verb, no_verb = (rng.choice(VERBS[p]) for p in (polarity, 1 - polarity))
  text, form = _fill(rng, REPORTS, form, b=body, t=town, x=what, v=verb[0], w=verb[1],
                     n=no_verb[2], nv=no_verb[0], nw=no_verb[1])
  return f'{text[0].upper()}{text[1:]}.', form


def opinion(rng, polarity, mix):
  """Returns an opinion as a sentence and the thing that it is about."""
  domain = rng.choice(tuple(lexicon.REVIEWED))
  text, thing = opinions.opinion_about(rng, polarity, mix, domain)
  return f'{text[0].upper()}{text[1:]}.', thing
