"""What preflight can find, by code: the one table of errors and warnings."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from adapters.errors import InvalidInput
from finetune.reading import BrokenData

Level = Literal["error", "warning"]

CODES: Mapping[str, tuple[Level, str]] = {
    # records that can't be used, found while reading
    "unreadable_record": ("error", "a line or file that is broken: no JSON, too few cells"),
    "wrong_encoding": ("error", "bytes that are not of the file's encoding, or a NUL"),
    "missing_field": ("error", "a record without a field that its task needs"),
    "empty_field": ("error", "an answer or an input that is empty"),
    "unknown_label": ("error", "a label that data.labels doesn't have"),
    "unusable_record": ("error", "a record that contradicts itself or holds something else"),
    # what makes training or testing useless
    "no_training_examples": ("error", "nothing to train on"),
    "no_supervised_tokens": ("error", "nothing of any answer is left to learn from"),
    "no_held_out_examples": ("error", "data.test has none"),
    "leakage": ("error", "held-out inputs that are also trained on"),
    "no_asserts": ("error", "no held-out example has the asserts that the evaluation needs"),
    "one_label": ("error", "training examples of one label only"),
    # sizes and sides
    "few_training_examples": ("warning", "fewer than 50"),
    "few_held_out_examples": ("warning", "fewer than 30"),
    "truncated": ("warning", "examples that are cut to training.max_length"),
    "unsupervised": ("warning", "examples of whose answer nothing is left"),
    "near_leakage": ("warning", "held-out inputs that are nearly equal to trained ones"),
    "validation_leakage": ("warning", "validation inputs that are also trained on or held out"),
    "duplicates": ("warning", "training examples that are there several times"),
    "near_duplicates": ("warning", "training inputs that are nearly equal"),
    "held_out_duplicates": ("warning", "held-out examples that are there several times"),
    "contradictions": ("warning", "training inputs that have several different answers"),
    "left_out": ("warning", "records that were skipped, by reason"),
    "not_enough_memory": ("warning", "training is near the machine's memory, or beyond"),
    # answers and labels
    "empty_labels": ("warning", "labels without a training example"),
    "unlearned_labels": ("warning", "labels that only held-out examples have"),
    "imbalance": ("warning", "the commonest label has over 10 times the rarest's examples"),
    "long_label_list": ("warning", "a list of labels that is most of every prompt"),
    "label_spellings": ("warning", "labels that differ in case, space or accents alone"),
    "blank_answers": ("warning", "answers that say nothing: n/a, todo, -"),
    "constant_answer": ("warning", "half of the answers are the same"),
    "answer_in_prompt": ("warning", "prompts that hold the answer that is asked for"),
    "answer_not_in_context": ("warning", "answers that the context doesn't have"),
    # texts
    "special_tokens": ("warning", "texts with control tokens of the base"),
    "foreign_template": ("warning", "texts with the marks of a chat template"),
    "prompt_in_text": ("warning", "texts that already have the task's instruction"),
    "replacement_characters": ("warning", "texts with U+FFFD, what is left of a wrong decoding"),
    "mojibake": ("warning", "texts that were decoded as another encoding"),
    "control_characters": ("warning", "texts with escape codes and characters that nobody sees"),
    "html_entities": ("warning", "texts with &amp; and its like"),
    "untranslated": ("warning", "translations that are equal to their source"),
    "wrong_language": ("warning", "texts in another language than the recipe says"),
    # personal data and secrets
    "private_key": ("warning", "private keys in PEM"),
    "jwt": ("warning", "JSON web tokens"),
    "aws_key": ("warning", "access keys of AWS"),
    "github_token": ("warning", "tokens of GitHub"),
    "api_key": (
        "warning",
        "keys of OpenAI, Anthropic, Google, Hugging Face, Slack, Stripe, GitLab",
    ),
    "email": ("warning", "e-mail addresses"),
    "iban": ("warning", "bank accounts with a right checksum"),
    "credit_card": ("warning", "numbers of cards with a right checksum"),
    "ip_address": ("warning", "addresses of machines"),
    "phone": ("warning", "telephone numbers"),
}
SAMPLES = 5
"""Places that are kept of a finding."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or may be."""

    code: str
    level: Level
    message: str
    count: int
    samples: list[str]
    """Places of the first ones; never a text of the data."""


def finding(code: str, message: str, count: int, samples: Iterable[str] = ()) -> Finding:
    """A finding of the table, at its level there."""
    kept = [sample for sample, _ in zip(samples, range(SAMPLES), strict=False)]
    return Finding(code, CODES[code][0], message, count, kept)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, each in the order of the table."""
    codes = list(CODES)
    return sorted(findings, key=lambda found: (found.level != "error", codes.index(found.code)))


def broken_findings(error: BrokenData) -> list[Finding]:
    """What reading found, as findings: one for each kind of fault."""
    kinds: dict[str, list[str]] = {}
    for item in error.broken:
        kinds.setdefault(item.code, []).append(str(item)[:200])
    return in_order(
        finding(code, f"{len(places)} records: {CODES[code][1]}", len(places), places)
        for code, places in kinds.items()
    )


class PreflightFailed(InvalidInput):
    """The data cannot be trained on; says every reason.

    Args:
        errors: messages.
        report: the whole report, for programs.
    """

    def __init__(self, errors: list[str], report: dict[str, Any]) -> None:
        lines = "".join(f"\n  {error}" for error in errors)
        super().__init__(f"preflight found {len(errors)} error(s):{lines}", param="data")
        self.report = report
