"""The ids are the renderer's, and what is written is read again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import InvalidInput
from adapters.prompt import Renderer, TranslateInput
from finetune.config import Recipe
from finetune.data import load_prepared, prepare, save_prepared
from finetune.reading import BrokenData


def test_training_ids_begin_with_the_prompt_that_serving_uses(
    make_recipe: Callable[..., Recipe], renderer: Renderer
) -> None:
    recipe = make_recipe("translate")
    prepared = prepare(recipe, renderer, 512)
    assert len(prepared.rows) == 48
    for row in prepared.rows:
        asked = TranslateInput(row.input["text"], "en", "fr")
        prompt = renderer.prompt_ids(recipe.template, asked)
        assert row.prompt_ids == prompt
        assert row.ids == prompt + renderer.completion_ids(row.references[0])
        assert row.supervised == list(range(len(prompt), len(row.ids)))
        assert renderer.end_id in row.ids[len(prompt) :]


def test_a_chat_supervises_the_assistant_only(
    make_recipe: Callable[..., Recipe], renderer: Renderer, write_lines: Callable[..., Path]
) -> None:
    chat = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]
    path = write_lines("chat.jsonl", [{"messages": chat}])
    recipe = make_recipe("generate", data={"train": str(path), "holdout_fraction": 0})
    (row,) = prepare(recipe, renderer, 512).rows
    said = [row.ids[position] for position in row.supervised]
    assert said == renderer.completion_ids("two") + renderer.completion_ids("four")
    assert row.prompt_ids == renderer.chat_ids(chat[:3])


def test_what_is_too_long_is_cut_at_its_end(
    make_recipe: Callable[..., Recipe], renderer: Renderer
) -> None:
    whole = prepare(make_recipe("translate"), renderer, 512).of("train")[0]
    length = len(whole.prompt_ids) + 2
    recipe = make_recipe("translate", training={"max_length": length})
    cut = prepare(recipe, renderer, 512).of("train")[0]
    assert cut.ids == whole.ids[:length]
    assert cut.truncated
    assert cut.supervised == [length - 2, length - 1]


def test_broken_lines_of_all_files_are_reported_together(
    make_recipe: Callable[..., Recipe], renderer: Renderer, write_lines: Callable[..., Path]
) -> None:
    one = write_lines("one.jsonl", [{"source": "a", "target": "b"}, "{", {"source": "c"}])
    two = write_lines("two.jsonl", ["[]", {"source": "d", "target": "e"}])
    changes: dict[str, Any] = {"train": [str(one), str(two)], "holdout_fraction": 0}

    with pytest.raises(BrokenData) as caught:
        prepare(make_recipe("translate", data=changes), renderer, 512)
    places = {(Path(item.path).name, item.line) for item in caught.value.broken}
    assert places == {("one.jsonl", 2), ("one.jsonl", 3), ("two.jsonl", 1)}
    assert all(f"{name}:{line}: " in caught.value.message for name, line in places)

    changes["on_broken"] = "skip"
    prepared = prepare(make_recipe("translate", data=changes), renderer, 512)
    assert [row.input["text"] for row in prepared.rows] == ["a", "d"]
    assert prepared.counts == {"broken lines": 3}


def test_what_is_saved_is_loaded_unchanged(
    make_recipe: Callable[..., Recipe], renderer: Renderer, tmp_path: Path
) -> None:
    prepared = prepare(make_recipe("classify"), renderer, 512)
    save_prepared(prepared, tmp_path, "sha256:0")
    assert load_prepared(tmp_path) == prepared
    assert prepared.labels == ["long", "short"]


def test_preferences_are_written_and_read_again_whole(
    make_recipe: Callable[..., Recipe], renderer: Renderer, preferences: Path, tmp_path: Path
) -> None:
    recipe = make_recipe("generate", data={"train": str(preferences)}, training={"method": "dpo"})
    prepared = prepare(recipe, renderer, 512)
    assert all(row.rejected_ids and row.rejected_supervised for row in prepared.rows)
    assert not any(row.truncated for row in prepared.rows)
    save_prepared(prepared, tmp_path, "base")
    assert load_prepared(tmp_path).rows == prepared.rows


def test_an_answer_that_was_not_preferred_is_cut_too(
    make_recipe: Callable[..., Recipe], renderer: Renderer, write_lines: Callable[..., Path]
) -> None:
    said = {name: [{"role": "assistant", "content": text}] for name, text in (
        ("preferred_output", "yes"), ("non_preferred_output", "no " * 60),
    )}  # fmt: skip
    path = write_lines(
        "p.jsonl", [{"input": {"messages": [{"role": "user", "content": "well?"}]}, **said}]
    )
    recipe = make_recipe(
        "generate", data={"train": str(path), "holdout_fraction": 0}, training={"max_length": 40}
    )
    (row,) = prepare(recipe, renderer, 512).rows
    assert (len(row.rejected_ids), row.truncated) == (40, True)
    assert row.rejected_supervised[-1] == 39


def test_documents_are_held_out_whole_and_their_inputs_are_not_learned_elsewhere(
    make_recipe: Callable[..., Recipe], renderer: Renderer, write_lines: Callable[..., Path]
) -> None:
    lines = [
        {"source": f"{part} {n % 7}", "target": "x", "document": f"document {n}"}
        for n in range(40)
        for part in ("one", "two")
    ]
    path = write_lines("documents.jsonl", lines)
    data = {"train": str(path), "split_by": "document", "holdout_fraction": 0.3}

    prepared = prepare(make_recipe("translate", data=data), renderer, 512)

    document = {n: line["document"] for n, line in enumerate(lines, 1)}
    sides = {
        split: {document[int(row.origin.rpartition(":")[2])] for row in prepared.of(split)}
        for split in ("train", "test")
    }
    assert sides["test"]
    assert not sides["test"] & sides["train"]
    assert not {r.key for r in prepared.of("test")} & {r.key for r in prepared.of("train")}
    lost = prepared.counts["examples whose input another group has held out"]
    assert lost == len(lines) - len(prepared.rows) > 0


def test_data_of_one_group_cannot_be_parted_by_it(
    make_recipe: Callable[..., Recipe], renderer: Renderer
) -> None:
    recipe = make_recipe("translate", data={"split_by": "file"})
    with pytest.raises(InvalidInput, match=r"all examples have one 'file'.*data\.split_by"):
        prepare(recipe, renderer, 512)


def test_a_validation_part_is_taken_from_train_and_from_nothing_else(
    make_recipe: Callable[..., Recipe], renderer: Renderer
) -> None:
    plain = prepare(make_recipe("classify"), renderer, 512)
    parted = prepare(make_recipe("classify", data={"validation_fraction": 0.2}), renderer, 512)
    keys = {
        split: {row.key for row in parted.of(split)} for split in ("train", "validation", "test")
    }
    assert keys["validation"]
    assert keys["test"] == {row.key for row in plain.of("test")}
    assert keys["train"] | keys["validation"] == {row.key for row in plain.of("train")}
    assert not keys["train"] & keys["validation"]


def test_a_chat_that_the_template_cannot_show_is_told_with_its_line(
    make_recipe: Callable[..., Recipe], renderer: Renderer, write_lines: Callable[..., Path]
) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    called = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    plain = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    calling = [plain[0], {"role": "assistant", "tool_calls": [called]}]
    path = write_lines("chat.jsonl", [{"messages": plain}, {"messages": calling, "tools": [tool]}])
    data = {"train": str(path), "holdout_fraction": 0}

    with pytest.raises(BrokenData, match=r"chat\.jsonl:2: the chat template does not show tools"):
        prepare(make_recipe("generate", data=data), renderer, 512)

    prepared = prepare(make_recipe("generate", data={**data, "on_broken": "skip"}), renderer, 512)
    assert [row.references for row in prepared.rows] == [["b"]]
    assert prepared.counts == {"broken lines": 1}


def test_squads_own_file_and_its_flat_lines_prepare_alike(
    make_recipe: Callable[..., Recipe],
    renderer: Renderer,
    write_lines: Callable[..., Path],
    tmp_path: Path,
) -> None:
    questions = [
        {"question": f"who {n}?", "answers": [{"text": "a"}] if n % 3 else []} for n in range(30)
    ]
    nested = tmp_path / "squad.json"
    nested.write_text(
        json.dumps({"data": [{"paragraphs": [{"context": "a b", "qas": questions}]}]})
    )
    flat = write_lines("flat.jsonl", [{**q, "context": "a b"} for q in questions])

    one, other = (
        prepare(make_recipe("answer", data={"train": str(path)}), renderer, 512)
        for path in (nested, flat)
    )
    assert len(one.rows) == 30
    assert [(r.key, r.split, r.ids) for r in one.rows] == [
        (r.key, r.split, r.ids) for r in other.rows
    ]


def test_nothing_is_written_when_the_data_is_broken(
    make_recipe: Callable[..., Recipe],
    renderer: Renderer,
    tmp_path: Path,
    write_lines: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    path = write_lines("a.jsonl", [{"source": "a", "target": "b"}, "{"])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BrokenData):
        prepare(make_recipe("translate", data={"train": f"file://{path}"}), renderer, 512)
    assert sorted(tmp_path.rglob("*")) == before
