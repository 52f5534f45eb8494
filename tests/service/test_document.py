"""Requests made of the OpenAPI document, sound ones and broken: no 5xx, and answers as it says."""

from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import checks

from tests.service.desk import Desk

CASES = 30
"""Of each route."""
POSITIVE = schemathesis.GenerationMode.POSITIVE
LEAST_CASES = {POSITIVE: 500, schemathesis.GenerationMode.NEGATIVE: 300}
LINE = b'{"prompt": "a", "completion": "b"}\n'
CHECKS = [
    checks.not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
    checks.response_schema_conformance, checks.response_headers_conformance,
    checks.unsupported_method,
]  # fmt: skip


@pytest.fixture(scope="module")
def document(served: Desk) -> Any:
    headers = {"authorization": f"Bearer {served.keys['ours']}"}
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json", headers=headers)


@pytest.fixture(scope="module")
def there(served: Desk) -> dict[str, str]:
    """Ids of what is there, by the name that they have in paths."""
    client = served.openai()
    training = client.files.create(file=("a.jsonl", LINE), purpose="fine-tune").id
    asked = client.files.create(file=("b.jsonl", LINE), purpose="batch").id
    job = client.fine_tuning.jobs.create(model="tiny", training_file=training)
    upload = client.uploads.create(
        bytes=9, filename="a.jsonl", mime_type="text/plain", purpose="batch"
    )
    batch = client.batches.create(
        input_file_id=asked, endpoint="/v1/chat/completions", completion_window="24h"
    )
    return {
        "file_id": training, "job_id": job.id, "upload_id": upload.id, "batch_id": batch.id
    }  # fmt: skip


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_every_answer_is_as_documented(
    served: Desk, document: Any, there: dict[str, str], mode: schemathesis.GenerationMode
) -> None:
    headers = {"authorization": f"Bearer {served.keys['ours']}"}
    operations = [result.ok() for result in document.get_all_operations()]
    statuses: Counter[int] = Counter()
    for operation in operations:

        @settings(max_examples=CASES, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode), known=st.booleans())
        def ask(case: schemathesis.Case, known: bool) -> None:
            for name in case.path_parameters if known else ():
                case.path_parameters[name] = there[name]
            answer = case.call_and_validate(headers=headers, checks=CHECKS)
            statuses[answer.status_code] += 1

        with suppress(Unsatisfiable):  # a path alone has no broken form
            ask()
    assert len(operations) > 20
    assert statuses.total() > LEAST_CASES[mode]
    assert {200, 400, 404} <= statuses.keys() if mode == POSITIVE else statuses[400]
