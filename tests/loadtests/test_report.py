"""What a run leaves behind."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from loadtests import history
from loadtests.outcomes import Outcome
from loadtests.report import write_report
from loadtests.sampling import Sample
from tests.loadtests.made import outcome, result, scenario


class Page(HTMLParser):
    """What a page refers to, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.svgs = 0
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.svgs += tag == "svg"
        if tag not in {"use", "svg"}:
            self.links += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_data(self, data: str) -> None:
        self.text += data


def outcomes() -> list[Outcome]:
    good = [
        outcome(arrived_s=number / 10, ttft_ms=10.0 + number, gaps_ms=(5.0, 6.0), output_tokens=3)
        for number in range(100)
    ]
    return [*good, outcome(error="HTTP 429: overloaded: <wait>"), outcome(kind="batch", end=2e3)]


def test_the_page_has_plots_and_needs_no_other_file(tmp_path: Path) -> None:
    samples = [Sample(float(at), {"running": 2.0, "kv_usage": 0.1}) for at in range(10)]
    run = result(scenario(description="<b>&", slo={"ttft_p95_ms": 1}), outcomes(), samples)

    write_report(run, tmp_path, tmp_path / "deep" / "load.html")

    text = (tmp_path / "deep" / "load.html").read_text()
    page = Page(text)
    assert page.svgs == 6
    assert page.links == []
    assert "<b>&" in page.text
    assert "chat_stream: HTTP 429: overloaded" in page.text
    assert "Latency by percentile" in text
    assert "Throughput against concurrency" in text
    assert "FAILS" in page.text


def test_a_run_without_answers_has_a_page_too(tmp_path: Path) -> None:
    write_report(result(scenario(), [outcome(error="x")]), tmp_path, tmp_path / "load.html")

    assert "chat_stream: x" in Page((tmp_path / "load.html").read_text()).text


def test_the_page_shows_one_line_for_each_run_of_the_scenario(tmp_path: Path) -> None:
    html = tmp_path / "load.html"
    write_report(result(scenario(), outcomes(), name="other"), tmp_path, tmp_path / "o.html")
    write_report(result(scenario(slo={"ttft_p50_ms": 1}), outcomes()), tmp_path, html)
    write_report(result(scenario(), outcomes()), tmp_path, html)

    runs = history.read(tmp_path / "history.jsonl", "load")

    # both have a failed batch line or limit; what differs is told by the figures
    assert [run["holds"] for run in runs] == [False, True]
    assert Page(html.read_text()).text.count("modiste 0.1.0") == 3  # two lines and the head
    assert json.loads((tmp_path / "load.json").read_text())["figures"]["error_ratio"] > 0


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ({"modiste": "1", "vllm": "0.32", "base": {}}, "modiste 1, vllm 0.32"),
        ({"version": "0.32"}, "version 0.32"),
        ({}, "unknown"),
    ],
)
def test_a_server_is_told_by_its_versions(server: dict[str, object], words: str) -> None:
    assert history.version_of(server) == words


def test_a_cut_line_of_history_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"scenario": "a", "n": 1}\n{"scenario": "a", "n\n{"scenario": "a", "n": 2}\n')

    assert [run["n"] for run in history.read(path, "a")] == [1, 2]
