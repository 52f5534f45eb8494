"""Evidence spans point into the original context."""

from hypothesis import given
from hypothesis import strategies as st

from service.tasks.evidence import best_sentence, normalised, occurrences


def cut(context: str, answer: str) -> list[str]:
    return [context[start:end] for start, end in occurrences(answer, context)]


def test_case_spacing_and_a_final_stop_do_not_matter() -> None:
    assert cut("It is in New  York\ncity, near new york.", "New York.") == ["New  York", "new york"]


def test_a_word_is_not_found_inside_another() -> None:
    assert cut("Prepare 1914 files in 19.", "19") == ["19"]


def test_offsets_are_code_points_of_the_original() -> None:
    context = "😀 ﬁnal Straße É"
    assert cut(context, "final strasse") == ["ﬁnal Straße"]
    assert cut(context, "e\u0301") == ["É"]


def test_chinese_is_found_without_word_edges() -> None:
    assert cut("首都是北京市。", "北京") == ["北京"]


@given(st.text(), st.text(alphabet="abc é中", min_size=1), st.text())
def test_what_stands_in_the_context_is_found(before: str, answer: str, after: str) -> None:
    if normalised(answer):
        context = f"{before} {answer.strip()} {after}"
        found = cut(context, answer)
        assert any(normalised(text) == normalised(answer) for text in found)


@given(st.text(), st.text())
def test_any_answer_is_harmless(answer: str, context: str) -> None:
    for start, end in occurrences(answer, context):
        assert 0 <= start < end <= len(context)


def test_a_rephrased_answer_gets_the_nearest_sentence() -> None:
    context = "Cats sleep a lot. The port is used by another server. Dogs bark."
    span = best_sentence("the port was used by a server", context)
    assert span is not None
    assert context[slice(*span)] == "The port is used by another server."


def test_an_answer_from_nowhere_gets_none() -> None:
    assert best_sentence("Paris", "Cats sleep a lot. Dogs bark.") is None
