"""The pages: one to try the models, which a browser uses, and the reference of all requests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmkit.serving.bodies import BODIES
from llmkit.serving.http import pages
from tests.browser import Browser, needs_browser
from tests.serving.conftest import NOVEL, Generate, Running

TURNS = "[...document.querySelectorAll('.turn')].map(each => each.textContent)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture
def page(browser: Browser, running: Running) -> Browser:
    """The page of the server, with all models loaded."""
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(running.url)
    browser.until("document.getElementById('model').options.length === 8")
    return browser


def choose(page: Browser, model: str) -> None:
    page.evaluate(
        f"$('model').value = {json.dumps(model)}; $('model').dispatchEvent(new Event('change'))"
    )


def fill(page: Browser, **values: object) -> None:
    for name, value in values.items():
        page.evaluate(f"document.querySelector('[name={name}]').value = {json.dumps(value)}")


def send(page: Browser, text: str) -> str:
    """Sends a text, and returns what the page says at the end."""
    page.evaluate(f"$('input').value = {json.dumps(text)}; $('form').requestSubmit(); true")
    page.until("running === null")
    state: str = page.evaluate("$('state').textContent")
    return state


def assert_quiet(page: Browser, running: Running) -> None:
    """Nothing was reported, and nothing was loaded from elsewhere."""
    assert page.complaints == []
    assert all(url.startswith((f"{running.url}/", "data:,")) for url in page.requests)


@needs_browser
def test_a_conversation_is_that_of_generate(
    page: Browser, running: Running, talker: Path, generate: Generate
) -> None:
    choose(page, "talker")
    fill(page, seed="3", system="be kind", max_tokens="12")
    state = send(page, "hi")
    [expected] = generate(
        talker, [{"prompt": "hi", "system": "be kind", "seed": 3}], "--chat",
        "generation.max_new_tokens=12",
    )  # fmt: skip
    assert page.evaluate(TURNS) == ["hi", expected["text"]]
    assert state.startswith(f"{len(expected['tokens'])} tokens in ")
    assert state.endswith("seed 3")
    assert page.evaluate("$('input').value") == ""
    send(page, "and you?")
    assert [*map(len, page.evaluate(TURNS))][::2] == [2, 8]
    assert "/v1/chat/completions" in page.evaluate("$('curl').textContent")
    page.evaluate("$('new').click()")
    assert page.evaluate(TURNS) == []
    assert_quiet(page, running)


@needs_browser
def test_a_text_is_continued_where_it_stands(
    page: Browser, running: Running, base: Path, generate: Generate
) -> None:
    choose(page, "base")
    fill(page, seed="4", max_tokens="9")
    send(page, "the cat")
    [expected] = generate(base, [{"prompt": "the cat", "seed": 4}], "generation.max_new_tokens=9")
    assert page.evaluate("$('input').value") == "the cat" + expected["text"]
    assert page.evaluate("$('mode').hidden")
    assert_quiet(page, running)


@needs_browser
def test_labels_have_bars_and_the_chosen_one_a_mark(page: Browser, running: Running) -> None:
    choose(page, "sorter")
    assert send(page, "the cat\n\na dog <b>") == "2 texts"
    found = running.post("/v1/classify", {"model": "sorter", "input": ["the cat", "a dog <b>"]})
    captions = "[...document.querySelectorAll('.label caption')].map(each => each.textContent)"
    first = "[...document.querySelectorAll('.label')].map(each => each.rows[0].innerText)"
    assert page.evaluate(captions) == ["the cat", "a dog <b>"]
    for row, each in zip(page.evaluate(first), found.json()["data"], strict=True):
        assert row.split() == ["\u2713", each["label"], f"{each['scores'][each['label']]:.3f}"]
    assert_quiet(page, running)


@needs_browser
def test_spans_are_marked_in_the_text(page: Browser, running: Running) -> None:
    choose(page, "tagger")
    text = "\U0001f431 the cat sat on a mat and saw how far the little dog had run"
    send(page, text)
    found = running.post("/v1/classify", {"model": "tagger", "input": text}).json()["data"][0]
    marks = "[...document.querySelectorAll('mark')].map(each => each.firstChild.textContent)"
    assert page.evaluate(marks) == [span["text"] for span in found["spans"]]
    page.evaluate("document.querySelectorAll('mark small').forEach(each => each.remove())")
    assert page.evaluate("document.querySelector('#labels .text').textContent") == text
    assert_quiet(page, running)


@needs_browser
def test_a_target_is_written_beside_its_source(page: Browser, running: Running) -> None:
    choose(page, "translator")
    fill(page, max_tokens="4")
    send(page, "one two three")
    body = {"model": "translator", "prompt": "one two three", "max_tokens": 4}
    found = running.post("/v1/completions", body).json()["choices"][0]["text"]
    assert page.evaluate("document.querySelector('#labels .text').textContent") == found
    assert page.evaluate("$('input').value") == "one two three"
    assert_quiet(page, running)


@needs_browser
def test_an_answer_is_marked_in_its_context(page: Browser, running: Running) -> None:
    choose(page, "answerer")
    body = {"question": "how far", "context": "\U0001f431 the cat sat on a mat"}
    [found] = running.post("/v1/answer", body).json()["data"]
    fill(page, question=body["question"])
    state = send(page, body["context"])
    assert state.endswith(f"probability {found['probability']:.3f}")
    marks = "[...document.querySelectorAll('mark')].map(each => each.firstChild.textContent)"
    assert page.evaluate(marks) == ([found["answer"]] if found["answer"] else [])
    assert_quiet(page, running)


@needs_browser
def test_an_error_is_shown_and_the_text_kept(page: Browser, running: Running) -> None:
    choose(page, "talker")
    fill(page, max_tokens="9999")
    send(page, "hi")
    assert "serve.max_new_tokens" in page.evaluate("$('error').textContent")
    assert page.evaluate("$('input').value") == "hi"
    assert page.evaluate(TURNS) == []
    fill(page, max_tokens="4")
    send(page, "hi")
    assert page.evaluate("$('error').hidden")
    assert len(page.evaluate(TURNS)) == 2


@needs_browser
def test_a_long_text_can_be_stopped(
    browser: Browser, serve: Callable[..., Running], novelist: Path
) -> None:
    running = serve("--model", f"novelist={novelist}", NOVEL)
    browser.open(running.url)
    browser.until("document.getElementById('model').options.length === 1")
    fill(browser, max_tokens="39000")
    browser.evaluate("$('input').value = 'a'; $('form').requestSubmit(); true")
    browser.until("$('input').value.length > 3")
    browser.evaluate("$('stop').click()")
    browser.until("running === null")
    while running.figure("llmkit_running_requests"):
        pass
    assert browser.evaluate("$('error').hidden")
    assert running.stop().code == 0


@needs_browser
def test_a_key_is_asked_for_where_one_is_needed(
    browser: Browser, serve: Callable[..., Running], base: Path, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("secret-key")
    running = serve("--model", f"base={base}", "--api-key-file", tmp_path / "keys")
    browser.open(running.url)
    browser.until("!$('key-row').hidden && !$('error').hidden")
    assert browser.evaluate("$('main').hidden")
    browser.evaluate("$('key').value = 'secret-key'; $('use-key').click()")
    browser.until("document.getElementById('model').options.length === 1")
    assert browser.evaluate("$('key-row').hidden && $('error').hidden")
    fill(browser, max_tokens="3")
    assert send(browser, "the cat").startswith("3 tokens")
    assert running.stop().code == 0


@needs_browser
def test_the_reference_opens_without_the_network(browser: Browser, running: Running) -> None:
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(f"{running.url}/docs")
    text = browser.evaluate("document.body.innerText")
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/classify", "/metrics", "/ready"):
        assert path in text
    assert f'base_url="{running.url}/v1"' in text
    assert_quiet(browser, running)


def test_every_field_is_explained_with_its_values(running: Running) -> None:
    text = running.get("/docs").text
    for body in BODIES:
        for name, field in body.model_fields.items():
            assert f"<code>{field.alias or name}</code>" in text
            assert field.description, name
    assert "number in (0, 1]" in text
    assert "text or list of text" in text
    assert "Required. The text, or several." in text


def test_the_example_of_each_path_works(running: Running) -> None:
    text = running.get("/docs").text
    assert text.count("curl ") == 8
    schema = running.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        "/v1/completions", "/v1/chat/completions", "/v1/classify", "/v1/answer", "/v1/models",
        "/v1/models/{name}", "/health", "/ready", "/metrics",
    }  # fmt: skip
    for path, body in pages.EXAMPLES.items():
        response = running.post(path, dict(body))
        assert response.status_code == 200, response.text


def test_browsers_may_load_nothing_else(running: Running) -> None:
    for path in ("/", "/docs"):
        policy = running.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "connect-src 'self'" in policy
