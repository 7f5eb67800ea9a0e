"""The page in a real browser."""

import json
from urllib.parse import urlencode

import browser
import httpx
import pytest
from serving import PROMPT, serving

needs_chromium = pytest.mark.skipif(browser.CHROMIUM is None, reason="there is no Chromium")


def content(id: str) -> str:
    return f"document.getElementById('{id}').textContent"


def test_the_page_needs_nothing_else_and_may_do_nothing_else(generator):
    with serving(generator) as (address, _):
        answer = httpx.get(address)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in answer.text.replace("http-equiv", "")
    assert "innerHTML" not in answer.text


@needs_chromium
def test_a_person_sees_a_text_and_what_it_came_from(generator, tmp_path):
    asked = {"prompt": PROMPT, "tokens": 40, "temperature": 1, "seed": 3}
    expected = generator.generate(
        PROMPT, tokens=40, temperature=1.0, seed=3, align=True, contributions=True
    )
    with serving(generator) as (address, _), browser.open_page(tmp_path) as page:
        page.tell("Page.navigate", url=f"{address}/#{urlencode(asked)}")
        page.wait("document.body && document.body.dataset.done")
        assert page.value(content("error")) == ""
        assert page.value(content("text")) == PROMPT + expected.text
        documents = [n["document"] for c in expected.chunks for n in c["neighbours"]]
        names = "[...document.querySelectorAll('#chunks h3')].map(x => x.lastChild.textContent)"
        assert page.value(names) == documents
        shown = page.value(content("read"))
        assert f"{expected.chunks[0]['neighbours'][0]['distance']:.2f}" in shown.replace("−", "-")
        assert expected.chunks[0]["neighbours"][0]["text"] in shown

        gains = [n.get("contributions", []) for c in expected.chunks for n in c["neighbours"]]
        coloured = page.value("document.querySelectorAll('.token').length")
        notable = sum(
            max(pair) > 0.1 for a, b in zip(gains[::2], gains[1::2]) for pair in zip(a, b)
        )
        assert (
            abs(coloured - notable) <= 2
        )  # sums differ in the last place; a token may have no text
        if coloured:
            page.value("document.querySelector('.token').focus()")
            assert any(d in page.value(content("source")) for d in documents)
        assert json.dumps(page.said) == "[]"


@needs_chromium
def test_what_is_refused_is_shown_and_a_key_asked_for(generator, tmp_path):
    with serving(generator, key="secret") as (address, _), browser.open_page(tmp_path) as page:
        hidden = "document.getElementById('locked').hidden"
        page.tell("Page.navigate", url=address)
        page.wait(f"document.getElementById('locked') && !{hidden}")
        page.wait(f"{content('error')}.includes('wants a key')")
        page.value("document.getElementById('key').value = 'secret'")
        page.value("document.getElementById('databases').value = 'nowhere'")
        page.value("document.getElementById('prompt').value = 'kara <b>lopo</b>'")
        page.value("document.getElementById('go').click()")
        page.wait(f"{content('error')}.includes(\"no database 'nowhere'\")")
        page.value("document.getElementById('databases').value = ''")
        page.value("document.getElementById('go').click()")
        page.wait(f"{content('status')}.includes('tokens in')")
        assert page.value(content("text")).startswith("kara <b>lopo</b>")
        assert page.value("document.querySelectorAll('#text b').length") == 0
        assert page.value("!location.hash.includes('secret')")
