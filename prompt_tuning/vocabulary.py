"""SentencePiece and byte vocabularies without TensorFlow, id for id those of SeqIO.

Ids 0, 1 and 2 are pad, end of sequence and unknown. The extra ids (sentinels of span corruption)
stand at the end and count downwards: `<extra_id_0>` is `vocab_size - 1`, as in T5
(https://arxiv.org/abs/1910.10683, appendix of the released code).
"""

import abc
import functools
import hashlib
import itertools
import os
from collections.abc import Iterable, Sequence

from prompt_tuning import tokenizer_json
from prompt_tuning.errors import UserError

PAD_ID = 0
EOS_ID = 1
UNK_ID = 2
BYTES = 'bytes'
DEFAULT_EXTRA_IDS = 100  # what T5's tasks add to the 32,000 pieces
_WORD_START = '\u2581'


class Vocabulary(abc.ABC):
  """Text to token ids and back.

  Attributes:
    extra_ids: number of sentinels at the end of the vocabulary.
  """

  pad_id = PAD_ID
  eos_id = EOS_ID
  unk_id = UNK_ID

  def __init__(self, extra_ids: int):
    if extra_ids < 0:
      raise UserError(f'extra_ids is {extra_ids}; it has to be 0 or more.')
    self.extra_ids = extra_ids

  @property
  @abc.abstractmethod
  def vocab_size(self) -> int:
    """Number of ids, extra ids included."""

  @property
  @abc.abstractmethod
  def hash(self) -> str:
    """sha256 (hex) over the pieces in order and the extra ids: says which model fits."""

  @property
  @abc.abstractmethod
  def content_hash(self) -> str:
    """sha256 (hex) over everything that decides an encoding: says which cache fits."""

  @abc.abstractmethod
  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of every text, without end of sequence."""

  @abc.abstractmethod
  def _decode(self, ids: list[int]) -> str:
    """Text of ids that hold at most one end of sequence, at the end."""

  @abc.abstractmethod
  def to_seqio(self):
    """The same vocabulary as a `seqio.Vocabulary` (imports seqio, and with it TensorFlow)."""

  def encode(self, text: str) -> list[int]:
    """Token ids of one text, without end of sequence."""
    return self.encode_batch([text])[0]

  def decode(self, ids: Iterable[int]) -> str:
    """Text up to the first end of sequence.

    Padding gives nothing; an id outside of the vocabulary reads as unknown.
    """
    ids = [int(i) for i in ids]
    if EOS_ID in ids:
      ids = ids[:ids.index(EOS_ID) + 1]
    return self._decode([i if 0 <= i < self.vocab_size else UNK_ID for i in ids])

  def sentinel(self, i: int) -> int:
    """Id of `<extra_id_i>`, counted from the last id downwards."""
    if not 0 <= i < self.num_sentinels:
      raise UserError(
          f'There is no sentinel {i}: the vocabulary has {self.num_sentinels} extra ids.')
    return self.vocab_size - 1 - i

  @property
  def num_sentinels(self) -> int:
    """Number of ids at the end that stand for masked spans."""
    return self.extra_ids

  def __eq__(self, other):
    return type(self) is type(other) and self.content_hash == other.content_hash

  def __hash__(self):
    return hash(self.content_hash)


class SentencePieceVocabulary(Vocabulary):
  """A SentencePiece model file, with extra ids added as user-defined pieces.

  Args:
    path: the model file (`spiece.model`, `*.sentencepiece.model`), or a `tokenizer.json` that was
      made from one.
    extra_ids: how many sentinels are added; None adds T5's 100, and none to a model that holds
      `<extra_id_0>` itself, as mT5's does; of a tokenizer.json None takes those that it has.

  Attributes:
    is_unigram: whether pieces are chosen by their probabilities, as in every released T5; other
      models merge pairs (BPE).

  Raises:
    UserError: the file is missing, is no SentencePiece model, or places pad, end of sequence and
      unknown at other ids than 0, 1 and 2.
  """

  def __init__(self, path: str | os.PathLike, extra_ids: int | None = None):
    self.path = os.fspath(path)
    self._processor, self._model_hash, extra_ids, self.is_unigram = _load_sentencepiece(
        self.path, os.stat(self.path).st_mtime_ns if os.path.isfile(self.path) else 0, extra_ids)
    super().__init__(extra_ids)

  @property
  def vocab_size(self) -> int:
    return self._processor.GetPieceSize()

  @functools.cached_property
  def hash(self) -> str:
    pieces = self._processor.IdToPiece(list(range(self.vocab_size - self.extra_ids)))
    return _pieces_hash(pieces, self.extra_ids)

  @property
  def content_hash(self) -> str:
    return self._model_hash

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return self._processor.Encode(list(texts), out_type=int)

  @functools.cached_property
  def num_sentinels(self) -> int:
    """The extra ids, or those that the model holds itself."""
    if self.extra_ids:
      return self.extra_ids
    own = itertools.takewhile(
        lambda i: self._processor.IdToPiece(self.vocab_size - 1 - i).lstrip(_WORD_START)
        == f'<extra_id_{i}>', range(self.vocab_size))
    return sum(1 for _ in own)

  def _decode(self, ids: list[int]) -> str:
    return self._processor.Decode(ids)

  def save(self, path: str | os.PathLike):
    """Writes the SentencePiece model, without the extra ids, as T5 models have it beside them."""
    with open(self.path, 'rb') as f:
      content = f.read()
    if self.path.endswith(tokenizer_json.SUFFIX):
      content = tokenizer_json.to_sentencepiece(content, self.path)[0].SerializeToString()
    with open(path, 'wb') as f:
      f.write(content)

  def to_seqio(self):
    import seqio  # TensorFlow comes with it
    if self.path.endswith(tokenizer_json.SUFFIX):
      raise UserError(f'SeqIO cannot read {self.path}: give a SentencePiece model (`save` writes '
                      'it).')
    return seqio.SentencePieceVocabulary(self.path, extra_ids=self.extra_ids)

  def __getstate__(self):
    return {'path': self.path, 'extra_ids': self.extra_ids}

  def __setstate__(self, state):
    self.__init__(**state)

  def __repr__(self):
    return f'SentencePieceVocabulary({self.path!r}, extra_ids={self.extra_ids})'


class ByteVocabulary(Vocabulary):
  """UTF-8 bytes, shifted by the three special ids (ByT5, https://arxiv.org/abs/2105.13626).

  Extra ids lie above the bytes and have no text.
  """

  _SPECIAL = 3
  _BYTES = 256

  def __init__(self, extra_ids: int = 0):
    super().__init__(extra_ids)

  @property
  def vocab_size(self) -> int:
    return self._SPECIAL + self._BYTES + self.extra_ids

  @functools.cached_property
  def hash(self) -> str:
    return _pieces_hash([f'<0x{b:02X}>' for b in range(self._BYTES)], self.extra_ids)

  @property
  def content_hash(self) -> str:
    return self.hash

  @property
  def num_sentinels(self) -> int:
    """The extra ids; without any the last 100 bytes, as ByT5 was trained (section 3.1)."""
    return self.extra_ids or DEFAULT_EXTRA_IDS

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return [[b + self._SPECIAL for b in text.encode('utf-8')] for text in texts]

  def _decode(self, ids: list[int]) -> str:
    low, high = self._SPECIAL, self._SPECIAL + self._BYTES
    return bytes(i - low for i in ids if low <= i < high).decode('utf-8', errors='ignore')

  def to_seqio(self):
    import seqio
    return seqio.ByteVocabulary(extra_ids=self.extra_ids)

  def __repr__(self):
    return f'ByteVocabulary(extra_ids={self.extra_ids})'


def load_vocabulary(
    path: str | os.PathLike, extra_ids: int | None = None) -> Vocabulary:
  """Opens a vocabulary.

  Args:
    path: a SentencePiece model file, a tokenizer.json, or the word 'bytes'.
    extra_ids: number of sentinels; None means 0 for bytes, see also `SentencePieceVocabulary`.

  Returns:
    The vocabulary.

  Raises:
    UserError: see `SentencePieceVocabulary`.
  """
  if os.fspath(path) == BYTES:
    return ByteVocabulary(extra_ids or 0)
  return SentencePieceVocabulary(path, extra_ids)


def _pieces_hash(pieces: Sequence[str], extra_ids: int) -> str:
  digest = hashlib.sha256()
  for piece in pieces:
    digest.update(piece.encode('utf-8') + b'\0')
  digest.update(f'extra_ids={extra_ids}'.encode())
  return digest.hexdigest()


@functools.lru_cache(maxsize=8)
def _load_sentencepiece(path: str, mtime_ns: int, extra_ids: int | None):
  """Reads a model once per process; `mtime_ns` makes a changed file a new entry.

  Returns:
    (the processor with its sentinels, hash of the file and of their number, their number,
    whether it is a unigram model).
  """
  del mtime_ns
  import sentencepiece
  from sentencepiece import sentencepiece_model_pb2
  if not os.path.isfile(path):
    raise UserError(
        f'There is no vocabulary file {path!r}. Give the path of a SentencePiece model '
        f'(spiece.model), of a tokenizer.json, or the word {BYTES!r}.')
  with open(path, 'rb') as f:
    content = f.read()
  if path.endswith(tokenizer_json.SUFFIX):
    model, own_ids = tokenizer_json.to_sentencepiece(content, path)
  else:
    model, own_ids = _parse_model(content, path), DEFAULT_EXTRA_IDS
  if extra_ids is None:
    own = any(piece.piece.lstrip(_WORD_START) == '<extra_id_0>' for piece in model.pieces)
    extra_ids = 0 if own else own_ids
  for i in reversed(range(extra_ids)):
    # The word-start mark makes 'a <extra_id_0> b' one sentinel without a space piece before it.
    model.pieces.add(
        piece=f'{_WORD_START}<extra_id_{i}>', score=0.0,
        type=sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED)
  processor = sentencepiece.SentencePieceProcessor()
  try:
    processor.LoadFromSerializedProto(model.SerializeToString())
  except RuntimeError as error:
    raise UserError(f'{path} is damaged: {error} Copy or download it again.') from None
  found = (processor.pad_id(), processor.eos_id(), processor.unk_id())
  if found != (PAD_ID, EOS_ID, UNK_ID):
    raise UserError(
        f'{path} places (pad, eos, unk) at {found}; T5 models need (0, 1, 2). Train the '
        'vocabulary with --pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1.')
  digest = hashlib.sha256(content + f'extra_ids={extra_ids}'.encode()).hexdigest()
  is_unigram = model.trainer_spec.model_type == sentencepiece_model_pb2.TrainerSpec.UNIGRAM
  return processor, digest, extra_ids, is_unigram


def _parse_model(content: bytes, path: str):
  """The ModelProto in a SentencePiece model file."""
  from sentencepiece import sentencepiece_model_pb2
  model = sentencepiece_model_pb2.ModelProto()
  try:
    model.ParseFromString(content)
  except Exception as error:  # protobuf raises its own DecodeError, which moved between releases
    raise UserError(f'{path} is not a SentencePiece model: {error}') from None
  if not model.pieces or not all(isinstance(piece.piece, str) for piece in model.pieces):
    raise UserError(f'{path} is not a SentencePiece model: it holds no pieces, or one that is no '
                    'text.')
  return model
