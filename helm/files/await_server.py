"""Waits until the server of SERVER is ready, WAIT_S seconds at most."""

import os
import sys
import time
import urllib.request


def is_ready(server: str) -> bool:
    try:
        with urllib.request.urlopen(server + "/health/ready", timeout=5) as answer:  # noqa: S310 - the chart's own URL
            return bool(answer.status == 200)
    except OSError:
        return False


def main() -> int:
    """0 once it is ready; 1 when the time is over."""
    server, until = os.environ["SERVER"], time.monotonic() + float(os.environ["WAIT_S"])
    while not is_ready(server):
        if time.monotonic() > until:
            print(f"{server} is not ready after {os.environ['WAIT_S']} s", file=sys.stderr)
            return 1
        time.sleep(2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
