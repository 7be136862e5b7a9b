"""API keys, the size of bodies, and bodies that are not requests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmkit.serving.bodies import BODIES, UNSUPPORTED
from tests.serving.conftest import Running

PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/classify")

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner,
                                                                max_size=3),
    max_leaves=6,
)  # fmt: skip

LIMITED = {"n": st.integers(-1, 3), "max_tokens": st.integers(-1, 9)}
"""Fields whose valid values would take long."""

FIELDS = {
    **{name: VALUES for body in BODIES for name in body.model_fields},
    **dict.fromkeys(UNSUPPORTED, VALUES),
    **LIMITED,
    "model": st.sampled_from(["talker", "base", "sorter", "pairer", "ex", "tagger", "none", 3]),
    "messages": st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "tool"]),
                                                "content": VALUES}), max_size=3),
    "prompt": st.text(max_size=20) | VALUES,
    "input": st.text(max_size=20) | VALUES,
    "temperature": st.floats() | VALUES,
    "stop": st.lists(st.text(max_size=3), max_size=3),
}  # fmt: skip

OBJECTS = st.fixed_dictionaries({}, optional=FIELDS)
ANY = settings(
    max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


@pytest.fixture(scope="module")
def http(running: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.url, timeout=60) as client:
        yield client


def assert_refused_or_done(response: httpx.Response, allowed: tuple[int, ...]) -> None:
    assert response.status_code in allowed, response.text
    if response.status_code != 200:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert "Traceback" not in error["message"]


@pytest.mark.parametrize("path", PATHS)
def test_no_object_of_fields_is_a_bug(path: str, running: Running, http: httpx.Client) -> None:
    @ANY
    @given(OBJECTS)
    def check(body: dict[str, Any]) -> None:
        stream = bool(body.pop("stream", False) is True)
        content = json.dumps({**body, "stream": stream} if stream else body)
        response = http.post(path, content=content, headers={"content-type": "application/json"})
        if "event-stream" not in response.headers["content-type"]:
            assert_refused_or_done(response, (200, 400, 404))

    check()
    assert running.get("/health").status_code == 200
    assert running.figure("llmkit_requests_total", status="500") == 0


@pytest.mark.parametrize("path", PATHS)
def test_no_bytes_are_a_bug(path: str, running: Running, http: httpx.Client) -> None:
    @ANY
    @given(st.binary(max_size=60), st.sampled_from(["application/json", "text/plain", "", "a/b"]))
    def check(content: bytes, kind: str) -> None:
        response = http.post(path, content=content, headers={"content-type": kind})
        assert_refused_or_done(response, (400,))

    check()
    assert running.get("/health").status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"prompt": "a", "seed": ' + b"9" * 6_000 + b"}",
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "a", "stop": ["\\udfff"]}',
        b"{}",
        b"",
        b"\xff\xfe",
        b'"a"',
    ],
)
def test_a_hostile_body_is_refused(content: bytes, running: Running, http: httpx.Client) -> None:
    headers = {"content-type": "application/json"}
    response = http.post("/v1/completions", content=content, headers=headers)
    assert_refused_or_done(response, (400,))


def test_a_body_has_a_limited_size(serve: Callable[..., Running], base: Path) -> None:
    running = serve("--model", base, "serve.max_body_bytes=1000")
    body = {"prompt": "a" * 2000}
    for content in (json.dumps(body).encode(), (b"x" * 100 for _ in range(30))):
        response = httpx.post(f"{running.url}/v1/completions", content=content, timeout=60)
        assert_refused_or_done(response, (413,))
        assert "1,000 bytes (serve.max_body_bytes)" in response.json()["error"]["message"]
    assert running.post("/v1/completions", {"prompt": "a"}).status_code == 200
    assert running.stop().code == 0


def test_keys_of_a_file_open_the_interface(
    serve: Callable[..., Running], base: Path, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text("# the team\nfirst-key\n\nsecond-key\n")
    running = serve("--model", f"base={base}", "--api-key-file", file)
    for key in ("first-key", "second-key"):
        assert running.client(api_key=key).models.list().data[0].id == "base"
    for key in ("third-key", "first-ke", "first-key2"):
        with pytest.raises(openai.AuthenticationError, match="a valid API key is needed"):
            running.client(api_key=key).models.list()
    for path in ("/v1/models", "/metrics", "/v1/nothing"):
        assert running.get(path).status_code == 401
    for path in ("/health", "/ready", "/"):
        assert running.get(path).status_code != 401
    for value in ("first-key", "Basic first-key", "Bearer", "Bearer first-key second-key"):
        response = httpx.get(f"{running.url}/v1/models", headers={"Authorization": value})
        assert response.status_code == 401
    assert running.stop().code == 0


def test_a_wrong_path_or_method_is_answered_in_the_same_form(running: Running) -> None:
    response = running.get("/v1/completions")
    assert response.status_code == 405
    assert "does not accept GET" in response.json()["error"]["message"]
    assert "/docs lists" in running.get("/v2").json()["error"]["message"]
