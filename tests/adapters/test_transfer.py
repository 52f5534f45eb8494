"""Export and import: what goes out comes in again, and nothing else does."""

import errno
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from adapters import transfer
from adapters.archive import unpack
from adapters.bases import Base
from adapters.errors import (
    AdapterError,
    AdapterNotFound,
    DigestMismatch,
    GateFailed,
    IncompatibleAdapter,
    InvalidInput,
    InvalidManifest,
    InvalidName,
    Quarantined,
    StoreFailed,
    UnsafeFile,
)
from adapters.manifest import BaseRef
from adapters.registry import Registry
from adapters.transfer import export, import_own, opened
from service import cli
from tests.adapters.parcels import BASE, draft, parcel, verdict

TARGETS = ["out", "out.tar", "out.tar.gz", "out.tgz"]


def new_home(folder: Path, ref: BaseRef = BASE) -> Registry:
    registry = Registry.open(folder)
    base = Base(
        name="here", path=folder / "bases" / "here", source="tests", ref=ref, context_length=64,
        architecture="LlamaForCausalLM", parameters=1, lora=True,
    )  # fmt: skip
    registry.add_base(base)
    return registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """`x` with one version that has a report beside its decisive files."""
    registry = new_home(tmp_path / "home")
    folder = parcel(tmp_path / "parcel")
    (folder / "report.json").write_text('{"chrf": 1}')
    (folder / "report.html").write_text("<p>1</p>")
    known = {"task": "classify", "labels": ["a", "b"], "project": "mine"}
    registry.publish(folder, draft(folder, gate=verdict(passed=False), **known))
    return registry


@pytest.fixture
def folder(registry: Registry, tmp_path: Path) -> Path:
    """An export of `x`."""
    export(registry, "x@1", tmp_path / "exported")
    return tmp_path / "exported"


def left_over(registry: Registry) -> list[Path]:
    return list(registry.store.staging.glob("*"))


# Out


@pytest.mark.parametrize("target", TARGETS)
def test_a_version_exported_and_imported_elsewhere_is_the_same_version(
    registry: Registry, tmp_path: Path, target: str
) -> None:
    sent = export(registry, "x@1", tmp_path / target)
    other = new_home(tmp_path / "other")
    with opened(other, tmp_path / target) as source:
        got = import_own(other, source)

    assert (got.reference, got.digest) == ("x@1", sent.digest)
    assert got.manifest.files.keys() == {*sent.manifest.files} >= {"report.json", "report.html"}
    for name in sent.manifest.files:
        assert (got.folder / name).read_bytes() == (sent.folder / name).read_bytes()
    unlike = {"created", "base"}
    assert got.manifest.model_dump(exclude=unlike) == sent.manifest.model_dump(exclude=unlike)
    assert got.manifest.base.name == "here"
    other.store.verify(got.manifest)
    assert left_over(other) == []
    with pytest.raises(GateFailed):  # what failed there is not promoted here
        other.promote("x@1")


@pytest.mark.parametrize("target", TARGETS)
def test_importing_again_makes_no_second_version(
    registry: Registry, tmp_path: Path, target: str
) -> None:
    export(registry, "x@1", tmp_path / target)
    with opened(registry, tmp_path / target) as source:
        assert import_own(registry, source).reference == "x@1"
        assert import_own(registry, source, name="y", project="theirs").reference == "y@1"

    assert [(r.name, r.versions) for r in registry.adapters()] == [("x", 1), ("y", 1)]
    assert registry.find("y@1").manifest.project == "theirs"


@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
def test_equal_versions_make_tars_of_equal_bytes(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    version = export(registry, "x@1", tmp_path / f"one{ending}")
    for path in version.folder.iterdir():
        os.utime(path, (1, 1))
        path.chmod(0o600)
    monkeypatch.setattr("time.time", lambda: 1e9)
    export(registry, "x@1", tmp_path / f"two{ending}")

    one, two = ((tmp_path / f"{name}{ending}").read_bytes() for name in ("one", "two"))
    assert one == two
    assert (one[:2] == b"\x1f\x8b") is (ending == ".tar.gz")


def test_any_tar_program_reads_an_export_into_one_folder(
    registry: Registry, tmp_path: Path
) -> None:
    version = export(registry, "x@1", tmp_path / "out.tgz")
    done = subprocess.run(
        ["tar", "-tzf", tmp_path / "out.tgz"], capture_output=True, text=True, check=True
    )

    names = done.stdout.split()
    assert names == sorted(names)
    assert {name.partition("/")[0] for name in names} == {f"x-{version.digest[7:19]}"}
    assert len(names) == len(version.manifest.files) + 1


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_there_is_not_overwritten(registry: Registry, tmp_path: Path, target: str) -> None:
    (tmp_path / target).write_text("mine")
    with pytest.raises(InvalidInput, match=r"exists.*another target"):
        export(registry, "x@1", tmp_path / target)

    assert (tmp_path / target).read_text() == "mine"


@pytest.mark.parametrize(
    ("target", "words"), [("no/out.tar", "no folder"), ("out.zip", ".tar.gz"), ("out.gz", ".tgz")]
)
def test_a_target_that_cannot_be_is_told_with_the_remedy(
    registry: Registry, tmp_path: Path, target: str, words: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        export(registry, "x@1", tmp_path / target)

    assert words in str(caught.value)
    assert not (tmp_path / target).exists()


def test_a_damaged_or_quarantined_version_is_not_given_away(
    registry: Registry, tmp_path: Path
) -> None:
    version = registry.find("x@1")
    weights = version.folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"\x01")
    with pytest.raises(DigestMismatch):
        export(registry, "x@1", tmp_path / "out.tar")
    weights.write_bytes(whole)
    registry.quarantine(version, "differs")
    with pytest.raises(Quarantined):
        export(registry, "x@1", tmp_path / "out.tar")
    with pytest.raises(AdapterNotFound):
        export(registry, "nobody@1", tmp_path / "out.tar")

    assert not (tmp_path / "out.tar").exists()


@pytest.mark.parametrize("target", TARGETS)
def test_a_full_disk_leaves_no_half_export(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "to").mkdir()
    monkeypatch.setattr(transfer, "sync_file", full)
    with pytest.raises(StoreFailed, match=r"out.*No space left.*free disk space"):
        export(registry, "x@1", tmp_path / "to" / target)

    assert list((tmp_path / "to").iterdir()) == []


# In


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "probe.json", "report.json"])
def test_an_altered_file_is_refused(registry: Registry, folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes().replace(b"1", b"2"))

    with pytest.raises(DigestMismatch, match=name):
        import_own(registry, folder, name="y")
    assert [record.name for record in registry.adapters()] == ["x"]
    assert left_over(registry) == []


def test_a_missing_file_is_refused(registry: Registry, folder: Path) -> None:
    (folder / "report.json").unlink()

    with pytest.raises(InvalidInput, match=r"report\.json is missing"):
        import_own(registry, folder)


@pytest.mark.parametrize("name", ["manifest.json", "probe.json"])
def test_a_link_is_not_followed(
    registry: Registry, folder: Path, tmp_path: Path, name: str
) -> None:
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)

    with pytest.raises(UnsafeFile, match=f"{name} is a link"):
        import_own(registry, folder)


def change(folder: Path, **values: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_manifest_lists_files_of_a_version_only(
    registry: Registry, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("mine")
    files = json.loads((folder / "manifest.json").read_text())["files"]
    secret = transfer.digest_file(tmp_path / "secret")
    for name in ("../secret", str(tmp_path / "secret"), "run.py"):
        change(folder, files={**files, name: secret})  # the digest covers decisive files alone

        with pytest.raises(InvalidManifest, match="not a file of a version"):
            import_own(registry, folder, name="y")


@pytest.mark.parametrize(
    "values",
    [{"task": "answer"}, {"labels": ["a", "c"]}, {"peft": {"peft_type": "LORA", "r": 4}}, {"a": 1}],
)
def test_an_altered_manifest_is_refused(
    registry: Registry, folder: Path, values: dict[str, Any]
) -> None:
    change(folder, **values)

    with pytest.raises((InvalidManifest, IncompatibleAdapter)):
        import_own(registry, folder, name="y")
    assert [record.name for record in registry.adapters()] == ["x"]


def test_a_version_for_another_base_is_refused_with_what_differs(
    folder: Path, tmp_path: Path
) -> None:
    another = "sha256:" + "1" * 64
    ref = BASE.model_copy(update={"weights": another, "tokenizer": another})
    other = new_home(tmp_path / "other", ref)

    with pytest.raises(IncompatibleAdapter) as caught:
        import_own(other, folder)
    assert "'here' here has another tokenizer, weights" in str(caught.value)
    assert "modiste base add" in caught.value.hint
    assert other.adapters() == []


def test_without_any_base_the_remedy_is_to_add_one(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleAdapter, match=r"no base model here.*modiste base add"):
        import_own(Registry.open(tmp_path / "other"), folder)


def test_names_given_are_checked(registry: Registry, folder: Path) -> None:
    for names in ({"name": "../y"}, {"project": "A B"}):
        with pytest.raises(InvalidName):
            import_own(registry, folder, **names)


def test_a_disk_that_fills_during_the_import_leaves_nothing(
    registry: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_source: object, place: Any) -> None:
        place.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transfer.shutil, "copyfileobj", full)
    with pytest.raises(StoreFailed, match="No space left"):
        import_own(registry, folder, name="y")

    assert [record.name for record in registry.adapters()] == ["x"]
    assert left_over(registry) == []


def test_a_source_that_is_nothing_is_told(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"there is no.*\.tgz"), opened(registry, tmp_path / "a"):
        pass

    assert left_over(registry) == []


# The commands


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.app([*arguments], prog_name="modiste")
    return int(ended.value.code or 0)


def test_the_command_exports_and_says_where(
    registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["adapters", "export", "x@1", str(tmp_path / "a.tar"), "--home"]
    home = str(registry.home.root)
    code, told = run(*arguments, home), capsys.readouterr()
    assert (code, told.out) == (0, f"x@1 {registry.find('x@1').digest} -> {tmp_path / 'a.tar'}\n")
    unpack(tmp_path / "a.tar", tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / "manifest.json").is_file()

    code, told = run(*arguments, home), capsys.readouterr()
    assert (code, told.out) == (2, "")
    assert "exists" in told.err


def test_importing_is_a_childs_work(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "missing.tar"
    assert run("adapters", "import", str(missing), "--home", str(tmp_path / "home")) == 2
    assert "missing.tar" in capfd.readouterr().err


def test_every_refusal_of_this_package_has_a_remedy(registry: Registry, folder: Path) -> None:
    change(folder, files={})
    with pytest.raises(AdapterError) as caught:
        import_own(registry, folder)

    assert caught.value.hint
