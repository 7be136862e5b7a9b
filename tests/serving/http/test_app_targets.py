"""Encoder-decoder models and models that answer questions, as clients see them: the texts of
`llmkit generate` and the answers of `llmkit predict`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import pairs
from tests.harness import Server
from tests.jobs import WORDS
from tests.serving.conftest import Generate, Running
from tests.serving.http.test_app import rows_of

SOURCES = [source for source, _ in pairs.word_pairs(3, 24, 6)]


def texts_of(running: Running, **fields: Any) -> list[str]:
    """The texts of a completion by the encoder-decoder model."""
    found = running.client().completions.create(model="translator", **fields)
    return [choice.text for choice in found.choices]


def test_targets_are_those_of_generate_alone_among_others_and_streamed(
    running: Running, translator: Path, generate: Generate
) -> None:
    asked = [{"prompt": source} for source in SOURCES]
    expected = [row["text"] for row in generate(translator, asked, "generation.max_new_tokens=6")]
    assert len(set(expected)) > 12
    assert texts_of(running, prompt=SOURCES, max_tokens=6) == expected

    def streamed(source: str) -> str:
        chunks = running.client().completions.create(
            model="translator", prompt=source, max_tokens=6, stream=True
        )
        return "".join(chunk.choices[0].text for chunk in chunks)

    def whole(source: str) -> str:
        [text] = texts_of(running, prompt=source, max_tokens=6)
        return text

    with ThreadPoolExecutor(24) as pool:
        assert list(pool.map(whole, SOURCES)) == expected
        assert list(pool.map(streamed, SOURCES)) == expected
    assert [whole(source) for source in SOURCES[:3]] == expected[:3]


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({"n": 2}, ["generation.num_return_sequences=2"]),
        ({"temperature": 1.5, "n": 3}, ["generation.temperature=1.5", "generation.do_sample=true",
                                        "generation.num_return_sequences=3"]),
        ({"stop": ["e"]}, ["generation.stop=[e]"]),
        ({"max_tokens": 3, "extra_body": {"no_repeat_ngram_size": 1}},
         ["generation.max_new_tokens=3", "generation.no_repeat_ngram_size=1"]),
    ],
)  # fmt: skip
def test_fields_mean_what_the_keys_of_generate_mean(
    running: Running,
    translator: Path,
    generate: Generate,
    fields: dict[str, Any],
    settings: list[str],
) -> None:
    asked = [{"prompt": source, "seed": 7} for source in SOURCES[:4]]
    expected = generate(translator, asked, "generation.max_new_tokens=24", *settings)
    given = {"max_tokens": 24, **fields}
    found = texts_of(running, prompt=SOURCES[:4], seed=7, **given)
    assert found == [row["text"] for row in expected]


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"logprobs": 1}, "logprobs", "does not work with 'translator'"),
        ({"regex": "a"}, "regex", "does not work with 'translator'"),
        ({"choices": ["a"]}, "choices", "does not work with 'translator'"),
        ({"bad_words": ["a"]}, "bad_words", "does not work with 'translator'"),
        ({"n": 3}, "n", "is above the beams"),
        ({"prompt": "one " * 200}, "prompt", "the model reads at most"),
        ({"max_tokens": 5000}, "max_tokens", "serve.max_new_tokens"),
    ],
)
def test_a_field_that_does_not_work_is_refused_by_name(
    running: Running, fields: dict[str, Any], param: str, said: str
) -> None:
    response = running.post("/v1/completions", {"model": "translator", "prompt": "a", **fields})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert said in error["message"]


def test_a_chat_with_a_model_that_holds_none_is_refused(running: Running) -> None:
    body = {"model": "translator", "messages": [{"role": "user", "content": "a"}]}
    error = running.post("/v1/chat/completions", body).json()["error"]
    assert "use /v1/completions" in error["message"]
    assert running.figure("llmkit_generated_tokens_total", model="translator") > 0


def questions() -> list[dict[str, str]]:
    """Some contexts are longer than a window."""
    return [
        {"question": f"how {word}", "context": " ".join(WORDS[n % 5 :] * (1 + n % 3))}
        for n, word in enumerate(WORDS * 2)
    ]


def test_answers_are_those_of_predict_alone_and_among_others(
    running: Running, forker: Server, answerer: Path, tmp_path: Path
) -> None:
    rows = questions()
    expected = rows_of(forker, answerer, rows, tmp_path)
    assert len({row["answer"] for row in expected}) > 8
    assert any(row["answer"] == "" for row in expected)

    def assert_answered(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
        for each, row in zip(found, expected, strict=True):
            assert each["probability"] == pytest.approx(row["probability"], abs=2e-6)
            for name in ("answer", "start", "end"):
                assert each[name] == row[name]
            if each["answer"]:
                assert row["context"][each["start"] : each["end"]] == each["answer"]

    asked = {name: [row[name] for row in rows] for name in ("question", "context")}
    whole = running.post("/v1/answer", asked).json()
    assert_answered(whole["data"], expected)
    with ThreadPoolExecutor(34) as pool:
        each = list(pool.map(lambda row: running.post("/v1/answer", row), rows))
    assert_answered([response.json()["data"][0] for response in each], expected)
    context = rows[0]["context"]
    several = {"question": ["how far", rows[0]["question"]], "context": context}
    found = running.post("/v1/answer", several).json()["data"]
    assert_answered(found[1:], expected[:1])


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"question": "a"}, "context", "is missing"),
        ({"question": ["a", "b"], "context": ["c"]}, "context", "there are 1 for 2 questions"),
        ({"question": "", "context": "c"}, "question", "at least 1 character"),
        ({"question": "a", "context": "c", "model": "sorter"}, "model", "is for /v1/classify"),
        ({"question": "a", "context": "c", "top_k": 3}, "top_k", "is not a field"),
    ],
)
def test_a_wrong_question_is_refused_by_name(
    running: Running, body: dict[str, Any], param: str, said: str
) -> None:
    response = running.post("/v1/answer", body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert said in error["message"]
    wrong = running.post("/v1/classify", {"model": "answerer", "input": "a"})
    assert "is for /v1/answer" in wrong.json()["error"]["message"]
