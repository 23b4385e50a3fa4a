"""Prompt initialisation against the reference's arrays.

The embedding table and the vocabulary are real data outside the project; the rows that the
reference used are read from ../shared, so these tests skip where it is absent.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.peft import prompt_init
from prompt_tuning.vocabulary import SentencePieceVocabulary


def zeros(rng, embedding, length, encode_text):
  return jnp.zeros((length, embedding.shape[1]))


@pytest.fixture(scope='module')
def stored(golden_dir):
  with np.load(golden_dir / 'prompt_init' / 'prompt_inits.npz', allow_pickle=False) as file:
    return dict(file)


@pytest.fixture(scope='module')
def texts(golden_dir):
  return json.loads((golden_dir / 'prompt_init' / 'prompt_inits.json').read_text())


@pytest.fixture(scope='module')
def embedding(shared_dir):
  return jnp.asarray(np.load(shared_dir / 'data' / 'vocab' / 'tiny_embeddings_32128x4.npy'))


@pytest.fixture(scope='module')
def encode(shared_dir):
  path = shared_dir / 'data' / 'vocab' / 't5.sentencepiece.model'
  return SentencePieceVocabulary(str(path), extra_ids=0).encode


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('length', [3, 4, 6])
def test_class_labels(stored, texts, embedding, encode, length):
  init = prompt_init.ClassLabels(tuple(texts['labels']), fallback=zeros)
  got = init(jax.random.PRNGKey(0), embedding, length, encode)
  np.testing.assert_allclose(got, stored[f'embedded_list_len{length}'], atol=1e-6)


@pytest.mark.parametrize('length', [5, 40])
def test_text(stored, texts, embedding, encode, length):
  init = prompt_init.Text(texts['sentence'], fallback=zeros)
  got = init(jax.random.PRNGKey(0), embedding, length, encode)
  np.testing.assert_allclose(got, stored[f'embedded_string_len{length}'], atol=1e-6)


def test_uniform(stored):
  got = prompt_init.Uniform(0.5)(jax.random.PRNGKey(0), jnp.zeros((9, 4)), 5, None)
  np.testing.assert_allclose(got, stored['rng_uniform_scale0p5_key0_len5x4'], atol=1e-6)


@pytest.mark.parametrize('top, name', [(5000, 'pop5000_key0_len6'),
                                       (4, 'pop4_key0_len6_with_replacement')])
def test_sampled_vocabulary(stored, embedding, top, name):
  got = prompt_init.SampledVocab(top)(jax.random.PRNGKey(0), embedding, 6, None)
  np.testing.assert_allclose(got, stored[f'rng_sample_{name}'], atol=1e-6)


def test_class_labels_over_sampled_vocabulary(stored, texts, embedding, encode):
  init = prompt_init.ClassLabels(tuple(texts['labels']))
  got = init(jax.random.PRNGKey(0), embedding, 6, encode)
  np.testing.assert_allclose(got, stored['rng_class_labels_pop5000_key0_len6'], atol=1e-6)
