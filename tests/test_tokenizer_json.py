"""tokenizer.json gives the ids of the SentencePiece model that it was made from."""

import base64
import json

import pytest

from prompt_tuning import vocabulary
from prompt_tuning.errors import UserError

TEXTS = ('a fine film', '  a poor  film ', 'fil\u00adm \ufb01ne', 'never \u65e5 seen', '',
         'a <extra_id_0> film <extra_id_2>', '<pad> </s> <unk>')


@pytest.fixture(scope='module')
def model_file(tmp_path_factory):
  import sentencepiece
  folder = tmp_path_factory.mktemp('pieces')
  (folder / 'text.txt').write_text('a fine film\na poor film, of no use\n' * 20)
  sentencepiece.SentencePieceTrainer.Train(
      input=str(folder / 'text.txt'), model_prefix=str(folder / 'spiece'), vocab_size=40, pad_id=0,
      eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2)
  return folder / 'spiece.model'


def as_json(model_file, extra_ids):
  """What transformers 5 writes of a SentencePiece model, as far as it decides ids."""
  from sentencepiece import sentencepiece_model_pb2 as pb
  model = pb.ModelProto.FromString(model_file.read_bytes())
  pieces = [[piece.piece, piece.score] for piece in model.pieces]
  pieces += [[f'<extra_id_{i}>', 0.0] for i in reversed(range(extra_ids))]
  charsmap = base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()
  return {
      'added_tokens': [{'id': i, 'content': piece} for i, (piece, _) in enumerate(pieces)
                       if i < 3 or piece.startswith('<extra')],
      'normalizer': {'type': 'Sequence', 'normalizers': [
          {'type': 'Precompiled', 'precompiled_charsmap': charsmap}]},
      'model': {'type': 'Unigram', 'unk_id': 2, 'byte_fallback': False, 'vocab': pieces}}


@pytest.mark.parametrize('extra_ids', [0, 3])
def test_equals_the_model_it_was_made_from(tmp_path, model_file, extra_ids):
  path = tmp_path / 'tokenizer.json'
  path.write_text(json.dumps(as_json(model_file, extra_ids)))
  theirs = vocabulary.load_vocabulary(model_file, extra_ids)
  ours = vocabulary.load_vocabulary(path)
  assert (ours.extra_ids, ours.vocab_size, ours.hash) == (
      extra_ids, theirs.vocab_size, theirs.hash)
  encoded = ours.encode_batch(TEXTS)
  assert encoded == theirs.encode_batch(TEXTS) and len({*map(tuple, encoded)}) > 5
  assert [ours.decode(ids) for ids in encoded] == [theirs.decode(ids) for ids in encoded]
  ours.save(tmp_path / 'again.model')
  again = vocabulary.load_vocabulary(tmp_path / 'again.model', extra_ids)
  assert again.encode_batch(TEXTS) == encoded and again.hash == ours.hash


def test_added_tokens_without_a_piece_are_named(tmp_path, model_file, caplog):
  content = as_json(model_file, 2)
  content['added_tokens'].append({'id': 99, 'content': '<mine>'})
  path = tmp_path / 'tokenizer.json'
  path.write_text(json.dumps(content))
  vocabulary.load_vocabulary(path)
  assert '<mine>' in caplog.text


@pytest.mark.parametrize('change, match', [
    (lambda j: j['model'].update(type='BPE'), "'BPE' tokenizer"),
    (lambda j: j.pop('model'), 'no tokenizer.json of a T5'),
    (lambda j: j['model'].update(unk_id=None), 'unk_id is None'),
    (lambda j: j['model'].update(vocab=[['a', 'x']]), 'no tokenizer.json of a T5'),
    (lambda j: j['model']['vocab'].insert(5, ['', 0.0]), 'no text'),
    (lambda j: j['normalizer']['normalizers'][0].update(precompiled_charsmap='%'), 'normalisation'),
    (lambda j: j['model'].update(unk_id=4), 'places'),
])
def test_broken_files_are_refused(tmp_path, model_file, change, match):
  content = as_json(model_file, 2)
  change(content)
  path = tmp_path / 'tokenizer.json'
  path.write_text(json.dumps(content))
  with pytest.raises(UserError, match=match):
    vocabulary.load_vocabulary(path)


def test_no_json_at_all(tmp_path):
  (tmp_path / 'tokenizer.json').write_text('{"model": ')
  with pytest.raises(UserError, match='no tokenizer.json of a T5'):
    vocabulary.load_vocabulary(tmp_path / 'tokenizer.json')
