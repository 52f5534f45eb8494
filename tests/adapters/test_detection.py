"""Languages are told apart; in doubt a text is in the language that is expected."""

import pytest

from adapters.detection import detect_language, letters

LONG = {
    "en": "The server could not be started because the port is already in use.",
    "fr": "Le serveur n'a pas pu démarrer, car le port est déjà utilisé.",
    "de": "Der Server konnte nicht gestartet werden, weil der Port belegt ist.",
    "es": "El servidor no pudo iniciarse porque el puerto está en uso.",
    "zh": "服务器无法启动,因为端口已被占用。",
    "ja": "ポートが使用中のため、サーバーを起動できませんでした。",
}


@pytest.mark.parametrize("tag", LONG)
def test_a_sentence_tells_its_language(tag: str) -> None:
    assert detect_language(LONG[tag]) == tag


@pytest.mark.parametrize("tag", sorted(LONG.keys() - {"en"}))
def test_a_clear_sentence_overrules_what_is_expected(tag: str) -> None:
    assert detect_language(LONG[tag], ["en", "it"]) == tag


@pytest.mark.parametrize("text", ["OK", "Save", "Abort", "Login", "No results", "Delete file?"])
def test_short_text_is_taken_as_expected(text: str) -> None:
    assert detect_language(text, ["en", "fr"]) == "en"


def test_the_expected_tag_keeps_its_region() -> None:
    assert detect_language(LONG["en"], ["en-GB", "fr"]) == "en-GB"


def test_another_script_is_never_the_expected_one() -> None:
    assert detect_language("파일", ["en", "fr"]) == "ko"


def test_an_expected_language_that_is_unknown_to_the_detector_is_taken() -> None:
    assert detect_language("Moien, wéi geet et dir?", ["lb", "fr"]) == "lb"


def test_placeholders_are_not_read() -> None:
    assert letters("<b>%(count)d</b> {name}") == 0
    assert detect_language("%(count)d {name}") is None
    assert detect_language("12:30", ["fr", "en"]) == "fr"
