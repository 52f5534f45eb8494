"""TMX as translation tools write it; entities are neither expanded nor fetched."""

from pathlib import Path

import pytest

from tests.finetune.files import read

HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE tmx SYSTEM "tmx14.dtd">\n'


def memory(*units: str, head: str = HEAD) -> str:
    return (
        f'{head}<tmx version="1.4"><header segtype="sentence"/><body>\n'
        + "\n".join(units)
        + "\n</body></tmx>"
    )


def unit(**texts: str) -> str:
    variants = "".join(
        f'<tuv xml:lang="{lang.replace("_", "-")}"><seg>{text}</seg></tuv>'
        for lang, text in texts.items()
    )
    return f"<tu>{variants}</tu>"


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    (folder / "a.tmx").write_bytes(text.encode(encoding))
    return folder / "a.tmx"


def test_units_give_a_text_for_each_language_with_their_lines(tmp_path: Path) -> None:
    found = read(
        write(tmp_path, memory(unit(en_US="Save &amp; go", fr="Garder"), unit(en="a", de="b")))
    )
    assert not found.broken
    assert [(r.line, r.fields) for r in found.records] == [
        (4, {"translation": {"en-US": "Save & go", "fr": "Garder"}}),
        (5, {"translation": {"en": "a", "de": "b"}}),
    ]


def test_placeholders_in_codes_stay_and_properties_become_fields(tmp_path: Path) -> None:
    text = (
        '<tu><prop type="document">help</prop><note>x</note>'
        '<tuv lang="en"><prop type="who">me</prop><seg>'
        'Open <ph x="1">{name}</ph> <hi>now</hi></seg></tuv>'
        '<tuv lang="fr"><seg>Ouvrir <ph x="1">{name}</ph></seg></tuv></tu>'
    )  # fmt: skip
    (record,) = read(write(tmp_path, memory(text))).records
    assert record.fields == {
        "document": "help",
        "translation": {"en": "Open {name} now", "fr": "Ouvrir {name}"},
    }


@pytest.mark.parametrize("encoding", ["utf-16", "iso-8859-1"])
def test_the_encoding_is_the_one_that_the_file_names(tmp_path: Path, encoding: str) -> None:
    head = f'<?xml version="1.0" encoding="{encoding}"?>'
    found = read(write(tmp_path, memory(unit(en="a", fr="été"), head=head), encoding))
    assert found.records[0].fields["translation"]["fr"] == "été"


BOMB = (
    '<!DOCTYPE tmx [<!ENTITY a "ha"><!ENTITY b "'
    + "&a;" * 50
    + '"><!ENTITY c "'
    + "&b;" * 50
    + '">]>'
)
FETCH = '<!DOCTYPE tmx [<!ENTITY c SYSTEM "file:///etc/hostname">]>'


@pytest.mark.parametrize("head", [BOMB, FETCH])
def test_a_file_that_declares_entities_is_refused(tmp_path: Path, head: str) -> None:
    found = read(write(tmp_path, memory(unit(en="&c;", fr="x"), head=head)))
    assert not found.records
    assert [b.line for b in found.broken] == [1]
    assert "brings a DTD of its own" in found.broken[0].reason


@pytest.mark.parametrize(
    ("text", "line", "reason", "kept"),
    [
        (memory(unit(en="a", fr="b"), "<tu><tuv>"), 6, "mismatched tag", 1),
        (memory(unit(en="a", fr="b"), unit(en="a&nbsp;b", fr="c")), 5, "'nbsp' is not known", 1),
        ("<html><body/></html>", 1, "is not TMX but 'html'", 0),
        ("plain", 1, "is not TMX: syntax error", 0),
        (memory(unit(en="a", fr="b"))[:-8], 5, "no element found|unclosed token", 1),
    ],
)
def test_a_broken_file_is_told_with_its_line_and_what_came_before_is_kept(
    tmp_path: Path, text: str, line: int, reason: str, kept: int
) -> None:
    found = read(write(tmp_path, text))
    (broken,) = found.broken
    assert broken.line == line
    assert any(part in broken.reason for part in reason.split("|")), broken
    assert len(found.records) == kept
