"""OpenAI's inference routes through the official client and the real engine."""

import concurrent.futures
from typing import Any

import openai
import pytest

from tests.serving import Running

CHAT: list[Any] = [{"role": "user", "content": "save the file"}]


def test_chat_answers_with_the_resolved_version_and_its_receipt(server: Running) -> None:
    raw = server.openai().chat.completions.with_raw_response.create(
        model="one", messages=CHAT, max_tokens=4
    )
    answer = raw.parse()

    version = server.registry.find("one@1")
    assert answer.model == "one@1"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4
    assert raw.headers["x-modiste-receipt"] == (
        f"version=one@1; digest={version.digest}; proof=proved"
    )


def test_every_form_of_a_name_gives_the_same_answer(server: Running) -> None:
    digest = server.registry.find("one@1").digest
    names = ["one", "one@production", "one@1", f"one@{digest}", f"one@{digest[:20]}"]
    names.append(f"ft:{server.base.name}:default:one:{digest[7:15]}")

    answers = {
        name: server.openai()
        .chat.completions.create(model=name, messages=CHAT, max_tokens=8, temperature=0)
        .choices[0]
        .message.content
        for name in names
    }

    assert len(set(answers.values())) == 1, answers


def test_base_and_versions_answer_differently(server: Running) -> None:
    answers = [
        server.openai()
        .chat.completions.create(model=name, messages=CHAT, max_tokens=12, temperature=0)
        .choices[0]
        .message.content
        for name in ("tiny", "one", "two@1")
    ]

    assert len(set(answers)) == 3


def test_a_stream_joins_to_the_unstreamed_answer(server: Running) -> None:
    client = server.openai()
    whole = client.chat.completions.create(model="one", messages=CHAT, max_tokens=12, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model="one", messages=CHAT, max_tokens=12, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip

    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert {chunk.model for chunk in chunks} == {"one@1"}
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12


def test_completions_continue_a_prompt(server: Running) -> None:
    answer = server.openai().completions.create(model="two@1", prompt="save the", max_tokens=3)

    assert answer.model == "two@1"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_models_lists_the_base_and_live_adapters(server: Running) -> None:
    names = [model.id for model in server.openai().models.list()]

    assert names[0] == "tiny"
    assert {"one", "mood", "enfr"} <= set(names)
    assert "two" not in names  # published, not promoted
    assert server.openai().models.retrieve("one@1").id == "one@1"


@pytest.mark.parametrize("name", ["nobody", "one@99", "one@staging", "../etc", "one@@", "a/b"])
def test_an_unknown_model_is_not_found(server: Running, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        server.openai().chat.completions.create(model=name, messages=CHAT)

    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


def test_an_empty_model_is_refused_and_never_the_base(server: Running) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.openai().chat.completions.create(model="", messages=CHAT)

    assert caught.value.param == "model"


def test_top_logprobs_survive_a_classification_in_the_same_step(server: Running) -> None:
    stop = False

    def classify() -> None:
        with server.client() as client:
            while not stop:
                client.post("/v1/classify", json={"text": "save the file"}).raise_for_status()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        others = [pool.submit(classify) for _ in range(3)]
        answer = server.openai().chat.completions.create(
            model="one", messages=CHAT, max_tokens=60, temperature=0, logprobs=True,
            top_logprobs=5, extra_body={"ignore_eos": True},
        )  # fmt: skip
        stop = True
        for other in others:
            other.result()

    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    for token in logprobs.content:
        assert len(token.top_logprobs) == 5
        assert min(top.logprob for top in token.top_logprobs) > -9999
        assert token.logprob == pytest.approx(max(t.logprob for t in token.top_logprobs), abs=1e-4)
