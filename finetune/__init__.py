"""One customisation of a base model, from recipe to published version.

The modules in reading order, which is running order: config and data_config, sources (with reading,
text_files, json_files, tmx, catalogues, tables, remote_files), examples, chats, splits, data,
preflight, plan, batching, forward, train, generate, labels, metrics, evaluate, publish, run. Run as
`python -m finetune`. What is done with adapters that exist stands beside them: foreign and imports,
lora, methods, combine and merge, bake.
"""
