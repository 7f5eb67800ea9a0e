"""What is retrieved, of one database or several, filtered or not, is what comparing everything says."""

import live
import numpy as np
import pytest
from live import ALL, M, chunk_of, documents_of, found, prose

from retro_jax.config.filters import Where
from retro_jax.corpus import collect
from retro_jax.corpus.document import Document
from retro_jax.databases import part
from retro_jax.errors import UserError
from retro_jax.retrieval.sharded import ShardedIndex


@pytest.fixture(scope="module", params=live.KINDS)
def made(request, tmp_path_factory):
    return live.made(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def work(made, tmp_path):
    return live.Work(made, tmp_path)


def test_without_changes_it_is_what_the_index_finds(work):
    texts = [work.databases.prepared.tokenizer.decode(c) for c in work.queries.tolist()]
    prepared = work.databases.prepared
    queries, ranking = prepared.encoder.queries(texts), prepared.ranking
    found = ShardedIndex(work.base / "index").search(queries.searched, ranking.fetch(2))
    ids, distances = ranking.order(queries, prepared.words("train"), found, 2)
    near = work.retriever.retrieve(work.queries)
    np.testing.assert_array_equal(near.ids, ids)
    np.testing.assert_array_equal(near.distances, distances)
    np.testing.assert_array_equal(near.tokens, work.table.values(ids))
    assert near.tokens.dtype == work.table.tokens.dtype
    assert not (work.root / "databases").exists()


def test_an_id_tells_where_a_chunk_is_from(work):
    for id in (0, 5, len(work.table) - 1):
        document = work.table.documents[work.table.document[id]]
        chunk = id - document["first"]
        assert work.retriever.source_of(id) == {
            "database": "prepared", "document": document["id"], "chunk": chunk,
            "offset": max(0, chunk * M - 1), "metadata": document["metadata"],
        }  # fmt: skip
    with pytest.raises(KeyError):
        work.retriever.source_of(7 << 40)


def test_where_most_is_deleted_what_is_left_is_found_exactly(work, monkeypatch):
    monkeypatch.setattr(part, "_FEW", 40)
    kept = {d["id"] for d in list(work.table.documents)[:3]}
    full = work.retriever.retrieve(work.queries, k=ALL)
    documents = documents_of(work.retriever, full)
    work.databases.delete("prepared", {d["id"] for d in work.table.documents} - kept)
    near = work.retriever.retrieve(work.queries, k=5)
    for row, names in enumerate(documents):
        left = [d for name, d in zip(names, full.distances[row]) if name in kept][:5]
        assert near.distances[row, : len(left)].tolist() == left
        assert (near.ids[row, len(left) :] == -1).all()


def test_weights_decide_between_databases(work):
    words = work.e.retrieval.rerank == "bm25"
    for name in ("one", "two"):
        documents = [Document(f"{name}{i}", prose(f"{name}{i}", 30)) for i in range(30)]
        work.databases.add(name, documents)
    retrieve = work.retriever.retrieve
    apart = [retrieve(work.queries, k=6, databases=[name]).distances for name in ("one", "two")]
    for weight in (1.0, 0.5, 3.0):
        both = retrieve(work.queries, k=6, databases=["one", f"two={weight}"])
        for row, near in enumerate(both.distances):
            pairs = [(d, d) for d in apart[0][row]]
            pairs += [(d * weight if words else d / weight, d) for d in apart[1][row]]
            np.testing.assert_array_equal(near, [d for _, d in sorted(pairs)][:6])

    def of(weight):
        ids = retrieve(work.queries, databases=["one", f"two={weight}"]).ids
        return {work.retriever.source_of(i)["database"] for i in ids.ravel()}

    assert of(1e5) == {"two"}
    assert of(1e-5) == {"one"}


@pytest.mark.parametrize(
    ("databases", "message"),
    [
        (["other"], "no database 'other': there are prepared, notes"),
        (["../notes"], "no database '../notes'"),
        (["notes=0"], "database 'notes=0': its weight must lie between.*prepared, notes"),
        (["notes=nan"], "weight"),
        (["notes=much"], "weight"),
        (["notes", "notes=2"], "named twice"),
        ([], "name one of prepared, notes"),
    ],
)
def test_unknown_databases_and_bad_weights(work, databases, message):
    work.databases.add("notes", [Document("a", "kara lopo")])
    with pytest.raises(UserError, match=message):
        work.retriever.retrieve(work.queries[:1], databases=databases)
    with pytest.raises(UserError, match=message):
        work.retriever.check(databases)
    work.retriever.check(["prepared", "notes=2"])


@pytest.mark.parametrize("few", [4096, 30])  # compared, or searched until too many have failed
@pytest.mark.parametrize(
    "where",
    [
        Where(date_from="2020", licence=("MIT",)),
        Where(source=("s3",)),
        Where(date_from="2020-05", date_to="2022", source=("s0", "s1", "s6")),
        Where(licence=("none",)),
        Where(source=("added",)),
    ],
)
def test_filters_equal_brute_force(work, where, few, monkeypatch):
    monkeypatch.setattr(part, "_FEW", few)
    metadata = {"source": "added", "licence": "MIT", "date": "2024-01-01"}
    more = [Document(f"m{i}", prose(500 + i, 30), metadata) for i in range(5)]
    work.databases.add("prepared", [*more, Document("bare", prose(3, 30))])
    work.databases.delete("prepared", ["m2"])
    full = work.retriever.retrieve(work.queries, k=ALL)
    match = [
        [where.matches(work.retriever.source_of(i)["metadata"]) for i in row if i >= 0]
        for row in full.ids
    ]
    for k in (2, 7, 2):  # the last time what matches is known
        near = work.retriever.retrieve(work.queries, k=k, where=where)
        for row, matches in enumerate(match):
            left = full.distances[row, : len(matches)][matches][:k].tolist()
            assert near.distances[row, : len(left)].tolist() == left
            assert (near.ids[row, len(left) :] == -1).all()
        sources = [work.retriever.source_of(i) for i in near.ids[near.ids >= 0]]
        assert all(where.matches(s["metadata"]) for s in sources)
        assert "m2" not in {s["document"] for s in sources}


def test_what_is_added_compares_with_what_was_prepared(work):
    """The same chunks under other ids are as near: by words that means by the same statistics."""
    documents = list(collect.read(work.base / "corpus", "train"))[:10]
    work.databases.add("again", [Document(f"again {d.id}", d.text) for d in documents])
    chunks = np.concatenate([work.queries, chunk_of(work.retriever, "zebra " + prose(1))])
    scores = []
    for name in ("prepared", "again"):
        near = work.retriever.retrieve(chunks, k=ALL, databases=[name])
        scores.append({})
        for row, i in np.argwhere(near.ids >= 0):
            source = work.retriever.source_of(near.ids[row, i])
            document = source["document"].removeprefix("again ")
            scores[-1][row, document, source["chunk"]] = near.distances[row, i]
    assert len(scores[1]) > 100
    pairs = [(scores[0][key], distance) for key, distance in scores[1].items()]
    np.testing.assert_allclose(*zip(*pairs), rtol=1e-6, atol=1e-6)


def test_a_word_that_was_not_prepared_is_the_rarest_of_all(work):
    work.databases.add("again", [Document("rare", "quagga kara"), Document("b", "kara lopo")])
    near = found(work.retriever, "quagga kara", "prepared", "again")
    assert near[0] == "rare" or work.e.retrieval.rerank == "none"
