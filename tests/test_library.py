"""docs/library.md, run as it is written: on the run that the tests have."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import make_mesh

import retro_jax
from retro_jax.errors import UserError
from retro_jax.evaluate.scorer import Scorer
from retro_jax.model import functional

PAGE = Path(__file__).parents[1] / "docs" / "library.md"


@pytest.fixture(scope="module")
def shell(finished, tmp_path_factory):
    """What the page's names are in the end."""
    root, names = tmp_path_factory.mktemp("library"), {}
    (root / "runs").mkdir()
    (root / "runs" / "quickstart").symlink_to(finished)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)):
            exec(compile(code, f"{PAGE.name}, block {number}", "exec"), names)
    return names


def test_the_page_runs_as_it_is_written(shell):
    assert shell["logits"].shape == (2, 3 * 16, shell["params"]["embedding"].shape[0])
    assert shell["given"].logp != shell["retrieved"].logp != shell["without"].logp
    assert shell["one"].tokens
    assert all(np.isfinite(g).all() for g in shell["gradient"].values())


def test_what_is_searched_is_what_generation_reads(shell, finished, generator):
    retriever = retro_jax.Retriever.open(finished)
    chunk = generator.generate("kara lopo minel tenra " * 8, tokens=1).chunks[0]
    found = retriever.search(chunk["text"], k=2)
    assert [(n["document"], n["chunk"], n["text"]) for n in found] == [
        (n["document"], n["chunk"], n["text"]) for n in chunk["neighbours"]
    ]


def test_texts_of_ones_own_are_read_by_every_chunk(finished, generator):
    """As the generator's `neighbours`."""
    scorer, prompt = Scorer.open(finished, rows=8), "kara lopo minel tenra " * 4 + "kara"
    own = ["kara lopo", "minel"]
    encode = generator.tokenizer.encode
    for seed in range(100):  # until the text is one that has the tokens that were drawn
        made = generator.generate(prompt, tokens=3, neighbours=own, temperature=1.0, seed=seed)
        pair = (prompt, made.text)
        if encode("".join(pair)) == encode(prompt) + made.tokens:
            break
    assert scorer.score([pair], neighbours=own)[0].logp == pytest.approx(
        sum(made.logprobs), abs=1e-3
    )
    with pytest.raises(UserError, match="neighbours = 'kara': must be a list of texts"):
        scorer.score([pair], neighbours="kara")


def test_without_a_mesh_it_is_what_it_is_on_one(shell, tiny):
    """Alone, in a program, and under a gradient."""
    tokens = np.random.default_rng(0).integers(4, 50, (2, 12))
    params = functional.init(tiny, 50, 0)

    def total(params):
        return functional.token_logprobs(tiny, params, tokens).sum()

    with jax.set_mesh(make_mesh(1, 1, 1)):
        same = functional.init(tiny, 50, 0)
        expected, gradient = jax.jit(jax.value_and_grad(total))(same)
    for name, own in params.items():
        np.testing.assert_array_equal(own, same[name])
    assert total(params) == pytest.approx(float(expected), rel=1e-5)
    for found in (jax.grad(total)(params), jax.jit(jax.grad(total))(params)):
        for name, g in found.items():
            np.testing.assert_allclose(g, gradient[name], atol=1e-4, err_msg=name)


def test_what_is_no_text_and_no_token_is_refused_by_what_it_must_be(shell, tiny, finished):
    params, tokens = functional.init(tiny, 50, 0), np.full((2, 12), 7)
    chunks = -(-12 // tiny.reading.chunk)
    for given, near, message in (
        (np.full((1, 3), 50), None, "tokens from 50 to 50: must be ids from 0 to 49"),
        (
            tokens,
            np.full((2, chunks + 1, 1, 8), 7),
            rf"\(2, {chunks + 1}, 1, 8\), int\d+: must be .*\(2, {chunks}, K, R\)",
        ),
        (tokens, np.full((2, chunks, 8), 7), "neighbours of shape"),
        (tokens, np.full((2, chunks, 1, 8), 7.0), r"float\d+: must be integers"),
        (np.full(12, 7), None, r"tokens of shape \(12,\), int\d+: must be \[B, L\], of integers"),
    ):
        with pytest.raises(ValueError, match=message):
            functional.token_logprobs(tiny, params, given, near)
    with pytest.raises(UserError, match=r"give pairs \(context, continuation\)"):
        shell["scorer"].score(["kara lopo"])


def test_dir_shows_the_public_names():
    assert dir(retro_jax) == sorted(retro_jax.__all__)
    for name in retro_jax.__all__:
        assert getattr(retro_jax, name)
    with pytest.raises(AttributeError, match="no attribute 'Generater'"):
        retro_jax.Generater  # noqa: B018
    assert (Path(retro_jax.__file__).parent / "py.typed").exists()
