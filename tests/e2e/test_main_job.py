"""From pairs of sentences to an adapter that answers, with the real base model."""

import json
import time
from typing import Any

import pytest

from adapters.prompt import Renderer, TranslateInput
from tests.e2e.conftest import MESSAGES, Trained
from tests.serving import Reached

PAIRS = [json.loads(line) for line in MESSAGES.read_text().splitlines()]
PROMPTS = [pair["source"] for pair in PAIRS[:14]] + [
    "Restart the server", "The password is too short", "Enable the plugin", "No results",
    "Move the folder to another location", "Your account has been disabled",
]  # fmt: skip


def test_the_run_publishes_a_version_with_its_evidence(trained: Trained) -> None:
    manifest = trained.version.manifest

    assert manifest.languages == ["en", "fr"]
    assert {"chrf", "bleu"} <= set(manifest.metrics)
    assert manifest.metrics["chrf"].signature
    assert manifest.training["seed"] is not None
    assert {dataset.split for dataset in manifest.datasets} >= {"train", "test"}
    assert (trained.version.folder / "loss.png").is_file()
    trained.registry.store.verify(manifest)


def test_the_server_answers_as_the_trainer_does(trained: Trained, serving: Reached) -> None:
    import torch
    from peft import PeftModel

    from finetune.base_model import load_model, load_tokenizer
    from finetune.generate import greedy

    tokenizer = load_tokenizer(serving.base.path)
    model = load_model(serving.base.path, "float32", "cpu")
    torch.set_num_threads(2)
    adapted = PeftModel.from_pretrained(model, str(trained.version.folder))
    renderer = Renderer(tokenizer)
    template = trained.version.manifest.prompt
    prompts = [renderer.prompt_ids(template, TranslateInput(t, "en", "fr")) for t in PROMPTS]
    said = greedy(adapted, tokenizer, prompts, 16)

    with serving.client() as client:
        deadline = time.monotonic() + 20
        while client.get("/v1/models/short").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        answers = client.post(
            "/v1/completions",
            json={
                "model": "short", "prompt": prompts, "max_tokens": 16, "temperature": 0,
                "return_token_ids": True,
            },
        ).json()  # fmt: skip

    end = renderer.end_id
    served = [
        [token for token in choice["token_ids"] if token != end]
        for choice in sorted(answers["choices"], key=lambda choice: choice["index"])
    ]
    equal = sum(one == other for one, other in zip(said, served, strict=True))
    assert len(served) == 20
    assert equal >= 19, [(a, b) for a, b in zip(said, served, strict=True) if a != b]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "Save the file"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Où est-ce ?"}],
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello! How can I help?"},
            {"role": "user", "content": "  two  spaces\n\nand lines\n"},
        ],
    ],
)
def test_chat_sees_the_token_ids_that_training_saw(
    serving: Reached, messages: list[dict[str, Any]]
) -> None:
    from finetune.base_model import load_tokenizer

    renderer = Renderer(load_tokenizer(serving.base.path))
    body = {"model": serving.base.name, "messages": messages, "max_tokens": 1}
    answer = serving.client().post("/v1/chat/completions", json={**body, "return_token_ids": True})

    assert answer.json()["prompt_token_ids"] == renderer.chat_ids(messages)


def test_translate_counts_the_prompt_that_training_saw(trained: Trained, serving: Reached) -> None:
    from finetune.base_model import load_tokenizer

    renderer = Renderer(load_tokenizer(serving.base.path))
    template = trained.version.manifest.prompt
    ids = renderer.prompt_ids(template, TranslateInput("Restart the server", "en", "fr"))

    answer = serving.client().post(
        "/v1/translate",
        json={"text": "Restart the server", "source_lang": "en", "target_lang": "fr",
              "model": "short@1"},
    ).json()  # fmt: skip

    assert answer["model"] == "short@1"
    assert answer["results"][0]["translation"]
    assert answer["results"][0]["usage"]["prompt_tokens"] == len(ids)


def test_a_json_schema_is_kept_and_a_seed_reproduces(serving: Reached) -> None:
    schema = {
        "type": "object", "required": ["name", "age"], "additionalProperties": False,
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    }  # fmt: skip
    body = {
        "model": serving.base.name, "prompt": "Describe a person as JSON.", "max_tokens": 60,
        "temperature": 0.8, "seed": 3, "json_schema": schema,
    }  # fmt: skip
    with serving.client() as client:
        first, second = (
            client.post("/v1/generate", json=body).json()["results"][0] for _ in range(2)
        )

    assert first["text"] == second["text"]
    if first["finish_reason"] == "stop":
        assert set(json.loads(first["text"])) == {"name", "age"}
    else:
        assert first["text"].lstrip().startswith("{")


def test_an_answer_points_to_its_evidence(serving: Reached) -> None:
    context = "The meeting is on Friday. Bring the blue folder."
    body = {
        "model": serving.base.name, "question": "What colour is the folder?", "context": context,
        "max_tokens": 12,
    }  # fmt: skip

    result = serving.client().post("/v1/answer", json=body).json()["results"][0]

    assert 0 < result["confidence"] <= 1
    for span in result["evidence"]:
        assert context[span["start"] : span["end"]] == span["text"]
