"""The routes, as the client of OpenAI sees them: the texts and labels of the other commands."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.harness import Server
from tests.jobs import WORDS
from tests.serving.conftest import CONTEXT, LABELS, Generate, Running

PROMPTS = ("the cat", "a dog", "home", "how far the little dog had run", "on a mat", "x")


def asked(count: int) -> list[dict[str, Any]]:
    """Prompts of several lengths, each with its own seed."""
    prompts = itertools.cycle(PROMPTS)
    return [{"prompt": next(prompts), "seed": seed} for seed in range(count)]


def text_of(client: openai.OpenAI, model: str = "talker", **fields: Any) -> str:
    """The text of a completion."""
    return client.completions.create(model=model, **fields).choices[0].text


def streamed_text(client: openai.OpenAI, **fields: Any) -> str:
    """The same from the events of a stream."""
    stream = client.completions.create(model="talker", stream=True, **fields)
    return "".join(chunk.choices[0].text for chunk in stream)


def test_concurrent_requests_get_the_texts_of_generate(
    running: Running, talker: Path, generate: Generate
) -> None:
    client, prompts = running.client(), asked(32)
    expected = [row["text"] for row in generate(talker, prompts)]
    assert len(set(expected)) > 16
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(lambda each: text_of(client, **each), prompts)) == expected
        assert list(pool.map(lambda each: streamed_text(client, **each), prompts)) == expected
    assert [text_of(client, **each) for each in prompts[:4]] == expected[:4]


def test_a_text_does_not_depend_on_requests_with_other_settings(running: Running) -> None:
    client = running.client()
    settings: list[dict[str, Any]] = [
        {},
        {"temperature": 0},
        {"temperature": 1.5, "extra_body": {"top_k": 0}},
        {"top_p": 0.5, "frequency_penalty": 0.5, "presence_penalty": 0.2},
        {"extra_body": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}},
        {"extra_body": {"bad_words": ["e"], "min_new_tokens": 5}},
    ]
    fields = [{**settings[n % len(settings)], **each} for n, each in enumerate(asked(18))]
    alone = [text_of(client, **each) for each in fields]
    with ThreadPoolExecutor(18) as pool:
        assert list(pool.map(lambda each: text_of(client, **each), fields)) == alone


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({"temperature": 0}, ["generation.do_sample=false"]),
        ({"temperature": 1.3, "top_p": 0.7}, ["generation.temperature=1.3", "generation.top_p=.7"]),
        ({"stop": ["a", "th"]}, ["generation.stop=[a, th]"]),
        ({"extra_body": {"choices": ["yes", "no"]}}, ["generation.choices=[yes, no]"]),
        ({"extra_body": {"regex": "[a-z]{3} [0-9]"}}, ["generation.regex=[a-z]{3} [0-9]"]),
        ({"extra_body": {"min_p": 0.1, "typical_p": 0.8, "top_k": 7}},
         ["generation.min_p=0.1", "generation.typical_p=0.8", "generation.top_k=7"]),
    ],
)  # fmt: skip
def test_fields_mean_what_the_keys_of_generate_mean(
    fields: dict[str, Any],
    settings: list[str],
    running: Running,
    talker: Path,
    generate: Generate,
) -> None:
    client = running.client()
    expected = [row["text"] for row in generate(talker, asked(4), *settings)]
    assert [text_of(client, **each, **fields) for each in asked(4)] == expected


def test_several_prompts_and_choices_come_in_order(
    running: Running, talker: Path, generate: Generate
) -> None:
    prompts = ["the cat", "a dog", "the cat"]
    expected = generate(
        talker, [{"prompt": text, "seed": 5} for text in prompts],
        "generation.num_return_sequences=3",
    )  # fmt: skip
    client = running.client()
    found = client.completions.create(model="talker", prompt=prompts, n=3, seed=5)
    assert [choice.text for choice in found.choices] == [row["text"] for row in expected]
    assert [choice.index for choice in found.choices] == list(range(9))
    stream = client.completions.create(
        model="talker", prompt=prompts, n=3, seed=5, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    texts, usage = [""] * 9, None
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
        usage = chunk.usage or usage
    assert texts == [row["text"] for row in expected]
    assert usage == found.usage
    assert usage is not None
    assert usage.completion_tokens == sum(len(row["tokens"]) for row in expected)


def test_a_chat_is_that_of_generate(running: Running, talker: Path, generate: Generate) -> None:
    client, model = running.client(), "talker"
    prompts = [{"prompt": "hi", "system": "be kind", "seed": seed} for seed in range(3)]
    expected = [row["text"] for row in generate(talker, prompts, "--chat")]
    messages: Any = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    chat = client.chat.completions
    found = [chat.create(model=model, messages=messages, seed=seed) for seed in range(3)]
    assert [each.choices[0].message.content for each in found] == expected
    assert found[0].choices[0].message.role == "assistant"
    for seed, text in enumerate(expected):
        chunks = chat.create(model=model, messages=messages, seed=seed, stream=True)
        parts = [chunk.choices[0].delta.content or "" for chunk in chunks]
        assert "".join(parts) == text
    parted = [{"role": "user", "content": [{"type": "text", "text": part} for part in "hi"]}]
    again = chat.create(model=model, messages=[messages[0], *parted], seed=0)
    assert again.choices[0].message.content == expected[0]


def test_without_a_seed_texts_differ_and_the_response_states_the_seed(running: Running) -> None:
    client = running.client()
    found = [client.completions.create(model="talker", prompt="the") for _ in range(8)]
    assert len({each.choices[0].text for each in found}) > 1
    seed = found[0].model_extra["seed"]  # type: ignore[index]
    assert text_of(client, prompt="the", seed=seed) == found[0].choices[0].text


def test_log_probabilities_are_those_of_transformers(
    running: Running, talker: Path, generate: Generate
) -> None:
    client = running.client()
    fields: dict[str, Any] = {"model": "talker", "prompt": "the cat", "seed": 1, "max_tokens": 9}
    [row] = generate(talker, [{"prompt": "the cat", "seed": 1}], "generation.max_new_tokens=9")
    found = client.completions.create(**fields, logprobs=3).choices[0].logprobs
    reader, model = (kind.from_pretrained(talker) for kind in (AutoTokenizer, AutoModelForCausalLM))
    assert found is not None
    assert found.tokens == [reader.decode([id]) for id in row["tokens"]]
    ids = reader("the cat")["input_ids"]
    for place, chosen in enumerate(row["tokens"]):
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        assert found.token_logprobs is not None
        assert found.token_logprobs[place] == pytest.approx(float(logprobs[chosen]), abs=1e-4)
        best = {}
        for id in reversed([*logprobs.topk(3).indices.tolist(), chosen]):
            best[reader.decode([id])] = max(
                float(logprobs[id]), best.get(reader.decode([id]), -torch.inf)
            )
        assert found.top_logprobs is not None
        assert found.top_logprobs[place] == pytest.approx(best, abs=1e-4)
        ids = [*ids, chosen]
    only = client.completions.create(**fields, logprobs=0).choices[0].logprobs
    assert only is not None
    assert only.token_logprobs == found.token_logprobs
    assert only.top_logprobs is None
    chunks = client.completions.create(**fields, logprobs=3, stream=True)
    parts = [chunk.choices[0].logprobs for chunk in chunks]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        streamed = [each for part in parts if part for each in getattr(part, name)]
        assert streamed == getattr(found, name)


def test_a_chat_has_log_probabilities_with_bytes(running: Running) -> None:
    found = running.client().chat.completions.create(
        model="talker", messages=[{"role": "user", "content": "hi"}], seed=1, logprobs=True,
        top_logprobs=2, max_completion_tokens=8,
    )  # fmt: skip
    [choice] = found.choices
    assert choice.logprobs is not None
    content = choice.logprobs.content or []
    assert len(content) == 8
    assert all(len(each.top_logprobs) == 2 for each in content)
    for each in content:
        whole = "\N{REPLACEMENT CHARACTER}" not in each.token
        assert (bytes(each.bytes).decode() if each.bytes else None) == (
            each.token if whole else None
        )


def test_a_text_has_the_form_that_was_asked_for(running: Running) -> None:
    pytest.importorskip("llguidance")
    schema = {
        "type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"],
        "additionalProperties": False, "x-guidance": {"whitespace_flexible": False},
    }  # fmt: skip
    form: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    found = running.client().chat.completions.create(
        model="talker", messages=[{"role": "user", "content": "hi"}], response_format=form, n=4
    )
    for choice in found.choices:
        assert json.loads(choice.message.content or "") in ({"n": 1}, {"n": 2})
        assert choice.finish_reason == "stop"


def test_an_ensemble_and_a_base_model_have_the_texts_of_generate(
    running: Running, base: Path, experts: Path, generate: Generate
) -> None:
    client = running.client()
    for name, path in (("base", base), ("ex", experts)):
        expected = [row["text"] for row in generate(path, asked(6))]
        with ThreadPoolExecutor(6) as pool:
            texts = pool.map(lambda each, name=name: text_of(client, name, **each), asked(6))
            assert list(texts) == expected


@pytest.mark.parametrize("field", ["tools", "logit_bias", "best_of", "echo", "suffix", "user"])
def test_an_unsupported_field_is_refused_by_name(running: Running, field: str) -> None:
    with pytest.raises(openai.BadRequestError) as fault:
        text_of(running.client(), prompt="a", extra_body={field: 1})
    body: Any = fault.value.body
    assert body["param"] == field
    assert body["code"] == "unsupported_field"
    assert f"{field}: is not supported" in body["message"]
    assert text_of(running.client(), prompt="a", seed=1, extra_body={field: None})


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"temprature": 1}, "temprature", "did you mean temperature?"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": "warm"}, "temperature", "valid number"),
        ({"top_p": 2}, "top_p", "less than or equal to 1"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 65}, "n", "serve.max_texts"),
        ({"n": 2, "temperature": 0}, "n", "equal texts without sampling"),
        ({"seed": 1.5}, "seed", "valid integer"),
        ({"stop": [""]}, "stop", "at least 1 character"),
        ({"max_tokens": 5000}, "max_tokens", "serve.max_new_tokens"),
        ({"max_tokens": 4, "min_new_tokens": 9}, "min_new_tokens", "is above max_tokens"),
        ({"max_tokens": CONTEXT}, "messages", f"holds {CONTEXT}"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"max_tokens": 2, "max_completion_tokens": 2}, "max_tokens", "is also given"),
        ({"choices": ["a"], "regex": "b"}, "regex", "cannot be combined with choices"),
        ({"regex": "(?=a)"}, "regex", "does not accept"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "text"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "is missing"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "system"),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "messages[0].name", "is"),
        ({"messages": [{"role": "user", "content": "a " * 200}]}, "messages", "context holds"),
        ({"model": "base"}, "model", "no chat template; use /v1/completions"),
        ({"model": "sorter"}, "model", "is for /v1/classify"),
    ],
)
def test_a_wrong_field_is_refused_by_name(
    fields: dict[str, Any], param: str, said: str, running: Running
) -> None:
    if "regex" in fields or "response_format" in fields:
        pytest.importorskip("llguidance")
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    response = running.post("/v1/chat/completions", body)
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert error["param"] == param, error
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"


def test_all_wrong_fields_are_named_together(running: Running) -> None:
    response = running.post("/v1/completions", {"tools": [], "n": "x", "colour": 1})
    message = response.json()["error"]["message"]
    for part in ("tools: is not supported", "n: should be", "colour: is not", "prompt: is missing"):
        assert part in message


def test_a_model_that_is_not_served_is_not_found(running: Running) -> None:
    client = running.client()
    with pytest.raises(openai.NotFoundError, match="there is talker, base, sorter"):
        text_of(client, "gpt-4", prompt="a")
    with pytest.raises(openai.NotFoundError, match="no /v1/embeddings; /docs lists"):
        client.embeddings.create(model="talker", input="a")


def test_models_are_listed_with_what_they_do(running: Running) -> None:
    client = running.client()
    found = {model.id: model.model_extra or {} for model in client.models.list()}
    tasks = {name: extra["task"] for name, extra in found.items()}
    assert tasks == {
        "talker": "chat", "base": "completion", "ex": "completion",
        "sorter": "classification", "pairer": "classification", "tagger": "tagging",
        "answerer": "question_answering", "translator": "sequence_to_sequence",
    }  # fmt: skip
    assert found["talker"]["context"] == CONTEXT
    assert found["sorter"]["labels"] == list(LABELS)
    assert found["tagger"]["labels"] == ["X", "Y"]
    assert found["answerer"]["labels"] == ["answered", "unanswered"]
    assert client.models.retrieve("base").id == "base"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")


def rows_of(
    forker: Server, model: Path, rows: list[dict[str, str]], place: Path
) -> list[dict[str, Any]]:
    """What `llmkit predict` writes for rows."""
    given, written = place / "rows.jsonl", place / "labels.jsonl"
    given.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = forker.run(
        "predict", "--model", model, "--csv", given, "--output", written, "predict.precision=fp32"
    )
    assert ended.code == 0, ended.err
    return [json.loads(line) for line in written.read_text().splitlines()]


def assert_predicted(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [each["label"] for each in found] == [row["label"] for row in expected]
    for each, row in zip(found, expected, strict=True):
        assert each["scores"] == pytest.approx(row["probabilities"], abs=2e-6)


def test_labels_are_those_of_predict_alone_and_among_others(
    running: Running, forker: Server, sorter: Path, tmp_path: Path
) -> None:
    words = itertools.cycle(WORDS)
    texts = [" ".join(itertools.islice(words, 1 + n % 9)) for n in range(40)]
    expected = rows_of(forker, sorter, [{"text": text} for text in texts], tmp_path)
    assert len({row["label"] for row in expected}) > 1
    whole = running.post("/v1/classify", {"model": "sorter", "input": texts}).json()
    assert_predicted(whole["data"], expected)
    with ThreadPoolExecutor(40) as pool:
        each = list(pool.map(lambda text: running.post("/v1/classify", {"input": text}), texts))
    assert_predicted([response.json()["data"][0] for response in each], expected)


def test_pairs_are_classified_and_mixtures_refused(
    running: Running, forker: Server, pairer: Path, tmp_path: Path
) -> None:
    rows = [{"premise": "the cat", "hypothesis": "a dog"}, {"premise": "a", "hypothesis": "b"}]
    expected = rows_of(forker, pairer, rows, tmp_path)
    pairs = [{"text": row["premise"], "text_pair": row["hypothesis"]} for row in rows]
    found = running.post("/v1/classify", {"model": "pairer", "input": pairs}).json()
    assert_predicted(found["data"], expected)
    one = running.post("/v1/classify", {"model": "pairer", "input": pairs[1]}).json()
    assert_predicted(one["data"], expected[1:])
    for model, given, said in (
        ("pairer", "the cat", "trained on pairs of texts"),
        ("sorter", pairs, "trained on one text"),
        ("pairer", [pairs[0], "the cat"], "is a mixture"),
        ("sorter", [], "at least 1 item"),
        ("sorter", 3, "input"),
        ("talker", "the cat", "is for /v1/completions"),
    ):
        response = running.post("/v1/classify", {"model": model, "input": given})
        assert response.status_code == 400
        assert said in response.json()["error"]["message"], response.text


def test_spans_are_those_of_predict_alone_and_among_others(
    running: Running, forker: Server, tagger: Path, tmp_path: Path
) -> None:
    words = itertools.cycle(WORDS)
    texts = [" ".join(itertools.islice(words, 1 + n % 33)) for n in range(40)] + [
        "",
        "\u732b \u00e9",
    ]
    expected = rows_of(forker, tagger, [{"text": text} for text in texts], tmp_path)
    assert sum(len(row["spans"]) for row in expected) > 40

    def assert_tagged(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
        for each, row in zip(found, expected, strict=True):
            assert each["probability"] == pytest.approx(row["probability"], abs=2e-6)
            for span, known in zip(each["spans"], row["spans"], strict=True):
                assert span == {
                    **known,
                    "probability": pytest.approx(known["probability"], abs=2e-6),
                }

    asked = {"model": "tagger"}
    whole = running.post("/v1/classify", {**asked, "input": texts}).json()
    assert_tagged(whole["data"], expected)
    with ThreadPoolExecutor(40) as pool:
        each = list(
            pool.map(lambda text: running.post("/v1/classify", {**asked, "input": text}), texts)
        )
    assert_tagged([response.json()["data"][0] for response in each], expected)
    pair = {"text": "a", "text_pair": "b"}
    response = running.post("/v1/classify", {**asked, "input": pair})
    assert response.status_code == 400
    assert "not pairs" in response.json()["error"]["message"]


def test_a_text_that_is_cut_says_so(running: Running) -> None:
    found = running.post("/v1/classify", {"input": ["the cat", "the cat " * 30]}).json()["data"]
    assert "tokens_cut" not in found[0]
    assert found[1]["tokens_cut"] > 0
