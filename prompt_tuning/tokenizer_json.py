"""`tokenizer.json` of Hugging Face as a SentencePiece model.

transformers 5 saves the tokenizer of a T5 as this file alone. It holds all that the SentencePiece
model held (pieces with log-probabilities, the compiled normalisation), so the model can be put
together again: ids and vocabulary hash are those of the original file.
"""

import base64
import binascii
import json
import logging
import re
from collections.abc import Mapping

from prompt_tuning.errors import UserError

SUFFIX = '.json'
_SENTINEL = re.compile(r'<extra_id_(\d+)>')
_BYTE = re.compile(r'<0x[0-9A-F]{2}>')

log = logging.getLogger(__name__)


def to_sentencepiece(content: bytes, source: str):
  """Builds the SentencePiece model that a tokenizer.json was made from.

  Args:
    content: of the file.
    source: its path, for messages.

  Returns:
    (sentencepiece ModelProto without the sentinels that T5 adds behind its pieces, their number).

  Raises:
    UserError: the file is broken, or its tokenizer is no unigram model.
  """
  from sentencepiece import sentencepiece_model_pb2 as pb
  tokenizer, pieces = _parse(content, source)
  sentinels = _sentinels_at_end([piece for piece, _ in pieces])
  known = {piece for piece, _ in pieces}
  added = [token['content'] for token in tokenizer.get('added_tokens') or ()
           if isinstance(token, Mapping) and isinstance(token.get('content'), str)]
  if unknown := [token for token in added if token not in known]:
    log.warning('%s: %d added tokens have no piece and are read as plain text, such as %r.', source,
                len(unknown), unknown[0])
  model = pb.ModelProto()
  unk_id, marked = tokenizer['model'].get('unk_id'), {*added}
  for i, (piece, score) in enumerate(pieces[:len(pieces) - sentinels]):
    model.pieces.add(piece=piece, score=score, type=_kind(pb, i, piece, unk_id, marked))
  model.trainer_spec.model_type = pb.TrainerSpec.UNIGRAM
  model.trainer_spec.byte_fallback = bool(tokenizer['model'].get('byte_fallback'))
  for name, i in (('pad_id', 0), ('eos_id', 1), ('unk_id', unk_id), ('bos_id', -1)):
    setattr(model.trainer_spec, name, i)
  model.trainer_spec.pad_piece, model.trainer_spec.eos_piece = pieces[0][0], pieces[1][0]
  model.trainer_spec.unk_piece = pieces[unk_id][0]
  model.normalizer_spec.precompiled_charsmap = _charsmap(tokenizer.get('normalizer'), source)
  return model, sentinels


def _parse(content, source) -> tuple[dict, list[tuple[str, float]]]:
  """(the whole file, its pieces with their scores)."""
  try:
    tokenizer = json.loads(content)
    kind = tokenizer['model']['type']
    if kind != 'Unigram':
      raise UserError(f'{source} is a {kind!r} tokenizer; T5 models have a unigram one. Give the '
                      'tokenizer.json or spiece.model of the model.')
    pieces = [(piece, float(score)) for piece, score in tokenizer['model']['vocab']]
    unk_id = tokenizer['model'].get('unk_id')
    if not all(isinstance(piece, str) and piece for piece, _ in pieces):
      raise ValueError('a piece that is no text')
    if type(unk_id) is not int or not 2 <= unk_id < len(pieces):
      raise ValueError(f'unk_id is {unk_id!r}')
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
    raise UserError(f'{source} is no tokenizer.json of a T5 model ({error}). Copy or download it '
                    'again, or put the spiece.model beside it.') from None
  return tokenizer, pieces


def _sentinels_at_end(pieces) -> int:
  """How many pieces at the end are <extra_id_n-1> ... <extra_id_0>."""
  count = 0
  while count < len(pieces):
    sentinel = _SENTINEL.fullmatch(pieces[-1 - count])
    if sentinel is None or int(sentinel[1]) != count:
      break
    count += 1
  return count


def _kind(pb, i, piece, unk_id, marked):
  """The type of a piece, which tokenizer.json tells by other means."""
  kinds = pb.ModelProto.SentencePiece
  if i == unk_id:
    return kinds.UNKNOWN
  if i in (0, 1):  # pad and end of sequence: never found in text
    return kinds.CONTROL
  if _BYTE.fullmatch(piece):
    return kinds.BYTE
  # Added tokens, and the sentinels inside of mT5's own pieces, are found whole.
  return kinds.USER_DEFINED if piece in marked or _SENTINEL.search(piece) else kinds.NORMAL


def _charsmap(normalizer, source) -> bytes:
  """The compiled normalisation; empty where there is none."""
  found = []

  def search(node):
    if isinstance(node, Mapping):
      if node.get('type') == 'Precompiled':
        found.append(node.get('precompiled_charsmap'))
      search(node.get('normalizers'))
    elif isinstance(node, list):
      for part in node:
        search(part)

  search(normalizer)
  try:
    return base64.b64decode(found[0] or '', validate=True) if found else b''
  except (binascii.Error, TypeError, ValueError) as error:
    raise UserError(f'{source}: its normalisation is damaged ({error}). Copy or download it '
                    'again.') from None
