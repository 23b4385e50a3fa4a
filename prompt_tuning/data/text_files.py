"""Rows of text files that are neither tables nor JSON: whole files, blocks, pairs of files.

Each reader takes a path (`.gz` is unpacked) and yields (place, row) as files.read_rows does.
"""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterator

from prompt_tuning.data import files
from prompt_tuning.data import lines as lines_lib
from prompt_tuning.errors import UserError

_ENDS = tuple('.!?\'`"\u2019\u201d)')  # of a sentence

_SPLITS = ('train', 'validation', 'test')
_AROUND = frozenset((  # lines of a page of the BBC that are no article
    'Share this with', 'Email', 'Facebook', 'Messenger', 'Twitter', 'Pinterest', 'WhatsApp',
    'Linkedin', 'LinkedIn', 'Copy this link',
    'These are external links and will open in a new window'))

Rows = Iterator[tuple[str, dict[str, str]]]


def read_whole(path: str) -> Rows:
  """The file as one row `{'text': ..., 'file': ...}`, for datasets with a file for each example.

  Raises:
    UserError: no such file, broken gzip, invalid UTF-8, a file of more than lines.MAX_ROW
      characters.
  """
  files.check_file(path)
  text = ''
  with lines_lib.opened(path) as file:
    for piece in lines_lib.pieces(file, path):
      text += piece
      if len(text) > lines_lib.MAX_ROW:
        raise lines_lib.too_long(path, 1)
  yield '1', {'text': text, 'file': path}


def read_blocks(path: str) -> Rows:
  """Examples of several lines with blank lines between them, as `{'lines': [...]}`.

  Raises:
    UserError: no such file, broken gzip, invalid UTF-8, a line that is too long.
  """
  files.check_file(path)
  block, first = [], 0
  with lines_lib.opened(path) as file:
    for number, line in itertools.chain(lines_lib.lines(file, path), [(0, '')]):
      if line.strip():
        first = first or number
        block.append(line.strip())
      elif block:
        yield str(first), {'lines': block}
        block, first = [], 0


@dataclasses.dataclass(frozen=True)
class ReadPair:
  """Two files whose lines belong together, such as `train.source` and `train.target`.

  Attributes:
    ending: of the name of the file that is given, without `.gz`.
    other: ending of the name of the other file.
    columns: names of the two columns.
    written: (what a file writes, what it means), such as a word for a line end; ('', '') for none.
  """
  ending: str
  other: str
  columns: tuple[str, str] = ('source', 'target')
  written: tuple[str, str] = ('', '')

  def other_path(self, path: str) -> str:
    """The file beside `path`.

    Raises:
      UserError: there is none.
    """
    stem = path.removesuffix('.gz').removesuffix(self.ending)
    packed = '.gz' if path.endswith('.gz') else ''
    for name in (f'{stem}{self.other}{packed}', f'{stem}{self.other}', f'{stem}{self.other}.gz'):
      if os.path.isfile(name):
        return name
    raise UserError(f'{path} has no file {os.path.basename(stem)}{self.other} beside it; each line '
                    'of the one belongs to a line of the other.')

  def __call__(self, path: str) -> Rows:
    paths = (path, self.other_path(path))
    with lines_lib.opened(paths[0]) as first, lines_lib.opened(paths[1]) as second:
      sides = (lines_lib.lines(first, paths[0]), lines_lib.lines(second, paths[1]))
      for number, pair in enumerate(itertools.zip_longest(*sides), 1):
        for name, side in zip(paths, pair, strict=True):
          if side is None:
            raise UserError(f'{name} ends before line {number}, which the file of the other side '
                            'has. Expected as many lines in both; copy them again.')
        texts = [self._text(line) for _, line in pair]
        yield str(number), dict(zip(self.columns, texts, strict=True))

  def _text(self, line: str) -> str:
    text = line.strip()
    return text.replace(*self.written) if self.written[0] else text


def read_stories(path: str) -> Rows:
  """Articles and highlights of the stories whose addresses a list of CNN/DailyMail names.

  Stories lie in `cnn/stories` and `dailymail/stories` beside the list or beside its folder, under
  the SHA-1 of their address (https://github.com/abisee/cnn-dailymail). As at TensorFlow Datasets,
  a line without an end of sentence gets a period, and a story without either part is left out.

  Raises:
    UserError: a broken file, or none of the stories is there.
  """
  folder = os.path.dirname(os.path.abspath(path))
  homes = [os.path.join(base, paper, 'stories')
           for base in (folder, os.path.dirname(folder)) for paper in ('cnn', 'dailymail')]
  found = False
  for place, row in files.read_rows(path, 'lines'):
    name = hashlib.sha1(row['text'].strip().encode()).hexdigest() + '.story'
    story = next((os.path.join(home, name) for home in homes
                  if os.path.isfile(os.path.join(home, name))), None)
    if story is not None:
      found = True
      article, highlights = _parts(next(read_whole(story))[1]['text'])
      if article and highlights:
        yield place, {'article': article, 'highlights': highlights}
  if not found:
    raise UserError(f'{path}: none of its stories is in {", ".join(homes)}. Unpack cnn_stories.tgz '
                    'and dailymail_stories.tgz beside it.')


def _parts(story: str) -> tuple[str, str]:
  """(article on one line, one highlight a line)."""
  article, highlights, to_highlights = [], [], False
  for line in filter(None, map(str.strip, story.split('\n'))):
    if line.startswith('@highlight'):
      to_highlights = True
      continue
    ended = '@highlight' in line or line.endswith(_ENDS)
    (highlights if to_highlights else article).append(line if ended else f'{line}.')
  return ' '.join(article), '\n'.join(highlights)


def read_trivia_qa(path: str) -> Rows:
  """Questions of TriviaQA (`qa/*.json`) with the texts that they name in `evidence/`.

  Texts that are absent are left out, as at TensorFlow Datasets.

  Raises:
    UserError: a broken file, or none of the texts is there.
  """
  folder = os.path.dirname(os.path.abspath(path))
  homes = [os.path.join(base, 'evidence') for base in (os.path.dirname(folder), folder)]
  found = named = False
  for place, row in files.read_rows(path, list_in='Data'):
    groups = {}
    for group, kind in (('EntityPages', 'wikipedia'), ('SearchResults', 'web')):
      wanted = [page['Filename'] for page in row.get(group, ()) if 'Filename' in page]
      named = named or bool(wanted)
      there = [file for name in wanted for file in
               [os.path.join(home, kind, name) for home in homes] if os.path.isfile(file)]
      groups[group] = [next(read_whole(file))[1]['text'].strip() for file in there]
      found = found or bool(there)
    aliases = [alias.strip() for alias in row.get('Answer', {}).get('NormalizedAliases', ())]
    yield place, {
        'question': row['Question'].strip(), 'id': row['QuestionId'],
        'answer': {'normalized_aliases': aliases},
        'entity_pages': {'wiki_context': groups['EntityPages']},
        'search_results': {'search_context': groups['SearchResults']}}
  if named and not found:
    raise UserError(f'{path}: none of the texts that it names is in {" or ".join(homes)}. Unpack '
                    'triviaqa-rc.tar.gz as it is.')


def read_polarity(path: str) -> Rows:
  """Lines of `rt-polarity.pos` or `.neg`, in Latin-1, with the split that each is in.

  The first 80 % of each file are the training split, the next 10 % the validation split, as in the
  copies of Rotten Tomatoes that results are compared on.
  """
  files.check_file(path)
  with lines_lib.opened(path) as file:
    texts = file.read(lines_lib.MAX_ROW).decode('latin-1').split('\n')
  texts = [text.strip() for text in texts if text.strip()]
  ends = [int(len(texts) * share + 0.5) for share in (0.8, 0.9)]
  label = 'positive' if path.removesuffix('.gz').endswith('.pos') else 'negative'
  for i, text in enumerate(texts):
    split = _SPLITS[sum(i >= end for end in ends)]
    yield str(i + 1), {'text': text, 'label': label, 'split': split}


def read_xsum(path: str) -> Rows:
  """Articles of XSum that its list of splits names, with the split that each is in.

  They lie in `xsum-extracts-from-downloads` beside the list, one file for each; lines of the page
  around an article are left out, and absent articles, as at TensorFlow Datasets.

  Raises:
    UserError: a broken list, or none of the articles is there.
  """
  folder = os.path.join(os.path.dirname(os.path.abspath(path)), 'xsum-extracts-from-downloads')
  _, text = next(read_whole(path))
  try:
    named = json.loads(text['text'])
    wanted = [(split, name) for split in _SPLITS for name in named[split]]
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(f'{path}: expected lists of names under {", ".join(_SPLITS)}: '
                    f'{error!r}. Copy the file again.') from None
  there = [(split, name) for split, name in wanted
           if os.path.isfile(os.path.join(folder, f'{name}.data'))]
  if not there:
    raise UserError(f'{path}: none of its articles is in {folder}. Unpack '
                    'xsum-extracts-from-downloads.tar.gz beside it.')
  for split, name in there:
    file = os.path.join(folder, f'{name}.data')
    lines = next(read_whole(file))[1]['text'].splitlines(keepends=True)
    parts = ''.join(line for line in lines
                    if line.strip() and line.rstrip('\n') not in _AROUND).split('[XSUM]')
    if len(parts) < 7:
      raise UserError(f'{file}: expected parts between [XSUM] marks, found {len(parts)} of 7.')
    yield name, {'document': parts[6].strip(), 'summary': parts[4].strip(), 'split': split}
