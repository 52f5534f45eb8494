"""`/v1/classify`."""

import math

import pytest

from adapters.prompt import ClassifyInput, default_prompt
from service.tasks import classify
from tests.service.tasks.fake import FakeEngine, adapter, make_app, post, results


def brute_force(engine: FakeEngine, text: str, labels: list[str]) -> dict[str, float]:
    """Walk every label alone, at each step among the labels that still fit."""
    task_input = ClassifyInput(text, tuple(labels))
    prompt = engine.renderer.prompt_ids(default_prompt("classify"), task_input)
    ids = {label: engine.renderer.completion_ids(label) for label in labels}
    found = {}
    for label, sequence in ids.items():
        found[label] = 1.0
        for length, token in enumerate(sequence):
            before = sequence[:length]
            allowed = {other[length] for other in ids.values() if other[:length] == before}
            weights = {t: math.exp(engine.score(prompt + before, t)) for t in allowed}
            found[label] *= weights[token] / sum(weights.values())
    return found


LABELS = [
    ["positive", "neutral", "negative"],
    ["a", "ab", "abc", "b"],
    ["bug report", "bug fix", "bug", "question"],
    ["好", "很好", "不好"],
]


@pytest.mark.parametrize("labels", LABELS)
def test_probabilities_equal_brute_force_and_sum_to_one(labels: list[str]) -> None:
    engine = FakeEngine()
    [found] = results(post(make_app(engine), "/v1/classify", text="a text", labels=labels))
    got = {item["label"]: item["probability"] for item in found["labels"]}
    assert got == pytest.approx(brute_force(engine, "a text", labels))
    assert sum(got.values()) == pytest.approx(1)
    assert found["probability"] == max(got.values()) == got[found["label"]]


def test_distinct_first_tokens_take_one_request_of_one_token() -> None:
    engine = FakeEngine()
    post(make_app(engine), "/v1/classify", text="x", labels=["a", "b", "c"])
    [(_, sampling)] = engine.calls
    assert (sampling.max_tokens, sampling.temperature, len(sampling.score_ids)) == (1, 0.0, 3)


def test_places_where_labels_part_are_asked_at_once() -> None:
    engine = FakeEngine()
    [found] = results(
        post(make_app(engine), "/v1/classify", text="x", labels=["aq", "aw", "zq", "zw"])
    )
    assert engine.most_running == len(engine.calls) == 3
    assert found["usage"]["prompt_tokens"] == sum(len(ids) for ids, _ in engine.calls)


def test_more_tokens_than_one_request_scores_are_asked_in_portions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(classify, "MAX_SCORES", 2)
    engine = FakeEngine()
    engine.most_scores = 2
    labels = ["a", "b", "c", "d", "e"]
    [found] = results(post(make_app(engine), "/v1/classify", text="x", labels=labels))
    got = {item["label"]: item["probability"] for item in found["labels"]}
    assert len(engine.calls) == 3
    assert got == pytest.approx(brute_force(engine, "x", labels))


def test_texts_keep_their_order() -> None:
    engine = FakeEngine()
    texts = [f"text {number}" for number in range(6)]
    labels = ["a", "b", "c"]
    found = results(post(make_app(engine), "/v1/classify", text=texts, labels=labels))
    for text, item in zip(texts, found, strict=True):
        expected = brute_force(engine, text, labels)
        assert item["label"] == max(expected, key=lambda label: expected[label])


def test_the_adapters_own_labels_are_taken_unless_the_request_has_some() -> None:
    mine = adapter("classify", labels=["good", "bad"])
    app = make_app(FakeEngine(), mine)
    [own] = results(post(app, "/v1/classify", text="x"))
    assert {item["label"] for item in own["labels"]} == {"good", "bad"}
    [given] = results(post(app, "/v1/classify", text="x", labels=["red", "blue"]))
    assert {item["label"] for item in given["labels"]} == {"red", "blue"}


def test_no_labels_at_all_are_refused_with_a_hint() -> None:
    response = post(make_app(FakeEngine()), "/v1/classify", text="x")
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "labels")
    assert error["hint"]


def test_text_beyond_the_window_is_refused_and_not_cut() -> None:
    engine = FakeEngine()
    engine.max_model_len = 120
    response = post(
        make_app(engine), "/v1/classify", text=["short", "long " * 100], labels=["aq", "aw"]
    )
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "text")
    assert error["code"] == "context_length_exceeded"
