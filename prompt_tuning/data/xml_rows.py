"""Entries of WebNLG's XML, the one XML file that a task reads."""

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from typing import Any

from prompt_tuning.data import files, lines
from prompt_tuning.errors import UserError


def read_entries(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields ('entry N', {'triples': [...], 'lexs': [...]}) of each `<entry>`.

  Args:
    path: the file; a last suffix `.gz` is unpacked.

  Raises:
    UserError: no such file, broken gzip, invalid UTF-8, broken XML, an entry of more than
      lines.MAX_ROW characters, no entries.
  """
  path = os.fspath(path)
  files.check_file(path)
  count = size = 0
  parser = ElementTree.XMLPullParser(['end'])
  with lines.opened(path) as file:
    try:
      for piece in lines.pieces(file, path):
        parser.feed(piece)
        size += len(piece)
        for _, element in parser.read_events():
          if element.tag == 'entry':
            count, size = count + 1, 0
            yield f'entry {count}', {
                'triples': _texts(element, 'modifiedtripleset/mtriple'),
                'lexs': _texts(element, 'lex')}
            element.clear()
        if size > lines.MAX_ROW:
          raise lines.too_long(path, f'entry {count + 1}')
      parser.close()
    except ElementTree.ParseError as error:
      raise UserError(f'{path}:{error.position[0]}: not valid XML: {error}. Expected the file of '
                      'WebNLG as it is published; copy it again.') from None
  if not count:
    raise UserError(f'{path}: expected <entry> elements as WebNLG has them, found none.')


def _texts(element: ElementTree.Element, path: str) -> list[str]:
  # Some releases keep the text of a <lex> in a <text> of its own.
  return [(found.findtext('text', found.text) or '').strip() for found in element.findall(path)]
