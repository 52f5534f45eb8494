"""One customisation of a base model, from recipe to published version.

The modules in reading order, which is running order: config, sources, examples, data,
preflight, plan, batching, forward, train, generate, labels, metrics, evaluate, publish, run.
Run as
`python -m finetune`.
"""
