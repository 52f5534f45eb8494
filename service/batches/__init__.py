"""OpenAI's batches: the requests of a file, answered by the engine when it has room."""
