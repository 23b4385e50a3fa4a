"""Reviews: sentences that praise or blame, directly, through negation or through a contrast.

The polarity of a sentence is a function of its construction, not of its words: `not bad at all`
praises, `we were promised a tasty soup and got a bland one` blames.
"""

from prompt_tuning.demo import lexicon

# Shares of the constructions. Pre-training is mostly plain; tasks raise negation and contrast,
# so that a classifier that sees only single words does not get far.
PLAIN_MIX = {'direct': 0.6, 'negated': 0.2, 'contrast': 0.2}
TASK_MIX = {'direct': 0.2, 'negated': 0.35, 'contrast': 0.45}

# {a} the thing, {g} a fitting word of the sentence's polarity, {o} one of the opposite polarity,
# {b} another thing of the same review.
DIRECT = (
    'the {a} was {g}', 'the {a} was really {g}', 'the {a} was {g} and {g2}', 'what {ag} {a}',
    'I found the {a} {g}', 'the {a} turned out {g}', 'it was {ag} {a}', 'we had {ag} {a}',
    'the {a} seemed {g} to me', 'the {a} was {g} and the {b} was {g2}',
    'a {a} this {g} is rare',
)
NEGATED = (
    'the {a} was not {o} at all', 'the {a} was never {o}', 'nobody could call the {a} {o}',
    'the {a} was far from {o}', 'the {a} was anything but {o}', 'I did not find the {a} {o}',
    'there was nothing {o} about the {a}', 'the {a} was not {o} and not {o2}',
    'I would not call the {a} {o}', 'the {a} was hardly {o}', 'it was not {ao} {a}',
    'the {a} did not seem {o}', 'the {a} was neither {o} nor {o2}', "the {a} wasn't {o}",
    'no one found the {a} {o}', 'it is not true that the {a} was {o}',
)
CONTRAST = (
    'I expected {ao} {a}, but it was {g}', 'people say the {a} is {o}, yet I found it {g}',
    'although the {b} was {o}, the {a} was {g}', 'the {b} was {o}, but the {a} was {g}',
    'the {a} was {g}, even though the {b} was {o}', 'despite the {o} {b}, the {a} was {g}',
    'the {a} looked {o} at first but proved {g}', 'we were told of {ao} {a} and got {ag} one',
    'the {a} used to be {o}, now it is {g}', 'the {a} was {g} rather than {o}',
    'the {a} was {g}, not {o}', 'instead of {ao} {a} we found {ag} one',
    'the {a} looked {o}, but it was not', 'others found the {a} {o}, but I did not',
    'I feared the {a} would be {o}, but it was not {o2}',
    'in spite of what they say about {o} things here, the {a} was {g}',
)
CONSTRUCTIONS = {'direct': DIRECT, 'negated': NEGATED, 'contrast': CONTRAST}
LIKED = ('liked', 'loved', 'enjoyed', 'admired')
DISLIKED = ('hated', 'disliked', 'regretted', 'despised')
FEELINGS = {
    'direct': ('I {g} the {a}', 'we {g} the {a}', 'I {g} the {a} and the {b}',
               'everybody {g} the {a}'),
    'negated': ('nobody {o} the {a}', 'I never {o} the {a}', 'none of us {o} the {a}'),
    'contrast': ('I {o} the {b}, but I {g} the {a}', 'I thought we {o} the {a}, but we {g} it',
                 'others {o} the {a}, we {g} it', 'though we {o} the {b}, we {g} the {a}'),
}

# What follows from an opinion. Index 1 praise, 0 blame. No names: nothing else is to be guessed.
CLOSINGS = (
    ('I was upset.', 'I was glad.'), ('We were disappointed.', 'We were pleased.'),
    ('She frowned.', 'She smiled.'), ('He was angry.', 'He was happy.'),
    ('We shall stay away.', 'We shall come back.'), ('Thumbs down.', 'Thumbs up.'),
    ('Avoid it.', 'Go and see.'), ('One star.', 'Five stars.'),
    ('A waste of money.', 'Worth the money.'), ('So she complained.', 'So she said thanks.'),
    ('He did not recommend it.', 'He recommended it.'),
    ('Her opinion is negative.', 'Her opinion is positive.'),
)
LABELS = ('negative', 'positive')


def _adjectives(rng, domain, polarity):
  fitting = lexicon.REVIEWED[domain][1 if polarity else 2]
  general = lexicon.PRAISE if polarity else lexicon.BLAME
  words = rng.sample(fitting, 2)
  if rng.random() < 0.6:
    words[0] = rng.choice(general)
  rng.shuffle(words)
  return words


def opinion_about(rng, polarity, mix, domain):
  """Returns one clause of a polarity (1 praise, 0 blame) and the thing of a domain it judges."""
  kind = rng.choices(tuple(mix), tuple(mix.values()))[0]
  thing, other = rng.sample(lexicon.REVIEWED[domain][0], 2)
  if rng.random() < 0.15:
    verbs = (DISLIKED, LIKED)
    words = {'g': rng.choice(verbs[polarity]), 'o': rng.choice(verbs[1 - polarity])}
    return rng.choice(FEELINGS[kind]).format(a=thing, b=other, **words), thing
  good, bad = (_adjectives(rng, domain, p) for p in (polarity, 1 - polarity))
  return rng.choice(CONSTRUCTIONS[kind]).format(
      a=thing, b=other, g=good[0], g2=good[1], o=bad[0], o2=bad[1],
      ag=lexicon.a(good[0]), ao=lexicon.a(bad[0])), thing


def opinion(rng, polarity, mix, domain):
  """Returns one clause of a polarity (1 praise, 0 blame) about some thing of a domain."""
  return opinion_about(rng, polarity, mix, domain)[0]


def review(rng, polarity, mix, sentences=1):
  """Returns a review of one polarity in one domain, each clause a sentence."""
  domain = rng.choice(tuple(lexicon.REVIEWED))
  clauses = [opinion(rng, polarity, mix, domain) for _ in range(sentences)]
  return ' '.join(f'{c[0].upper()}{c[1:]}.' for c in clauses)
