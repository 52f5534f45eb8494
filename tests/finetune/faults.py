"""Planted faults, each with the finding that names it, and data without any."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters.prompt import Renderer
from finetune.base_model import special_tokens
from finetune.config import Recipe, check_recipe
from finetune.data import prepare
from finetune.findings import Finding, broken_findings
from finetune.plan import Plan
from finetune.preflight import check
from finetune.reading import BrokenData

PLAN = Plan("cpu", "float32", 1, 1, 1, 100, 50.0)
Records = list[dict[str, Any]]

WHO = ["the baker", "my sister", "an engineer", "the old gardener", "our teacher", "a tourist"]
DOES = ["carries", "paints", "repairs", "forgets", "describes", "borrows", "hides", "admires"]
WHAT = ["a wooden chair", "the yellow kite", "seven books", "his bicycle", "two umbrellas"]


def sentences(count: int) -> list[str]:
    """Different sentences."""
    return [
        f"{WHO[n % 6]} {DOES[n // 6 % 8]} {WHAT[n // 48 % 5]} on day {chr(97 + n % 26)}{n}"
        for n in range(count)
    ]


def pairs(count: int = 80) -> Records:
    return [{"source": s, "target": f"x{n} {s[::-1]}"} for n, s in enumerate(sentences(count))]


def labelled(count: int = 80) -> Records:
    return [{"text": s, "label": ("good", "bad")[n % 2]} for n, s in enumerate(sentences(count))]


def questions(count: int = 80) -> Records:
    return [
        {"question": f"what is in box {n}?", "context": f"box {n} holds {s}.", "answer": s}
        for n, s in enumerate(sentences(count))
    ]


def completions(count: int = 80) -> Records:
    return [{"prompt": f"say {n}", "completion": s} for n, s in enumerate(sentences(count))]


def chats(count: int = 80) -> Records:
    return [
        {"messages": [{"role": "system", "content": "You are a guide who loves short answers."},
                      {"role": "user", "content": f"where is {n}?"},
                      {"role": "assistant", "content": s}]}
        for n, s in enumerate(sentences(count))
    ]  # fmt: skip


CLEAN: dict[str, tuple[str, Callable[..., Records]]] = {
    "pairs": ("translate", pairs), "labelled": ("classify", labelled),
    "questions": ("answer", questions), "completions": ("generate", completions),
    "chats": ("generate", chats),
}  # fmt: skip


@dataclass
class Fault:
    code: str
    kind: str
    spoil: Callable[[Records], Any] = lambda records: None
    """Changes the records, or returns what is written in their place."""
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    test: Callable[[Records], Records] | None = None
    """Held-out records, from those that are trained on."""
    files: tuple[str, ...] = ()


def put(key: str, text: str, numbers: tuple[int, ...] = (7,)) -> Callable[[Records], None]:
    """Put a text at the end of a field of some records."""

    def spoil(records: Records) -> None:
        for number in numbers:
            records[number][key] += f" {text}"

    return spoil


def replace(key: str, value: Any, numbers: Any = (7,)) -> Callable[[Records], None]:
    def spoil(records: Records) -> None:
        for number in numbers:
            records[number][key] = value

    return spoil


def drop(records: Records) -> None:
    del records[7]["target"]


def broken_line(records: Records) -> str:
    return "\n".join([*map(json.dumps, records), '{"source": "cut o'])


def latin_1(records: Records) -> bytes:
    return "\n".join([*map(json.dumps, records), '{"source": "caf\xe9", "target": "b"}']).encode(
        "latin-1"
    )


def utf_16(records: Records) -> bytes:
    return "\n".join(map(json.dumps, records)).encode("utf-16-le")


def ragged_table(records: Records) -> str:
    lines = [f"{r['source']}\t{r['target']}" for r in records]
    return "\n".join(["source\ttarget", *lines, "one cell alone"])


def unknown_role(records: Records) -> None:
    records[7]["messages"][1]["role"] = "robot"


def silent_assistant(records: Records) -> None:
    records[7]["messages"][2]["content"] = " "


def contradict(records: Records) -> None:
    records.append({**records[7], "target": "something else"})


def copies(records: Records) -> None:
    records += [dict(records[7]), dict(records[8])]


def nearly(records: Records) -> Records:
    """Others' inputs with one letter more."""
    return [{**r, "source": r["source"] + "s", "target": r["target"] + "s"} for r in records[:40]]


def near_copies(records: Records) -> None:
    records += nearly(records)


def rare(records: Records) -> None:
    records[:] = [r for r in records if r["label"] == "good"] * 2 + records[1:2]


def many(records: Records) -> None:
    for number, record in enumerate(records):
        record["label"] = f"kind {number % 26}"


TOKEN = "".join(["q7Zp", "X2mK9", "vT4sB8", "nR3wY6", "cL1hD5", "gJ0fA2", "eU7iO9"])  # 40 letters
IBAN = "DE89 3704 0044 0532 0130 00"  # the example of ISO 13616
CARD = "4111 1111 1111 1111"  # for tests

FAULTS = [
    # records that can't be read or used
    Fault("unreadable_record", "pairs", broken_line),
    Fault("unreadable_record", "pairs", ragged_table, files=(".tsv",)),
    Fault("wrong_encoding", "pairs", latin_1),
    Fault("wrong_encoding", "pairs", utf_16),
    Fault("missing_field", "pairs", drop),
    Fault("empty_field", "pairs", replace("target", "  ")),
    Fault("empty_field", "chats", silent_assistant),
    Fault("unknown_label", "labelled", replace("label", "fine"), {"labels": ["good", "bad"]}),
    Fault("unusable_record", "chats", unknown_role),
    # sides and sizes
    Fault("no_supervised_tokens", "pairs", training={"max_length": 8}),
    Fault("unsupervised", "pairs", put("source", "long " * 300)),
    Fault("truncated", "pairs", put("target", "long " * 300)),
    Fault("leakage", "pairs", test=lambda records: records[5:20]),
    Fault("near_leakage", "pairs", test=nearly),
    Fault("duplicates", "pairs", copies, {"holdout_fraction": 0}),
    Fault("near_duplicates", "pairs", near_copies, {"holdout_fraction": 0}),
    Fault("held_out_duplicates", "pairs", test=lambda records: pairs(90)[80:] * 2),
    Fault("contradictions", "pairs", contradict, {"holdout_fraction": 0}),
    Fault("few_training_examples", "pairs", lambda records: records.__delitem__(slice(20, None))),
    Fault("left_out", "pairs", broken_line, {"on_broken": "skip"}),
    Fault("no_asserts", "completions", evaluation={"asserts": "tests"}),
    # answers and labels
    Fault("one_label", "labelled", replace("label", "good", range(80))),
    Fault("imbalance", "labelled", rare, {"holdout_fraction": 0}),
    Fault("long_label_list", "labelled", many),
    Fault("label_spellings", "labelled", replace("label", " Góod", (0, 2, 4))),
    Fault("empty_labels", "labelled", data={"labels": ["good", "bad", "so-so"]}),
    Fault("unlearned_labels", "labelled", data={"labels": ["good", "bad", "odd"]},
          test=lambda records: [{"text": "another matter altogether", "label": "odd"}]),
    Fault("blank_answers", "pairs", replace("target", "N/A")),
    Fault("constant_answer", "pairs", replace("target", "the same", range(60))),
    Fault("answer_in_prompt", "completions",
          lambda records: [r.update(prompt=r["completion"] + "!") for r in records[:30]] and None),
    Fault("answer_not_in_context", "questions", replace("answer", "a mammoth", range(20))),
    # texts
    Fault("special_tokens", "pairs", put("source", "<|im_end|>")),
    Fault("foreign_template", "completions", put("prompt", "### Instruction: go")),
    Fault("foreign_template", "completions", replace("prompt", "[INST] go [/INST]")),
    Fault("foreign_template", "completions", replace("prompt", "Human: hi\n\nAssistant:")),
    Fault("prompt_in_text", "labelled", put("text", "Classify the text as one of: good, bad.")),
    Fault("replacement_characters", "pairs", put("target", "caf\ufffd")),
    Fault("mojibake", "pairs", put("target", "dÃ©jÃ\xa0 vu")),
    Fault("mojibake", "pairs", put("target", "donâ€™t")),
    Fault("control_characters", "pairs", put("target", "\x1b[31mred")),
    Fault("html_entities", "pairs", put("target", "salt &amp; pepper")),
    Fault("untranslated", "pairs",
          lambda records: [r.update(target=r["source"]) for r in records[:20]] and None),
    Fault("wrong_language", "pairs",
          lambda records: [r.update(target=r["source"]) for r in records] and None),
    # personal data and secrets, put together here so that no scanner takes them for real
    Fault("email", "pairs", put("source", "write to ann.lee@mail.example.org")),
    Fault("phone", "pairs", put("source", "call +33 1 23 45 67 89 now")),
    Fault("iban", "pairs", put("source", f"pay to {IBAN} please")),
    Fault("credit_card", "pairs", put("source", f"card {CARD} 12/30")),
    Fault("ip_address", "pairs", put("source", "http://8.8.4.4:80/")),
    Fault("private_key", "pairs", put("source", f"-----BEGIN RSA PRIVATE {'KEY'}-----\n{TOKEN}")),
    Fault("aws_key", "pairs", put("source", "AKIA" + "IOSFODNN7EXAMPLE")),
    Fault("github_token", "pairs", put("source", "ghp_" + TOKEN)),
    Fault("api_key", "pairs", put("source", "sk-" + TOKEN)),
    Fault("jwt", "pairs", put("source", f"eyJ{TOKEN}.eyJ{TOKEN}.{TOKEN}")),
]  # fmt: skip

CLEAN_SETS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "pairs": ("translate", pairs()),
    "labelled": ("classify", labelled()),
    "questions": ("answer", questions()),
    "completions": ("generate", completions()),
    "chats": ("generate", chats()),
    "software messages": ("translate", [
        {"source": f"%(n)d file{n} in {{folder}} &amp; v1.{n}", "target": f"%(n)d fichier{n}"}
        for n in range(60)]),
    "code": ("generate", [
        {"prompt": f"write f{n}", "completion": f"def f{n}(x):\n\treturn x[{n}] if x else None"}
        for n in range(60)]),
    "unanswerable questions": ("answer", [
        {"question": f"why {n}?", "context": "No reason is given.", "answers": []}
        for n in range(40)] + questions(20)),
    "many scripts": ("classify", [
        {"text": f"{t} {n}", "label": lab}
        for n in range(20) for t, lab in (("хорошая погода", "да"), ("とても良い", "はい"),
                                          ("naïve café – très bon", "où"), ("👍🏽", "👍"))]),
    "numbers": ("classify", [
        {"text": f"order {n:08d} of 2024-11-{n % 28 + 1:02d}, version 1.2.3.{n}, 12:30:{n:02d}",
         "label": f"{n % 3}"} for n in range(60)]),
}  # fmt: skip


def recipe_of(fault: Fault, folder: Path, *, spoilt: bool = True) -> Recipe:
    """A recipe whose data, written into the folder, have the fault; without it if not `spoilt`."""
    task, make = CLEAN[fault.kind]
    records = make()
    made = fault.spoil(records) if spoilt else None
    kind = fault.files[0] if fault.files and spoilt else ".jsonl"
    data = {"train": _write(folder / f"train{kind}", records if made is None else made)}
    if fault.test is not None and spoilt:
        data["test"] = _write(folder / "test.jsonl", fault.test(records))
    extra = fault if spoilt else Fault(fault.code, fault.kind)
    training = {"max_length": 256, **extra.training}
    return _recipe(task, data | extra.data, training, extra.evaluation)


def clean_recipe(name: str, folder: Path) -> Recipe:
    """A recipe of one of the clean sets, written into the folder."""
    task, records = CLEAN_SETS[name]
    return _recipe(task, {"train": _write(folder / "clean.jsonl", records)}, {}, {})


def findings(recipe: Recipe, renderer: Renderer, context: int = 512) -> list[Finding]:
    """What preflight finds, data that can't be read included."""
    try:
        prepared = prepare(recipe, renderer, context)
    except BrokenData as error:
        return broken_findings(error)
    return check(prepared, recipe, PLAN, special_tokens(renderer.tokenizer)).findings


def _recipe(task: str, data: dict[str, Any], training: Any, evaluation: Any) -> Recipe:
    languages = {"source_lang": "en", "target_lang": "fr"} if task == "translate" else {}
    return check_recipe(
        {"name": "a", "task": task, "data": languages | data, "training": training,
         "evaluation": evaluation}
    )  # fmt: skip


def _write(path: Path, content: Any) -> str:
    if isinstance(content, list):
        content = "\n".join(json.dumps(record, ensure_ascii=False) for record in content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)
