"""A real server whose versions lie in S3."""

import shutil
from pathlib import Path

import httpx
import pytest

from adapters.registry import Registry
from tests.adapters.remotes import BUCKET, s3_client, s3_server
from tests.made import Recipe, add_tiny_base, publish
from tests.serving import start, stop

pytestmark = pytest.mark.engine
WEIGHTS = "adapter_model.safetensors"


def test_a_server_serves_what_it_had_to_fetch_and_goes_on_without_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    with s3_server() as address:
        s3_client(address).create_bucket(Bucket=BUCKET)
        environment = {
            "MODISTE_STORE_URL": f"s3://{BUCKET}/engine", "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "verysecret",
        }  # fmt: skip
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        registry = Registry.open(home)
        base = add_tiny_base(registry)
        for seed in (1, 2):
            publish(registry, base, Recipe("far", seed=seed))
        registry.promote("far@1")
        versions = registry.versions("far")
        shutil.rmtree(registry.store.root)
        process, url = start(home)
        try:
            with httpx.Client(base_url=url, timeout=60) as client:
                first = _ask(client, "far")
                assert first.headers["x-modiste-receipt"].startswith("version=far@1")
                assert (versions[0].folder / WEIGHTS).is_file()
                assert not (versions[1].folder / WEIGHTS).exists()
                assert _ask(client, "far@2").status_code == 200
                s3_client(address).delete_object(
                    Bucket=BUCKET, Key=f"engine/far/{versions[0].folder.name}/{WEIGHTS}"
                )
                again = _ask(client, "far")
        finally:
            stop(process)
    assert again.json()["choices"] == first.json()["choices"]
    assert "verysecret" not in (home / "serve.log").read_text()


def _ask(client: httpx.Client, model: str) -> httpx.Response:
    body = {
        "model": model, "messages": [{"role": "user", "content": "save the file"}],
        "max_tokens": 8, "temperature": 0,
    }  # fmt: skip
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer
