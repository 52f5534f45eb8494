"""What differs between two versions."""

from pathlib import Path

from adapters.diff import Difference, differences
from adapters.manifest import Metric
from adapters.registry import Registry
from tests.adapters.parcels import draft, parcel, verdict


def test_differences_name_the_field_and_both_values(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "home")
    metric = Metric(value=1, low=0, high=2, base_value=0, base_low=0, base_high=0)
    one, two = parcel(tmp_path / "a", 1), parcel(tmp_path / "b", 2, lora_alpha=8)
    left = registry.publish(one, draft(one, training={"seed": 1, "config": {"epochs": 1}}))
    right = registry.publish(
        two,
        draft(
            two, training={"seed": 1, "config": {"epochs": 2}}, metrics={"chrF": metric},
            gate=verdict(passed=False),
        ),
    )  # fmt: skip

    found = {d.field: (d.left, d.right) for d in differences(left, right)}

    assert found["peft.lora_alpha"] == (4, 8)
    assert found["training.config.epochs"] == (1, 2)
    assert found["metrics.chrF.value"] == (None, 1.0)
    assert found["gate.passed"] == (None, False)
    assert not any(field.startswith(("prompt", "base", "task")) for field in found)
    assert "training.seed" not in found


def test_a_version_differs_in_nothing_from_itself(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "home")
    folder = parcel(tmp_path / "a", 1)
    version = registry.publish(folder, draft(folder))

    assert differences(version, version) == []
    assert Difference("x", 1, 2) != Difference("x", 1, 3)
