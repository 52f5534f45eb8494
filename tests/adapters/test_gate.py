"""The gate: what passes, what fails, and the sentence that says so."""

from math import inf
from typing import Any

import pytest
from pydantic import ValidationError

from adapters.gate import Gain, Gate, Measure, Slice, Verdict, judge


def gains(**by_name: Any) -> Measure:
    """A measure that knows `metric_against` (or `metric_slice_against`) and counts on no other."""

    def measure(metric: str, part: Slice, against: str) -> Gain | str:
        where = f"_{part.label or part.language or part.value}" if str(part) else ""
        found: Gain | str = by_name[f"{metric}{where}_{against}"]
        return found

    return measure


def gain(value: float, bound: float, examples: int = 100) -> Gain:
    return Gain(ours=0.6 + value, other=0.6, gain=value, bound=bound, examples=examples)


GATE = Gate.model_validate(
    {"metric": "f1", "over_base": 0.1, "over_live": 0, "keep": [{"metric": "ece", "margin": 0.02}]}
)
GOOD = {
    "f1_base": gain(0.3, 0.2), "f1_live": gain(0.1, 0.01),
    "ece_base": gain(0.0, -0.01), "ece_live": gain(-0.01, -0.02),
}  # fmt: skip


def test_a_gain_that_is_sure_and_nothing_lost_passes_with_its_figures() -> None:
    verdict = judge(GATE, "x@3", gains(**GOOD))

    assert verdict.passed
    assert verdict.reason == (
        "gate passed: f1 is 0.9, 0.6 for the base: better by 0.3, and with 95 % confidence better "
        "by 0.2 at least, where more than 0.1 is asked for (100 examples); f1 is 0.7, 0.6 for the "
        "live version x@3: better by 0.1, and with 95 % confidence better by 0.01 at least, where "
        "more than 0 is asked for (100 examples); nothing else got worse beyond its margin "
        "(2 compared)"
    )


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"f1_base": gain(0.3, 0.1)}, "f1 is 0.9, 0.6 for the base: better by 0.3"),
        ({"f1_live": gain(0.1, -0.01)}, "worse by 0.01 at worst, where more than 0 is asked for"),
        ({"ece_live": gain(-0.1, -0.021)}, "ece is 0.5, 0.6 for the live version x@3: worse by"),
        ({"ece_base": gain(0.0, -0.03)}, "worse by 0.02 at most is allowed"),
        ({"f1_base": gain(0.3, 0.2, 19)}, "19 examples there, gate.least_examples is 20"),
        ({"f1_base": gain(inf, 0.2)}, "no finite number"),
        ({"f1_base": gain(0.3, float("nan"))}, "no finite number"),
        ({"f1_live": "it was made for another base"}, "f1 can't be compared with the live version"),
    ],
)
def test_one_failed_comparison_fails_the_gate_and_is_what_is_told(
    changed: dict[str, Any], words: str
) -> None:
    verdict = judge(GATE, "x@3", gains(**GOOD | changed))

    assert not verdict.passed
    assert verdict.reason.startswith("gate failed: ")
    assert words in verdict.reason
    assert [check.passed for check in verdict.checks].count(False) == 1
    assert verdict.reason.count("can't be compared") + verdict.reason.count("confidence") == 1


def test_an_equal_version_has_gained_nothing_and_lost_nothing() -> None:
    equal = gain(0.0, 0.0)
    gate = Gate.model_validate({"metric": "f1", "keep": [{"metric": "f1", "margin": 0}]})
    verdict = judge(gate, None, gains(f1_base=equal))

    assert [(c.kept, c.passed) for c in verdict.checks] == [(False, False), (True, True)]


def test_without_a_live_version_or_where_it_does_not_count_the_base_decides() -> None:
    alone = {name: found for name, found in GOOD.items() if name.endswith("base")}
    assert judge(GATE, None, gains(**alone)).passed
    careless = GATE.model_copy(update={"over_live": None})
    assert [c.against for c in judge(careless, "x@3", gains(**alone)).checks] == ["base", "base"]


def test_a_slice_is_named_in_the_verdict() -> None:
    gate = Gate.model_validate(
        {
            "metric": "f1",
            "keep": [
                {"metric": "recall", "label": "bad", "margin": 0.1},
                {"metric": "f1", "language": "FR", "margin": 0.1},
                {"metric": "f1", "column": "source", "value": 7, "margin": 0.1},
            ],
        }
    )
    worse = gain(-0.5, -0.6)
    found = gains(f1_base=gain(0.3, 0.2), recall_bad_base=worse, f1_fr_base=worse, f1_7_base=worse)
    verdict = judge(gate, None, found)

    for words in ("recall on label 'bad' is", "f1 on language fr is", "f1 on source = '7' is"):
        assert words in verdict.reason
    assert gate.columns == {"source"}


@pytest.mark.parametrize(
    ("part", "word"),
    [
        ({"column": "a"}, "go together"), ({"value": "a"}, "go together"),
        ({"label": "a", "language": "fr"}, "one of them"), ({"language": "xx"}, "language tag"),
        ({"confidence": 0.4}, "greater than 0.5"), ({"keep": [{"metric": "f1"}]}, "required"),
        ({"keep": [{"metric": "f1", "margin": -1}]}, "greater than or equal"),
        ({"over_base": None}, "valid number"),
    ],
)  # fmt: skip
def test_a_gate_that_says_nothing_clear_is_refused(part: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        Gate.model_validate({"metric": "f1", **part})


def test_a_verdict_comes_back_from_json() -> None:
    verdict = judge(GATE, "x@3", gains(**GOOD))
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict
