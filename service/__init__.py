"""The server: one process around vLLM's engine, and the command `modiste`."""
