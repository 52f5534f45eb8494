"""One customisation of a base model, from recipe to published version.

The modules in reading order, which is running order: config with data_config, options and mistakes,
sources (with reading, text_files, json_files, tmx, catalogues, tables, remote_files), examples,
chats, preferences, sensitive and redaction, splits, data, preflight with findings, text_checks,
languages, duplicates, sides and preflight_page, plan with memory, precision and quantization,
batching, projection, forward, recomputation, objectives, train with group, checkpoint, divergence,
validation, reporters and full_gpu, trial, executor with ray_run, ray_worker and workers, generate,
labels, subjects, metrics and metric_names, sandbox, measures, slices, live, evaluate, served,
own_server and candidate, html_page and report_page, publish, files, run, again, proposal, and the
sweep_ modules with sweep. Run as `python -m finetune`. What is done with adapters that exist stands
beside them: foreign and imports, lora, methods, combine and merge, bake, evaluate_version.
"""
