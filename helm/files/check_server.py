"""What `helm test` runs: the server is ready, asks for keys and lists its base model."""

import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path


def get(path: str, key: str | None) -> tuple[int, bytes]:
    """Status and body of a GET at the server, with the key when there is one."""
    request = urllib.request.Request(os.environ["SERVER"] + path)  # noqa: S310 - the chart's own URL
    if key is not None:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310 - as above
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def main() -> int:
    """Print one line for each check; 1 when one fails."""
    keys_file = os.environ.get("KEYS_FILE")
    key = None if keys_file is None else Path(keys_file).read_text().split()[0]
    ready, _ = get("/health/ready", None)
    without_key, _ = get("/v1/models", None)
    listed, body = get("/v1/models", key)
    models = json.loads(body)["data"] if listed == 200 else []
    checks = {
        "the server is ready": ready == 200,
        "a caller without a key is treated as the values say": without_key
        == (200 if key is None else 401),
        "at least one model is listed": len(models) > 0,
    }
    for claim, holds in checks.items():
        print("ok    " if holds else "FAILED", claim)
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
