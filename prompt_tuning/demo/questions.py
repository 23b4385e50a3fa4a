"""Forum questions about things, ways and prices: one intent, many wordings."""

import dataclasses

from prompt_tuning.demo import lexicon

# Synonym sets of what can be done to a thing; every set is one meaning.
ACTIONS = (('repair', 'fix', 'mend'), ('clean', 'wash', 'scrub'), ('sell', 'get rid of'),
           ('buy', 'purchase', 'get'), ('paint', 'put paint on'), ('carry', 'transport', 'move'),
           ('build', 'make', 'construct'), ('open', 'unlock'), ('hang', 'put up'),
           ('store', 'keep'), ('choose', 'pick', 'select'), ('hide', 'conceal'))
TROUBLES = (('is so loud', 'makes so much noise'), ('smells', 'has a bad smell'),
            ('is stuck', 'does not move'), ('is always cold', 'never gets warm'),
            ('leaks', 'loses water'), ('costs so much', 'is so expensive'),
            ('falls over', 'does not stay upright'), ('turned yellow', 'has become yellow'),
            ('breaks so often', 'keeps breaking'), ('is heavy', 'weighs so much'))
USERS = ('a child', 'my mother', 'my father', 'an old friend', 'a neighbour', 'a student',
         'a beginner', 'my sister', 'my brother', 'a guest')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intent:
  """What a question wants to know; which slots mean something depends on `kind`."""
  kind: str
  thing: str = ''
  quality: str = ''
  action: int = 0
  user: str = ''
  start: str = ''
  end: str = ''


WORDINGS = {
    'how': ('how do I {v} {x}', 'what is the best way to {v} {x}', 'can you tell me how to {v} {x}',
            'is there an easy way to {v} {x}', 'I want to {v} {x}, how is it done',
            'how does one {v} {x}', 'any tips on how to {v} {x}'),
    'why': ('why is it that my {t} {p}', 'my {t} {p}, what is the reason',
            'what is the reason that my {t} {p}', 'does anybody know why my {t} {p}',
            'my {t} {p}, why'),
    'where': ('where can I find {x} for {u}', 'which shop has {x} for {u}',
              'I need {x} for {u}, where do I go', 'who sells {x} that suits {u}',
              'for {u} I am looking for {x}, where is one'),
    'way': ('how do I get from {s} to {e}', 'what is the way from {s} to {e}',
            'I am in {s}, how do I come to {e}', 'which road goes to {e} from {s}',
            'to reach {e} from {s}, which way is best', 'how does one go to {e}, starting in {s}'),
    'better': ('is {x} better than {y}', 'is {y} worse than {x}',
               'should one prefer {x} to {y}', 'are people happier with {x} than with {y}',
               'does {x} beat {y}', 'would you rather take {x} than {y}'),
    'price': ('how much is {x} in {s}', 'what does {x} cost in {s}',
              'in {s}, what is the price of {x}', 'what do people in {s} pay for {x}',
              'how expensive is {x} in {s}'),
}


def intent(rng):
  """Returns a new intent."""
  kind = rng.choice(tuple(WORDINGS))
  start, end = rng.sample(lexicon.TOWNS, 2)
  thing, other = rng.sample(lexicon.THINGS, 2)
  qualities = tuple(lexicon.OPPOSITES) + lexicon.COLOURS
  actions = {'why': len(TROUBLES)}.get(kind, len(ACTIONS))
  quality = rng.choice(qualities) if rng.random() < 0.6 else ''
  return Intent(kind=kind, thing=thing, quality=quality, action=rng.randrange(actions),
                user=rng.choice(USERS), start=start, end=other if kind == 'better' else end)


def ask(rng, asked, form=None):
  """Returns the wording of an intent as a question, and which wording it is.

  Args:
    rng: the source of randomness.
    asked: the intent.
    form: a wording, by its index, not to use again.
  """
  wordings = WORDINGS[asked.kind]
  index = rng.choice([i for i in range(len(wordings)) if i != form])
  thing = f'{asked.quality} {asked.thing}'.strip()
  other = f'{asked.quality} {asked.end}'.strip()
  verb = '' if asked.kind == 'why' else rng.choice(ACTIONS[asked.action])
  trouble = rng.choice(TROUBLES[asked.action]) if asked.kind == 'why' else ''
  text = wordings[index].format(
      v=verb, p=trouble, t=thing, x=lexicon.a(thing), y=lexicon.a(other) if other else '',
      u=asked.user, s=asked.start, e=asked.end)
  return f'{text[0].upper()}{text[1:]}?', index
