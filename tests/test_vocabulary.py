"""Vocabularies give SeqIO's ids: the reference numbers were made by SeqIO itself."""

import json
import pickle

import pytest

from prompt_tuning import vocabulary
from prompt_tuning.errors import UserError


@pytest.fixture(scope='module')
def golden(golden_dir):
  return json.loads((golden_dir / 'prompt_init' / 'prompt_inits.json').read_text())


@pytest.fixture(scope='module')
def model_file(shared_dir):
  return shared_dir / 'data' / 'vocab' / 't5.sentencepiece.model'


@pytest.mark.parametrize('extra_ids', [0, 100])
def test_sentencepiece_equals_seqio(golden, model_file, extra_ids):
  vocab = vocabulary.load_vocabulary(model_file, extra_ids)
  expected = golden['with_extra_ids_100'] if extra_ids else golden
  assert vocab.vocab_size == expected['vocab_size']
  compared = 0
  for text, ids in expected['encode'].items():
    assert vocab.encode(text) == ids, text
    compared += 1
  for ids, text in expected['decode']:
    assert vocab.decode(ids) == text, ids
    compared += 1
  assert compared > 20
  for label, ids in golden['label_ids'].items():
    assert vocab.encode(label) == ids
  assert vocab.encode(golden['sentence']) == golden['sentence_ids']


def test_sentinels_count_down_from_the_top(model_file):
  vocab = vocabulary.SentencePieceVocabulary(model_file)
  assert [vocab.sentinel(i) for i in (0, 1, 99)] == [32099, 32098, 32000]
  assert vocab.encode('a <extra_id_7> b')[1] != vocab.sentinel(6)
  assert vocab.sentinel(7) in vocab.encode('a <extra_id_7> b')
  with pytest.raises(UserError, match='100 extra ids'):
    vocab.sentinel(100)


def test_hash_tells_vocabularies_apart(model_file):
  a = vocabulary.SentencePieceVocabulary(model_file, 100)
  b = vocabulary.SentencePieceVocabulary(model_file, 0)
  assert a.hash == vocabulary.load_vocabulary(model_file).hash
  assert len({a.hash, b.hash, vocabulary.ByteVocabulary().hash}) == 3
  assert a == pickle.loads(pickle.dumps(a)) != b


@pytest.mark.parametrize('own', [(), ('<extra_id_1>', '<extra_id_0>')])
def test_a_model_with_sentinels_of_its_own_gets_no_more(tmp_path, own):
  """mT5's file holds its 100 sentinels among its 250,100 pieces."""
  import sentencepiece
  text = tmp_path / 'text.txt'
  text.write_text('a fine film\na poor film\n' * 20)
  sentencepiece.SentencePieceTrainer.Train(
      input=str(text), model_prefix=str(tmp_path / 'own'), vocab_size=24, pad_id=0, eos_id=1,
      unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
      user_defined_symbols=list(own))
  path = tmp_path / 'own.model'
  pieces = sentencepiece.SentencePieceProcessor(model_file=str(path)).GetPieceSize()
  vocab = vocabulary.load_vocabulary(path)
  assert vocab.extra_ids == (0 if own else 100)
  assert vocab.vocab_size == pieces + vocab.extra_ids
  assert vocabulary.load_vocabulary(path, 100).vocab_size == pieces + 100
  assert vocab == pickle.loads(pickle.dumps(vocab))
  assert vocab == vocabulary.load_vocabulary(path, vocab.extra_ids)


def test_sentinels_that_a_model_holds_at_its_end(model_file, tmp_path):
  from sentencepiece import sentencepiece_model_pb2
  model = sentencepiece_model_pb2.ModelProto.FromString(model_file.read_bytes())
  for name in ('<extra_id_1>', '<extra_id_0>'):
    model.pieces.add(piece=f'\u2581{name}', score=0.0, type=4)
  (tmp_path / 'own.model').write_bytes(model.SerializeToString())
  vocab = vocabulary.load_vocabulary(tmp_path / 'own.model')
  assert (vocab.extra_ids, vocab.num_sentinels) == (0, 2)
  assert vocab.encode('<extra_id_0> <extra_id_1>') == [vocab.sentinel(0), vocab.sentinel(1)] == [
      32001, 32000]


def test_bytes():
  vocab = vocabulary.load_vocabulary('bytes')
  assert vocab.vocab_size == 259
  assert vocab.encode('hi é') == [107, 108, 35, 198, 172]
  assert vocab.decode([107, 108, 35, 198, 172, 1, 107]) == 'hi é'
  assert vocab.decode([0, 107, 2, 300, -1, 108]) == 'hi'
  assert vocab.decode([198]) == ''  # half a character
  assert vocabulary.ByteVocabulary(125).vocab_size == 384
  assert vocabulary.ByteVocabulary(125).sentinel(0) == 383
  assert [vocab.sentinel(i) for i in (0, 99)] == [258, 159]  # ByT5 masks with its last bytes


def test_errors_say_what_to_do(tmp_path):
  with pytest.raises(UserError, match='no vocabulary file .*bytes'):
    vocabulary.load_vocabulary(tmp_path / 'absent.model')
  broken = tmp_path / 'broken.model'
  broken.write_bytes(b'\xff\xfe nonsense')
  with pytest.raises(UserError, match='not a SentencePiece model'):
    vocabulary.load_vocabulary(broken)
  broken.write_bytes(b'')
  with pytest.raises(UserError, match='not a SentencePiece model'):
    vocabulary.load_vocabulary(broken)


@pytest.mark.parametrize('change, match', [
    (lambda raw: raw.replace(b'film', b'f\xfflm'), 'is no text'),
    (lambda raw: raw.replace(b'film', b'f\0lm'), 'is damaged')])
def test_damaged_pieces(tmp_path, change, match):
  from sentencepiece import sentencepiece_model_pb2 as pb
  model = pb.ModelProto()
  for piece, kind in (('<pad>', 3), ('</s>', 3), ('<unk>', 2), ('film', 1)):
    model.pieces.add(piece=piece, score=0.0, type=kind)
  path = tmp_path / 'x.model'
  path.write_bytes(change(model.SerializeToString()))
  with pytest.raises(UserError, match=match):
    vocabulary.load_vocabulary(path)


def test_special_ids_are_checked(tmp_path):
  from sentencepiece import sentencepiece_model_pb2 as pb
  model = pb.ModelProto()
  for piece, kind in (('<unk>', 2), ('<s>', 3), ('</s>', 3), ('a', 1)):
    model.pieces.add(piece=piece, score=0.0, type=kind)
  path = tmp_path / 'llama.model'
  path.write_bytes(model.SerializeToString())
  with pytest.raises(UserError, match=r'--pad_id=0'):
    vocabulary.load_vocabulary(path)


def test_to_seqio(golden, model_file):
  pytest.importorskip('seqio')
  theirs = vocabulary.load_vocabulary(model_file).to_seqio()
  ours = vocabulary.load_vocabulary(model_file)
  texts = list(golden['encode'])
  assert [list(theirs.encode(t)) for t in texts] == ours.encode_batch(texts)
  theirs = vocabulary.ByteVocabulary(3).to_seqio()
  assert list(theirs.encode('né')) == vocabulary.ByteVocabulary(3).encode('né')
  assert theirs.vocab_size == vocabulary.ByteVocabulary(3).vocab_size
