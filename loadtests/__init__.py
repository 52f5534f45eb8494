"""Load tests: scenarios as data, sent over HTTP by Locust, judged against their limits."""
