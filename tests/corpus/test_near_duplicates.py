import random

from retro_jax.corpus.near_duplicates import Contained, HeldOut, jaccard, shingles


def near_duplicates(heldout, training, threshold):
    """Held-out document -> the training documents that it nearly repeats."""
    sketches = HeldOut(heldout.items(), threshold)
    found = {}
    for other, text in training:
        for id in sketches.near(text):
            found.setdefault(id, []).append(other)
    return found


def words(seed, count=400):
    rng = random.Random(seed)
    return [f"w{rng.randrange(500)}" for _ in range(count)]


def test_a_near_copy_is_found_and_an_unrelated_text_is_not():
    original = words(0)
    copy = original.copy()
    copy[200] = "changed"  # 13 of about 388 shingles differ
    found = near_duplicates(
        {"copy": " ".join(copy), "own": " ".join(words(1))},
        [("x", " ".join(words(2))), ("original", " ".join(original))],
        0.8,
    )
    assert found == {"copy": ["original"]}


def test_the_exact_similarity_decides_at_the_threshold():
    original, changed = words(0), words(0)
    for at in range(20, 380, 45):  # 8 changes, each spoils 13 shingles
        changed[at] = "changed"
    similarity = jaccard(shingles(" ".join(original)), shingles(" ".join(changed)))
    assert 0.5 < similarity < 0.7
    texts = {"changed": " ".join(changed)}, [("original", " ".join(original))]
    assert near_duplicates(*texts, similarity + 0.01) == {}
    assert near_duplicates(*texts, similarity - 0.01) == {"changed": ["original"]}


def test_texts_shorter_than_a_shingle_compare_as_wholes():
    assert near_duplicates({"a": "same words"}, [("b", "same words")], 0.8) == {"a": ["b"]}
    assert near_duplicates({"a": "same words"}, [("b", "other words")], 0.8) == {}


def test_what_stands_in_a_larger_document_is_contained_though_no_near_duplicate():
    page, other = words(0, 100), words(1, 100)
    book = [*words(2, 1000), *page, *words(3, 1000)]
    assert near_duplicates({"page": " ".join(page)}, [("book", " ".join(book))], 0.8) == {}
    found = Contained([" ".join(page), " ".join(other), " ".join([*page[:50], *other[:50]])])
    found.add(" ".join(words(4, 300)))
    assert found.shares.tolist() == [0, 0, 0]
    found.add(" ".join(book))
    assert found.shares[:2].tolist() == [1, 0]
    assert found.shares[2] == 38 / 88  # of 100 words there are 88 13-grams, of 50 there are 38
    found.add(" ".join(other))  # the largest of any one, and no sum
    assert found.shares.tolist() == [1, 1, 38 / 88]
