import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from retro_jax.config import RetrievalConfig
from retro_jax.errors import UserError
from retro_jax.retrieval.embedder import open_embedder
from retro_jax.retrieval.embedders import bert, bert_network, tfidf
from retro_jax.retrieval.indexes.exact import Exact

FIXTURE = Path(__file__).parent.parent / "fixtures" / "bert"
TEXTS = [f"def name_{i % 37}(a, b{i}): return {i * 7 % 101} + value_{i % 11}\n" for i in range(300)]


def test_a_chunk_is_its_own_nearest_neighbour_through_the_query_path(tmp_path):
    """Database and live queries are embedded alike (trap 29), also by a saved embedder."""
    embedder = tfidf.fit_tfidf(TEXTS, 32)
    vectors = embedder.embed(TEXTS)
    embedder.save(tmp_path)
    reloaded = open_embedder(RetrievalConfig(embedder="tfidf"), tmp_path, 16)
    index = Exact(vectors)
    for i in (0, 150, 299):
        ids, distances = index.search(reloaded.embed([TEXTS[i]]), 1)
        assert TEXTS[ids[0, 0]] == TEXTS[i]
        np.testing.assert_allclose(distances, 0, atol=1e-5)


def test_vectors_are_of_length_1_and_unknown_words_are_far_from_all():
    """A vector of 0 would have distance 1 to all, and be the neighbour of whatever has none nearer."""
    vectors = tfidf.fit_tfidf(TEXTS, 32).embed([*TEXTS[:5], "ⵣ ⵣ", ""])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert (vectors[5:] @ vectors[:5].T).max() < 0


def test_similar_texts_are_nearer_than_others():
    embedder = tfidf.fit_tfidf(TEXTS, 32)
    a, b, c = embedder.embed(["def name_3(a): value_5", "def name_3(b): value_5", "return 99 +"])
    assert ((a - b) ** 2).sum() < ((a - c) ** 2).sum()


def test_too_many_dimensions_are_refused_by_field():
    with pytest.raises(UserError, match=r"retrieval\.settings\.tfidf\.dim = 500"):
        tfidf.fit_tfidf(TEXTS, 500)


def test_bert_equals_the_reference():
    io = np.load(FIXTURE / "io.npz")
    model = bert_network.load_bert(FIXTURE)
    mask = io["attention_mask"].astype(bool)
    got = np.asarray(model(io["ids_padded"], mask))
    np.testing.assert_allclose(got[mask], io["last_hidden_state"][mask], atol=1e-5)
    mean = bert.pool(model(io["ids_padded"], mask), mask, ("mean",))
    np.testing.assert_allclose(mean, io["mean_pooled_masked"], atol=1e-5)


def load(directory: Path, **fields):
    """The BERT of a directory, as a config names it."""
    settings = {"bert": {"directory": str(directory)} | fields}
    return open_embedder(RetrievalConfig(embedder="bert", settings=settings), None, 16)


@pytest.fixture
def bert_directory(tmp_path):
    """The fixture's weights with a WordPiece tokenizer of its vocabulary's size."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] + [f"w{i}" for i in range(93)]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((FIXTURE / name).read_bytes())
    return tmp_path


def test_bert_embeds_texts_alike_alone_and_in_a_batch_of_many_lengths(bert_directory):
    embedder = load(bert_directory)
    texts = ["w1", "w2 w3 w4", " ".join(f"w{i % 90}" for i in range(100)), "", "w5 unknown"]
    together = embedder.embed(texts)
    assert together.shape == (5, 32)
    for i, text in enumerate(texts):
        np.testing.assert_allclose(embedder.embed([text])[0], together[i], atol=1e-5)
    ids = np.array([[2, 5, 3]])  # [CLS] w1 [SEP]
    graph, params = nnx.split(bert_network.load_bert(bert_directory))
    mask = np.ones((1, 3), bool)
    expected = bert.pool(nnx.merge(graph, params)(ids, mask), mask, ("mean",))
    np.testing.assert_allclose(together[0], expected[0], atol=1e-5)
    assert jax.device_count() == 8  # embedding leaves the mesh of the caller alone


def test_bfloat16_points_the_same_way(bert_directory):
    texts = [" ".join(f"w{(i * j) % 90}" for j in range(1 + i % 40)) for i in range(100)]
    full, half = (load(bert_directory, dtype=d).embed(texts) for d in ("float32", "bfloat16"))
    assert half.dtype == np.float32
    cosine = (full * half).sum(1) / np.linalg.norm(full, axis=1) / np.linalg.norm(half, axis=1)
    assert 0.998 < cosine.min() < 1 - 1e-7  # and it is not the float32 computation


def test_what_a_chunk_costs_is_counted(bert_directory):
    """The products of every layer: with the weights, and of the tokens with each other."""
    embedder, c = load(bert_directory), json.loads((bert_directory / "config.json").read_text())
    d, ff, t = c["hidden_size"], c["intermediate_size"], 16
    each = 2 * t * (4 * d * d + 2 * d * ff) + 4 * t * t * d
    assert embedder.operations == c["num_hidden_layers"] * each


def test_a_batch_is_spread_over_all_devices(bert_directory):
    embedder = bert.Bert(bert_directory, batch=64)
    lowered = []
    embedder._vectors = lambda p, ids, mask: (
        lowered.append(ids.sharding) or ids[:, :1] * np.ones(32)
    )
    embedder.embed(["w1"] * 70)
    assert [len(s.device_set) for s in lowered] == [8, 8]
    assert all(s.spec == jax.sharding.PartitionSpec("data") for s in lowered)


def test_padding_that_the_tokenizer_file_asks_for_is_not_text(bert_directory):
    from tokenizers import Tokenizer

    path = bert_directory / "tokenizer.json"
    plain = load(bert_directory).embed(["w1 w2"])
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_padding(length=30)
    tokenizer.enable_truncation(max_length=3)
    tokenizer.save(str(path))
    padded = load(bert_directory).embed(["w1 w2"])
    np.testing.assert_allclose(padded, plain, atol=1e-6)


def test_older_names_and_prefixes_are_read(bert_directory):
    weights = load_file(bert_directory / "model.safetensors")
    renamed = {
        "bert."
        + n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): w
        for n, w in weights.items()
    }
    save_file(renamed, bert_directory / "model.safetensors")
    bert_network.load_bert(bert_directory)


def test_directories_that_are_no_bert_are_refused(bert_directory, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such directory"):
        bert_network.load_bert(tmp_path / "nowhere")
    weights = bert_directory / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="damaged or cut off"):
        bert_network.load_bert(bert_directory)
    weights.write_bytes(whole)
    config = json.loads((bert_directory / "config.json").read_text())
    (bert_directory / "config.json").write_text(json.dumps(config | {"hidden_size": 48}))
    with pytest.raises(UserError, match=r"config\.json implies"):
        bert_network.load_bert(bert_directory)
    (bert_directory / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(UserError, match="model_type"):
        bert_network.load_bert(bert_directory)
