"""The docs' page."""

import json
from pathlib import Path

from bench.harness import Report, at_least
from bench.render import render


def written(folder: Path) -> Path:
    report = Report("overhead")
    report.add(at_least("throughput | ratio", 0.991234, 0.97))
    report.add(at_least("other", 0.5, 0.97, "ms"))
    report.measurements.append({"base": "tiny", "requests/s": 12.0})
    report.write(folder)
    return folder


def test_the_same_results_give_the_same_page(tmp_path: Path) -> None:
    results = written(tmp_path)

    assert render(results, tmp_path / "none") == render(results, tmp_path / "none")


def test_the_page_shows_claims_verdicts_and_measurements(tmp_path: Path) -> None:
    page = render(written(tmp_path), tmp_path / "none")

    assert "| throughput \\| ratio, at least | 0.97 | 0.9912 |  | holds |" in page
    assert "**fails**" in page
    assert "| tiny | 12 |" in page


def test_the_demo_is_shown_with_its_intervals(tmp_path: Path) -> None:
    demo = tmp_path / "result.json"
    chrf = {"value": 37.3, "low": 35.0, "high": 39.5, "base_value": 13.7, "base_low": 12.0,
            "base_high": 15.1, "unit": "", "signature": None}  # fmt: skip
    demo.write_text(
        json.dumps({"figures": {"messages": {"chrf": chrf}}, "seconds": {"whole job": 431.0}})
    )

    page = render(tmp_path / "none", demo)

    assert "| messages | chrF | 13.7 (12 to 15.1) | 37.3 (35 to 39.5) |" in page
    assert "| whole job | 431 |" in page


def test_a_page_without_results_says_so(tmp_path: Path) -> None:
    assert "No benchmark has been run" in render(tmp_path, tmp_path / "none")


def test_what_was_not_measured_again_stays_and_what_was_is_replaced(tmp_path: Path) -> None:
    before = render(written(tmp_path), tmp_path / "none") + "\n## adapters\n\nolder figures\n"
    report = Report("overhead")
    report.add(at_least("throughput", 1.25, 0.97))
    report.write(tmp_path)

    page = render(tmp_path, tmp_path / "none", before)

    assert page.count("## overhead") == page.count("## adapters") == 1
    assert "older figures" in page
    assert "1.25" in page
    assert "0.9912" not in page


def test_measurements_with_other_columns_have_a_table_of_their_own(tmp_path: Path) -> None:
    report = Report("overhead")
    report.add(at_least("throughput", 1.25, 0.97))
    report.measurements += [{"part": "a", "x": 1}, {"part": "b", "y": 2}, {"part": "c", "x": 3}]
    report.write(tmp_path)

    page = render(tmp_path, tmp_path / "none")

    assert "| part | x |\n| --- | --- |\n| a | 1 |\n| c | 3 |" in page
    assert "| part | y |\n| --- | --- |\n| b | 2 |" in page
