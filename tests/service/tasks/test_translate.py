"""`/v1/translate`."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.service.tasks.fake import FakeEngine, adapter, make_app, post, results
from tests.service.tasks.test_generate import events_of

EN_FR = adapter("translate", "en-fr", languages=("en", "fr"))


def one(engine: FakeEngine, *adapters: object, **body: object) -> dict:
    app = make_app(engine, *adapters)
    [found] = results(post(app, "/v1/translate", **{"target_lang": "fr", **body}))
    return found


def codes(result: dict) -> list[str]:
    return [warning["code"] for warning in result["warnings"]]


def test_a_list_keeps_its_order_in_one_greedy_batch() -> None:
    engine = FakeEngine(lambda text, _: text.upper())
    texts = ["the first file", "the second file", "the third file"]
    app = make_app(engine, EN_FR)
    found = results(post(app, "/v1/translate", text=texts, target_lang="fr", source_lang="en"))
    assert [item["translation"] for item in found] == [text.upper() for text in texts]
    assert engine.most_running == 3
    assert {sampling.temperature for _, sampling in engine.calls} == {0.0}


def test_outer_white_space_and_paragraphs_are_kept_exactly() -> None:
    engine = FakeEngine(lambda text, _: f" {text.upper()}\n")
    text = "  The first line.\n\n\tThe second one.  The third.\r\n- item\n "
    assert one(engine, text=text, source_lang="en")["translation"] == text.upper()


@settings(max_examples=30)
@given(st.lists(st.sampled_from(["One two.", "\n\n", "  ", "Three {n}!", "42", "\t"]), min_size=1))
def test_translating_by_copying_is_identity(pieces: list[str]) -> None:
    text = "".join(pieces)
    if text.strip():
        assert one(FakeEngine(), text=text, source_lang="en")["translation"] == text


def test_long_text_is_translated_in_parts_at_once() -> None:
    engine = FakeEngine(lambda text, _: text.upper())
    text = "This is a sentence about a file. " * 80
    found = one(engine, text=text, source_lang="en")
    assert found["translation"] == text.upper()
    assert engine.most_running == len(engine.calls) > 3


def test_a_sentence_longer_than_the_window_still_comes_through_whole() -> None:
    engine = FakeEngine()
    engine.max_model_len = 300
    text = "word and " * 200 + "end"
    found = one(engine, text=text, source_lang="en")
    assert (found["translation"], found["finish_reason"]) == (text, "stop")


def test_parts_that_stood_close_get_a_space_only_where_the_language_has_one() -> None:
    text = "这是一个很长的句子。" * 60
    engine = FakeEngine(lambda *_: "A sentence.")
    spaced = one(engine, text=text, source_lang="zh", target_lang="en")["translation"]
    assert spaced == " ".join(["A sentence."] * len(engine.calls))
    engine = FakeEngine(lambda *_: "文。")
    close = one(engine, text=text, source_lang="zh", target_lang="ja")["translation"]
    assert close == "文。" * len(engine.calls)


@pytest.mark.parametrize("text", ["42", "%(count)d", "<br/>", " {0} ", "12:30 – 13:45"])
def test_text_without_words_is_copied_without_the_model(text: str) -> None:
    engine = FakeEngine()
    found = one(engine, text=text)
    assert (found["translation"], found["source_lang"]) == (text, "und")
    assert engine.calls == []


def breaks_when_greedy(text: str, sampling: object) -> str:
    return text if sampling.temperature else text.replace("{name}", "{nom}")


def test_a_broken_placeholder_is_repaired_by_sampling_with_fixed_seeds() -> None:
    engine = FakeEngine(breaks_when_greedy)
    found = one(engine, text="Hello {name}, welcome", source_lang="en")
    assert found["translation"] == "Hello {name}, welcome"
    assert found["warnings"] == []
    assert [sampling.seed for _, sampling in engine.calls] == [None, 1, 2, 3, 4]
    assert found["usage"]["prompt_tokens"] == sum(len(ids) for ids, _ in engine.calls)


def test_a_broken_placeholder_that_stays_broken_is_warned_of() -> None:
    engine = FakeEngine(lambda *_: "Bonjour {nom}")
    [warning] = one(engine, text="Hello {name}", source_lang="en")["warnings"]
    assert warning["code"] == "placeholder_changed"
    assert (warning["missing"], warning["added"]) == (["{name}"], ["{nom}"])


def test_arguments_in_another_order_are_warned_of() -> None:
    engine = FakeEngine(lambda *_: "%d pour %s")
    [warning] = one(engine, text="%s has %d", source_lang="en")["warnings"]
    assert "in another order %s, %d" in warning["message"]


def test_the_likeliest_candidate_that_honours_the_glossary_is_taken() -> None:
    said = {
        None: "le document",
        1: "un document",
        2: "le bon fichier",
        3: "fichier",
        4: "fichier !",
    }
    engine = FakeEngine(lambda _, sampling: said[sampling.seed])
    found = one(engine, text="the file", source_lang="en", glossary={"File": "fichier"})
    # the fake is surer of shorter answers
    assert (found["translation"], found["warnings"]) == ("fichier", [])


def test_a_candidate_that_was_cut_off_is_not_taken() -> None:
    engine = FakeEngine(lambda _, sampling: "fichier " * 99 if sampling.seed else "le document")
    found = one(
        engine, text="the file", source_lang="en", glossary={"file": "fichier"}, max_tokens=20
    )
    assert found["translation"] == "le document"
    assert codes(found) == ["glossary_not_honoured"]


def test_a_term_that_was_not_honoured_is_named() -> None:
    engine = FakeEngine(lambda *_: "le document")
    glossary = {"file": "fichier", "folder": "dossier"}
    [warning] = one(engine, text="the file", source_lang="en", glossary=glossary)["warnings"]
    assert warning["code"] == "glossary_not_honoured"
    assert (warning["term"], warning["translation"]) == ("file", "fichier")


def test_truncation_is_told() -> None:
    engine = FakeEngine(lambda *_: "mot " * 50)
    found = one(engine, text="a word", source_lang="en", max_tokens=5)
    assert found["finish_reason"] == "length"
    assert codes(found) == ["truncated"]


def test_the_source_is_detected_and_the_live_translator_taken() -> None:
    text = "Der Server konnte nicht gestartet werden, weil der Port belegt ist."
    de_fr = adapter("translate", "de-fr", languages=("de", "fr"))
    app = make_app(FakeEngine(), EN_FR, de_fr)
    response = post(app, "/v1/translate", text=text, target_lang="fr")
    [found] = results(response)
    assert (found["source_lang"], found["detected"]) == ("de", True)
    assert response.json()["model"] == "de-fr@1"


def test_a_short_text_is_what_the_live_translator_expects() -> None:
    found = one(FakeEngine(), EN_FR, text="Save")
    assert (found["source_lang"], found["detected"], found["warnings"]) == ("en", True, [])


def test_a_given_source_is_not_detected_and_tags_are_normalised() -> None:
    found = one(FakeEngine(), text="Save", source_lang="EN_us", target_lang="fr")
    assert (found["source_lang"], found["detected"]) == ("en-US", False)


def test_a_translator_of_other_languages_is_warned_of() -> None:
    found = one(FakeEngine(), EN_FR, text="Speichern", source_lang="de", model="en-fr")
    assert codes(found) == ["language_pair"]


def test_texts_that_need_different_models_are_refused() -> None:
    de_fr = adapter("translate", "de-fr", languages=("de", "fr"))
    texts = [
        "The server could not be started because the port is in use.",
        "Der Server konnte nicht gestartet werden, weil der Port belegt ist.",
    ]
    app = make_app(FakeEngine(), EN_FR, de_fr)
    response = post(app, "/v1/translate", text=texts, target_lang="fr")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "text"
    assert "de by de-fr@1, en by en-fr@1" in response.json()["error"]["message"]
    assert post(app, "/v1/translate", text=texts, target_lang="fr", model="en-fr").is_success


def test_a_stream_says_the_same_and_ends_with_warnings() -> None:
    engine = FakeEngine(lambda text, _: f"\n{text.upper()}  ")
    text = " The first {n} line.\n\nThe second one. \n"
    body = {"text": text, "source_lang": "en", "target_lang": "fr"}
    events = events_of(post(make_app(engine), "/v1/translate", stream=True, **body).text)
    whole = one(FakeEngine(lambda text, sampling: text.upper()), **body)
    said = "".join(event.get("delta", "") for event in events)
    assert said == whole["translation"] == events[-1]["result"]["translation"]
    assert codes(events[-1]["result"]) == ["placeholder_changed"]
    assert len(engine.calls) == 2  # nothing is tried again
