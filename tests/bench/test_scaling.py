"""docs/scaling.md: its tables are current, and say what the simulation says."""

import re
from pathlib import Path

import pytest

from bench import scaling
from bench.__main__ import main as bench
from bench.bottlenecks import CASES, first, placed, standing_still, strains
from bench.scaling import BLOCKS, PAGE, number, render, share, size


@pytest.fixture(scope="module")
def current() -> str:
    return render(PAGE.read_text())


def test_the_pages_tables_are_current(current: str) -> None:
    assert current == PAGE.read_text(), "run `python -m bench scaling`"


def test_a_changed_figure_is_noticed_and_repaired(
    tmp_path: Path, current: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "scaling.md"
    page.write_text(current.replace("3.35 TB/s", "3.36 TB/s"))
    # the other tables are the slow ones, and the same
    kept = {name: _block(current, name) for name in BLOCKS}
    for name in BLOCKS.keys() - {"inputs"}:
        monkeypatch.setitem(BLOCKS, name, lambda name=name: kept[name])

    assert scaling.main(["--check"], page) == 1
    assert scaling.main([], page) == 0
    assert page.read_text() == current
    assert scaling.main(["--check"], page) == 0


def _block(page: str, name: str) -> str:
    return page.split(f"<!-- table: {name} -->\n")[1].split("\n<!-- end -->", maxsplit=1)[0]


def test_a_page_without_a_place_for_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="places"):
        render("<!-- table: inputs -->\n<!-- end -->\n")


def test_every_input_tells_where_it_is_from(current: str) -> None:
    rows = _block(current, "inputs").splitlines()[2:]
    sources = [row.split(" | ")[2].rstrip(" |") for row in rows]

    assert len(rows) > 30
    begins = ("published: ", "code", "measured ", "assumed")
    assert [source for source in sources if not source.startswith(begins)] == []


def test_it_is_known_to_bench(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(["nothing"]) == 2
    assert "scaling" in capsys.readouterr().err


def test_what_gives_out_first_is_the_fullest_part() -> None:
    for case in CASES[:3]:
        figures = placed(case, by_adapter=True)
        worst = first(case, figures)
        assert worst.ratio == max(strain.ratio for strain in strains(case, figures))


def test_routing_by_adapter_never_makes_an_engine_stand_still_longer() -> None:
    for case in CASES:
        by_adapter = standing_still(case, placed(case, by_adapter=True))
        assert by_adapter <= standing_still(case, placed(case, by_adapter=False)) + 0.01


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.0004, "< 0.001"), (1.2345, "1.23"), (99.5, "99.5"), (1234.5, "1,230"),
     (987654, "988,000")],
)  # fmt: skip
def test_numbers_have_three_digits_that_count(value: float, shown: str) -> None:
    assert number(value) == shown


def test_sizes_and_shares_have_their_unit() -> None:
    assert (size(83_886_080), size(2.5e9)) == ("83.9 MB", "2.5 GB")
    assert (share(0.123), share(0.0123)) == ("12%", "1.2%")
    assert re.fullmatch(r"[\d.]+%", share(1.5))
