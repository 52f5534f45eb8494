"""What is read of a run's folder: steps as they come, and why a trainer failed."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from service.jobs import course
from service.jobs.attempt import Steps, metrics_event, step_entries, told_error
from service.jobs.results import checkpoint_metrics
from tests.service.jobs.stage import Stage


def line(step: int) -> str:
    return json.dumps({"step": step, "loss": 1.0, "tokens": 10, "time": 2.0 * step}) + "\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def read(steps: Steps) -> list[int]:
    return [entry["step"] for entry in steps.read()]


class TestSteps:
    def test_each_look_reads_what_is_new(self, path: Path) -> None:
        steps = Steps(path)
        assert read(steps) == []
        with path.open("w") as file:
            file.write(line(1) + line(2) + line(3)[:7])
            file.flush()
            assert read(steps) == [1, 2]
            assert read(steps) == []
            file.write(line(3)[7:])
            file.flush()
            assert read(steps) == [3]
        assert (steps.tokens, [entry["step"] for entry in steps.last]) == (30, [1, 2, 3])
        assert [entry["step"] for entry in step_entries(path)] == [1, 2, 3]

    def test_a_file_in_its_place_begins_anew(self, path: Path) -> None:
        steps = Steps(path)
        path.write_text("".join(map(line, range(1, 6))))
        assert read(steps) == [1, 2, 3, 4, 5]
        other = path.with_name("other")
        other.write_text("".join(map(line, range(1, 9))))  # it is longer by now
        other.replace(path)
        assert read(steps) == [1, 2, 3, 4, 5, 6, 7, 8]
        assert steps.tokens == 80
        os.truncate(path, len(line(1)))
        assert read(steps) == [1]
        assert steps.tokens == 10

    def test_the_end_is_expected_by_the_last_steps(self, path: Path) -> None:
        steps = Steps(path)
        path.write_text(line(1))
        steps.read()
        assert steps.expected_end(9) is None
        with path.open("a") as file:
            file.writelines(map(line, range(2, 101)))
        steps.read()
        assert steps.expected_end(None) is None
        soon, late = steps.expected_end(100), steps.expected_end(110)
        assert soon is not None
        assert late is not None
        assert 19 < (late - soon).total_seconds() < 21


class TestTelling:
    @pytest.fixture
    def stage(self, tmp_path: Path, database: str) -> Stage:
        return Stage(tmp_path)

    def test_many_steps_are_told_in_parts_and_all_of_them(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(course, "TOLD_AT_ONCE", 3)
        job, attempt, _ = stage.begin()
        sizes: list[int] = []
        real = stage.jobs.tell

        def tell(id_: str, worker: str, events: Any, **more: Any) -> None:
            sizes.append(len([event for event in events if event.type == "metrics"]))
            if len(sizes) == 2:
                raise OSError("the database is away")
            real(id_, worker, events, **more)

        monkeypatch.setattr(stage.jobs, "tell", tell)
        run = attempt.folder / "run"
        run.mkdir()
        (run / "preflight.json").write_text(json.dumps({"plan": {"steps": 10}}))
        (run / "metrics.jsonl").write_text("".join(map(line, range(1, 9))))
        stage.look()
        assert attempt.told == 3
        stage.look()
        assert sizes == [3, 3, 3, 2]
        stage.look()
        assert len(sizes) == 4
        told = [m for m in stage.messages(job) if m.startswith("Step")]
        assert told == [f"Step {n}/10: training loss=1.0000" for n in range(1, 9)]
        assert stage.found(job).trained_tokens == 80

    def test_another_worker_goes_on_after_the_last_step(self, stage: Stage) -> None:
        job, attempt, puppet = stage.begin()
        run = attempt.folder / "run"
        run.mkdir()
        (run / "preflight.json").write_text("{}")
        (run / "metrics.jsonl").write_text(line(1) + line(2))
        stage.look()
        puppet.code = 130
        stage.look()
        (again,) = stage.worker._attempts
        assert (again.told, again.job.id) == (2, job.id)

    def test_a_loss_that_is_no_number_is_told_without_it(self) -> None:
        told = metrics_event({"step": 1, "loss": float("nan")}, None)
        assert told.data == {"step": 1, "train_loss": None, "total_steps": None}


class TestToldError:
    def error(self, tmp_path: Path, printed: bytes) -> dict[str, Any]:
        (tmp_path / "printed").write_bytes(printed)
        return told_error(tmp_path / "printed")

    def test_names_are_those_of_the_api(self, tmp_path: Path) -> None:
        said = {"code": "c", "message": "m", "hint": "h", "param": "data.train"}
        printed = json.dumps({"error": said}).encode()
        assert self.error(tmp_path, b"before\n" + printed + b"\n") == {
            "code": "c", "message": "m (h)", "param": "training_file",
        }  # fmt: skip

    @pytest.mark.parametrize("end", ["\x85", "\u2028"])
    def test_a_line_ends_with_a_newline_alone(self, tmp_path: Path, end: str) -> None:
        said = {"code": "c", "message": f"one{end}two", "hint": "", "param": None}
        printed = json.dumps({"error": said}, ensure_ascii=False)
        assert self.error(tmp_path, printed.encode())["message"] == f"one{end}two"

    @pytest.mark.parametrize(
        "printed", [b"", b"\xff\xfe", b'{"error": ["x"]}', b'{"error": {"code": "c"}}', b"[1]"]
    )
    def test_what_is_no_error_is_a_trainer_that_failed(
        self, tmp_path: Path, printed: bytes
    ) -> None:
        assert self.error(tmp_path, printed)["code"] == "trainer_failed"
        assert told_error(tmp_path / "nowhere")["code"] == "trainer_failed"


def test_figures_that_are_no_numbers_are_not_told_of_a_checkpoint() -> None:
    figures = {"loss": 1.0, "validation_loss": float("nan")}
    assert checkpoint_metrics(3, figures) == {"step": 3, "train_loss": 1.0}


def test_the_loss_of_the_validation_file_is_told_where_it_was_measured() -> None:
    told = metrics_event({"step": 2, "loss": 1.5, "validation_loss": 1.25}, 4)
    assert told.message == "Step 2/4: training loss=1.5000, validation loss=1.2500"
    assert told.data == {"step": 2, "train_loss": 1.5, "total_steps": 4, "valid_loss": 1.25}
    assert "valid_loss" not in (metrics_event({"step": 1, "loss": 1.5}, 4).data or {})
