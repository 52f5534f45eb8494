"""`/v1/answer`."""

import pytest

from tests.service.tasks.fake import FakeEngine, make_app, post, results
from tests.service.tasks.test_generate import events_of


def says(known: dict[str, str]):
    """The first known word that the prompt's context contains, else a refusal."""

    def reply(prompt: str, _: object) -> str:
        context = prompt.removeprefix("Context: ").split("\n\nQuestion:")[0]
        return next((say for word, say in known.items() if word in context), "Unanswerable.")

    return reply


def one(engine: FakeEngine, **body: object) -> dict:
    [found] = results(post(make_app(engine), "/v1/answer", **body))
    return found


def test_an_answer_comes_with_where_the_context_says_it() -> None:
    context = "The server listens on port 8321. Port 8321 is free."
    found = one(FakeEngine(says({"8321": "port 8321"})), question="Which?", context=context)
    assert (found["answer"], found["answerable"]) == ("port 8321", True)
    assert [context[item["start"] : item["end"]] for item in found["evidence"]] == [
        "port 8321", "Port 8321",
    ]  # fmt: skip
    assert 0 < found["confidence"] <= 1


def test_a_silent_context_is_told_by_the_prompts_own_word() -> None:
    found = one(FakeEngine(says({})), question="Which?", context="Nothing here.")
    assert (found["answerable"], found["evidence"]) == (False, [])


def test_without_a_context_nothing_is_claimed_about_support() -> None:
    engine = FakeEngine(lambda *_: "Paris")
    found = one(engine, question="Capital of France?")
    assert (found["answer"], found["answerable"], found["evidence"]) == ("Paris", None, [])


def test_the_surest_of_several_contexts_wins_and_is_named() -> None:
    # the fake is surer of shorter answers
    engine = FakeEngine(says({"cats": "a very long answer about cats", "dogs": "dogs"}))
    contexts = ["nothing", "a very long answer about cats", "all about dogs"]
    found = one(engine, question="Who?", context=contexts)
    assert found["answer"] == "dogs"
    assert found["evidence"] == [{"context": 2, "start": 10, "end": 14, "text": "dogs"}]
    assert engine.most_running == 3


def test_a_long_context_is_walked_and_offsets_are_the_originals() -> None:
    engine = FakeEngine(says({"secret": "the secret is 42"}))
    engine.max_model_len = 512
    context = "😀 filler words here. " * 150 + "Now the secret is 42. " + "more filler. " * 150
    found = one(engine, question="What?", context=context, max_tokens=32)
    assert len(engine.calls) > 3
    assert all(
        len(prompt_ids) + sampling.max_tokens <= 512 for prompt_ids, sampling in engine.calls
    )
    assert found["answerable"] is True
    assert {item["text"] for item in found["evidence"]} == {"the secret is 42"}
    assert all(context[item["start"] : item["end"]] == item["text"] for item in found["evidence"])
    assert len(found["evidence"]) == 1  # seen by two windows, told once
    assert found["usage"]["prompt_tokens"] == sum(len(ids) for ids, _ in engine.calls)


def test_a_rephrased_answer_gets_the_nearest_sentence_as_evidence() -> None:
    engine = FakeEngine(lambda *_: "the port was used by a server")
    context = "Cats sleep. The port is used by another server. Dogs bark."
    [item] = one(engine, question="Why?", context=context)["evidence"]
    assert item["text"] == "The port is used by another server."


def test_questions_keep_their_order() -> None:
    engine = FakeEngine(lambda text, _: text.rpartition(" ")[2])
    questions = ["about one", "about two", "about three"]
    app = make_app(engine)
    found = results(post(app, "/v1/answer", question=questions, context="x"))
    assert [item["answer"] for item in found] == ["one", "two", "three"]
    assert {sampling.temperature for _, sampling in engine.calls} == {0.0}


def test_a_question_that_leaves_no_room_for_the_context_is_refused() -> None:
    engine = FakeEngine()
    engine.max_model_len = 400
    response = post(make_app(engine), "/v1/answer", question="why " * 150, context="word " * 400)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "question"


def test_too_many_prompts_are_refused() -> None:
    body = {"question": ["why"] * 256, "context": ["x"] * 17}
    response = post(make_app(FakeEngine()), "/v1/answer", **body)
    assert (response.status_code, response.json()["error"]["param"]) == (413, "context")


@pytest.mark.parametrize("context", [{}, {"context": "The answer is 42."}])
def test_one_window_or_none_can_be_streamed(context: dict) -> None:
    engine = FakeEngine(lambda *_: "42")
    app = make_app(engine)
    events = events_of(post(app, "/v1/answer", question="What?", stream=True, **context).text)
    [whole] = results(post(app, "/v1/answer", question="What?", **context))
    assert "".join(event.get("delta", "") for event in events) == "42"
    assert events[-1]["result"] == whole


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"question": "q", "context": ["a", "b"]}, "context"),
        ({"question": ["q", "r"]}, "question"),
        ({"question": "q", "context": "word " * 2000}, "context"),
    ],
)
def test_what_needs_a_choice_cannot_be_streamed(body: dict, param: str) -> None:
    response = post(make_app(FakeEngine()), "/v1/answer", stream=True, **body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert error["hint"]
