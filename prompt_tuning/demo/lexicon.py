"""The words of the demo's small world: people, towns, goods, trades, opinions.

Everything here is a constant. Words are kept in groups that mean something to the generators:
things of one kind share a hypernym, adjectives come as opposites, verbs come as synonym sets.
"""

import itertools


def _names(starts, ends):
  return tuple(a + b for a, b in itertools.product(starts.split(), ends.split()))


PEOPLE = _names('Mi Ta Ol Be Jo Ka Lu No Ru Si Ha El Da Fe Gi Wi Ar Vo Pe Ze Co Ma Ni Sa',
                'ra lin vik na bert dan sa mon rik lia zo mar nel tus ro wen dor fa gu the')
PEOPLE += tuple(
    'Anna Tom Mary Peter Alice Ben Clara David Emma Frank Grace Henry Irene Jack Kate Leo Martha '
    'Nora Oscar Paul Rose Sam Tessa Victor Walter Agnes Bruno Cora Edith Felix George Helen Ivan '
    'Julia Karl Laura Max Nina Otto Quentin Rita Simon Ursula Vera William Adam Berta Conrad Doris '
    'Ernest Flora Gustav Hilda Isaac June Kurt Lydia Mark Olive Philip'.split())
SURNAMES = _names('Hol Brand Mar Win Tor Stan Cald Fen Grim Hart Bex Dun Gold Hay Jar Kel Lam Mer '
                  'Pol Sher', 'ton er wick ley son man by well worth den ock ridge stone ard low')
TOWNS = _names('Har Mil Ash Oak Elm Wald Brook Stone Red Lang Nor Sud Kings Wolf Glen Lin Black '
               'Hazel Swan Cliff', 'bury ton ford field mouth stead dale port ham cross')

PLACES = tuple('market station library museum harbour mill inn school church bridge park theatre '
               'bakery hospital castle garden tower factory bank barn cellar workshop stable court '
               'bathhouse lighthouse quarry vineyard chapel gallery'.split())
ROOMS = tuple('kitchen hall attic yard office lobby corridor cloakroom pantry loft'.split())
TRADES = tuple('baker farmer teacher doctor nurse tailor sailor painter builder miller clerk judge '
               'barber butcher carpenter gardener fisherman shepherd printer singer lawyer smith '
               'cook porter guard driver weaver potter pilot banker'.split())
DAYS = tuple('Monday Tuesday Wednesday Thursday Friday Saturday Sunday'.split())
MONTHS = tuple('January February March April May June July August September October November '
               'December'.split())
NUMBERS = tuple('two three four five six seven eight nine ten twelve twenty thirty forty fifty '
                'sixty ninety'.split())

# Goods by kind: the key is the hypernym, which facts use in place of the thing.
GOODS = {
    'fruit': 'apple pear plum cherry peach melon lemon fig quince apricot',
    'vegetable': 'carrot onion cabbage turnip leek pumpkin radish beetroot cucumber pepper',
    'tool': 'hammer saw drill ladder shovel rake wrench chisel spade file',
    'garment': 'coat scarf hat jacket shirt glove apron cloak dress belt',
    'instrument': 'violin drum flute trumpet harp piano guitar whistle cello banjo',
    'vehicle': 'bicycle cart van boat wagon truck sledge ferry tractor canoe',
    'animal': 'dog cat horse goat cow duck hen sheep donkey rabbit',
    'container': 'basket barrel bucket jar crate bottle sack kettle jug bowl',
    'piece of furniture': 'chair table bed bench shelf desk cupboard stool wardrobe mirror',
    'book': 'novel atlas diary dictionary cookbook songbook almanac notebook bible primer',
    'toy': 'doll kite marble puppet top ball puzzle rattle spinner hoop',
    'device': 'lamp clock radio camera stove heater scale printer telephone pump',
}
GOODS = {kind: tuple(words.split()) for kind, words in GOODS.items()}
KIND_OF = {word: kind for kind, words in GOODS.items() for word in words}
THINGS = tuple(KIND_OF)

# Opposites that a thing can have; only one of the two holds.
OPPOSITES = {}
for _pair in ('old new,big small,heavy light,empty full,clean dirty,cheap expensive,wet dry,'
              'long short,broken intact,thick thin,wide narrow,rusty shiny,hot cold,soft hard,'
              'smooth rough,bright dim,open closed,safe dangerous,rare common,simple complicated'
              ).split(','):
  _a, _b = _pair.split()
  OPPOSITES[_a], OPPOSITES[_b] = _b, _a
COLOURS = tuple('red blue green yellow black white brown grey purple orange'.split())

# Comparatives with their converse: "a is older than b" says "b is newer than a".
COMPARATIVES = {}
for _pair in ('older newer,bigger smaller,heavier lighter,cheaper dearer,longer shorter,'
              'taller lower,faster slower,louder quieter,wider narrower,warmer colder').split(','):
  _a, _b = _pair.split()
  COMPARATIVES[_a], COMPARATIVES[_b] = _b, _a

# Opinions: what is reviewed, with words of praise and of blame that fit it.
PRAISE = tuple('good great wonderful excellent superb fine pleasant lovely splendid delightful '
               'perfect brilliant'.split())
BLAME = tuple('bad awful terrible poor dreadful horrible unpleasant disappointing miserable lousy '
              'dismal wretched'.split())
REVIEWED = {
    'meal': ('soup stew bread pie salad cake roast omelette pudding sauce breakfast dinner',
             'tasty fresh delicious rich tender crisp juicy creamy',
             'bland stale burnt soggy greasy salty tasteless chewy'),
    'room': ('room bed bathroom lobby balcony suite cabin terrace kitchen pool',
             'clean quiet cosy spacious bright comfortable tidy airy',
             'dirty noisy cramped shabby gloomy draughty damp smelly'),
    'staff': ('waiter clerk guide driver porter owner barber nurse teacher cook',
              'friendly polite helpful kind attentive patient skilful honest',
              'rude slow careless grumpy unhelpful lazy impatient dishonest'),
    'story': ('plot film novel play ending comedy opera tale script documentary',
              'gripping clever moving funny charming original witty exciting',
              'dull silly boring clumsy tedious predictable confusing lifeless'),
    'goods': ('hammer drill lamp kettle bicycle clock stove ladder radio camera',
              'sturdy reliable handy useful solid precise durable practical',
              'flimsy useless fragile blunt shoddy faulty wobbly unreliable'),
    'clothes': ('coat scarf hat jacket shirt dress cloak belt apron glove',
                'warm soft elegant stylish smart graceful neat snug',
                'itchy tight ugly scratchy shapeless baggy drab frayed'),
    'music': ('concert song choir band singer orchestra tune violinist melody festival',
              'lively stirring tuneful uplifting inspiring harmonious soothing memorable',
              'tuneless shrill dreary monotonous lifeless amateurish harsh forgettable'),
    'trip': ('tour ferry ride walk journey cruise hike drive voyage crossing',
             'smooth relaxing scenic restful enjoyable carefree punctual safe',
             'bumpy tiring chaotic stressful exhausting tedious delayed unsafe'),
}
REVIEWED = {k: tuple(tuple(words.split()) for words in v) for k, v in REVIEWED.items()}


def plural(noun):
  """Returns the regular plural of a noun of this lexicon: `box` -> `boxes`."""
  if noun in ('sheep',):
    return noun
  if noun.startswith('piece of'):
    return 'pieces' + noun[5:]
  if noun.endswith('fisherman'):
    return noun[:-3] + 'men'
  if noun.endswith(('s', 'x', 'ch', 'sh')):
    return noun + 'es'
  if noun.endswith('shelf'):
    return noun[:-1] + 'ves'
  if noun.endswith('y') and noun[-2] not in 'aeiou':
    return noun[:-1] + 'ies'
  return noun + 's'


def a(noun):
  """Returns a noun phrase with its indefinite article: `apple` -> `an apple`."""
  vowel = noun[0].lower() in 'aeiou' and not noun.startswith('use')
  return f"{'an' if vowel else 'a'} {noun}"
