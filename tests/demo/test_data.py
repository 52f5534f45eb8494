"""What the demo takes from catalogues and rated sentences, and how it splits them."""

import hashlib
import io
import tarfile
from pathlib import Path

import polib
import pytest

from demo import data


def entry(english: str, french: str, **more: object) -> polib.POEntry:
    return polib.POEntry(msgid=english, msgstr=french, **more)


def test_only_translated_current_singular_one_line_messages_are_taken() -> None:
    kept = entry("Save file", "Enregistrer le fichier")
    dropped = [
        entry("Untranslated", ""),
        entry("Fuzzy one", "Flou", flags=["fuzzy"]),
        entry("Old one", "Vieux", obsolete=True),
        entry("%d file", "%d fichier", msgid_plural="%d files"),
        entry("Same", "Same"),
        entry("Two\nlines", "Deux\nlignes"),
        entry("x" * 200, "trop long"),
        entry("123", "cent"),
    ]

    assert data.clean_pairs([kept, *dropped, kept]) == [("Save file", "Enregistrer le fichier")]


def test_nothing_of_the_held_out_package_is_trained_on() -> None:
    by_package = {
        "horizon": [("Save", "Sauver"), ("Delete  Volume", "Supprimer le volume")],
        "django": [("save", "Enregistrer"), ("delete volume", "x"), ("Log in", "Connexion")],
    }

    train, held_out = data.split_messages(by_package)

    assert sorted(held_out) == sorted(by_package["horizon"])
    assert train == [("Log in", "Connexion")]


@pytest.mark.parametrize(
    ("rating", "label"),
    [(0.5, "positive"), (0.49, "neutral"), (-0.49, "neutral"), (-0.5, "negative"), (3, "positive")],
)
def test_ratings_near_zero_are_neutral(rating: float, label: str) -> None:
    assert data.label_of(rating) == label


def _package(path: Path, files: dict[str, str]) -> Path:
    def pack(entries: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for name, content in entries.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return buffer.getvalue()

    inner = pack({f"hutto_ICWSM_2014/{name}": text.encode() for name, text in files.items()})
    path.write_bytes(pack({f"vader-1/additional_resources/{data.SENTENCES}": inner}))
    return path


def test_sentences_are_read_out_of_the_source_package(tmp_path: Path) -> None:
    package = _package(
        tmp_path / "p.tar.gz",
        {
            "tweets_GroundTruth.txt": "1\t2.5\tLovely day\n2\t-1.0\tAwful\n3\t0.1\tlovely day\n",
            "amazonReviewSnippets_GroundTruth.txt": "1_1\t0.0\tit has a cable.\n",
        },
    )

    assert data.rated_sentences(package) == [
        ("Lovely day", "positive"), ("Awful", "negative"), ("it has a cable.", "neutral")
    ]  # fmt: skip


def test_training_labels_are_equally_frequent_and_held_out_sentences_are_others() -> None:
    sentences = [(f"text {n}", data.LABELS[n % 3 if n % 2 else 0]) for n in range(4000)]

    train, held_out = data.split_sentences(sentences)

    counts = {label: sum(pair[1] == label for pair in train) for label in data.LABELS}
    assert set(counts.values()) == {data.TRAIN_SENTENCES // 3}
    assert len(held_out) == data.HELD_OUT_SENTENCES
    assert not {text for text, _ in train} & {text for text, _ in held_out}


def test_a_kept_package_that_changed_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "packages").mkdir()
    good, bad = (tmp_path / "packages" / name for name in ("good.whl", "bad.whl"))
    good.write_bytes(b"good")
    bad.write_bytes(b"cut")
    for name in ("wheels.txt", "sources.txt"):
        (tmp_path / name).write_text(f"good==1 --hash=sha256:{hashlib.sha256(b'good').hexdigest()}")
    monkeypatch.setattr(data, "HERE", tmp_path)

    assert data._kept(tmp_path / "packages") == [good]
