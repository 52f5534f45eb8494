"""Real answers, base and adapter side by side, over HTTP and the OpenAI client."""

from collections.abc import Sequence
from typing import Any

import httpx
import openai
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adapters.prompt import TranslateInput
from adapters.registry import Version

MESSAGES = [
    "The file %(name)s could not be opened.",
    "Are you sure you want to delete {0} items?",
    "Unable to connect to the <b>server</b>",
    "Save changes before closing?",
]
OPINIONS = [
    "the battery died after two days, what a waste of money.",
    "i love it, the picture is beautiful!",
    "it comes with a cable and a manual.",
]
CONTEXT = (
    "The Eiffel Tower was built by Gustave Eiffel's company for the World's Fair of 1889. "
    "It is 330 metres tall and stands on the Champ de Mars in Paris."
)


class WrongReceipt(Exception):
    """An answer that does not say that the version meant for it made it."""


class Api:
    """Calls that check what made each answer."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=300)

    def post(self, path: str, body: dict[str, Any], made_by: str) -> list[dict[str, Any]]:
        """The results of a task route.

        Raises:
            WrongReceipt: another version answered than `made_by`.
        """
        answer = self._client.post(path, json=body)
        answer.raise_for_status()
        receipt = answer.headers.get("x-modiste-receipt", "")
        if answer.json()["model"] != made_by or not receipt.startswith(f"version={made_by};"):
            raise WrongReceipt(f"{path} wanted {made_by}, the receipt says {receipt!r}")
        results: list[dict[str, Any]] = answer.json()["results"]
        return results


def show_answers(console: Console, url: str, versions: Sequence[Version]) -> None:
    """Print answers of every kind."""
    translator, classifier = versions
    api = Api(url)
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    base = next(iter(client.models.list())).id
    _translate(console, api, base, translator)
    _classify(console, api, base, classifier)
    _answer(console, api, base)
    _generate(console, api, base)
    _chat(console, client, base, translator)


def _row(table: Table, *cells: str) -> None:
    """A row of plain text: models write brackets too."""
    table.add_row(*(Text(cell) for cell in cells))


def _translate(console: Console, api: Api, base: str, version: Version) -> None:
    body = {"text": MESSAGES, "source_lang": "en", "target_lang": "fr", "max_tokens": 48}
    plain = api.post("/v1/translate", {**body, "model": base}, base)
    made = api.post("/v1/translate", body, version.reference)
    table = Table("English", f"base {base}", version.reference, title="POST /v1/translate")
    for text, one, two in zip(MESSAGES, plain, made, strict=True):
        _row(table, text, _marked(one), _marked(two))
    console.print(table)


def _marked(result: dict[str, Any]) -> str:
    warnings = ", ".join(warning["code"] for warning in result["warnings"])
    text: str = result["translation"].strip()
    return text + (f"\n(warning: {warnings})" if warnings else "")


def _classify(console: Console, api: Api, base: str, version: Version) -> None:
    labels = list(version.manifest.labels)
    plain = api.post("/v1/classify", {"text": OPINIONS, "labels": labels, "model": base}, base)
    made = api.post("/v1/classify", {"text": OPINIONS}, version.reference)
    table = Table("text", f"base {base}", version.reference, title="POST /v1/classify")
    for text, *results in zip(OPINIONS, plain, made, strict=True):
        _row(table, text, *(f"{r['label']} {r['probability']:.2f}" for r in results))
    console.print(table)


def _answer(console: Console, api: Api, base: str) -> None:
    questions = ["How tall is the Eiffel Tower?", "Who built the Eiffel Tower?"]
    body = {"question": questions, "context": CONTEXT, "max_tokens": 32}
    table = Table("question", "answer", "confidence", "evidence", title="POST /v1/answer (base)")
    for question, result in zip(questions, api.post("/v1/answer", body, base), strict=True):
        evidence = "; ".join(f"{e['start']}-{e['end']} {e['text']!r}" for e in result["evidence"])
        _row(table, question, result["answer"], f"{result['confidence']:.2f}", evidence)
    console.print(table)


def _generate(console: Console, api: Api, base: str) -> None:
    prompt = "Write one sentence that thanks a customer for a bug report."
    body = {"prompt": prompt, "max_tokens": 60, "temperature": 0.7, "seed": 7}
    first, second = (api.post("/v1/generate", body, base)[0]["text"] for _ in range(2))
    table = Table("prompt", "text", "same seed, same text", title="POST /v1/generate (base)")
    _row(table, prompt, first.strip(), "yes" if first == second else "no")
    console.print(table)


def _chat(console: Console, client: openai.OpenAI, base: str, version: Version) -> None:
    """The same messages to both: those of the adapter's own prompt."""
    task_input = TranslateInput("Save your work before you log out.", "en", "fr")
    messages: Any = version.manifest.prompt.messages(task_input)
    table = Table("model", "answer", title="POST /v1/chat/completions (the openai client)")
    for name in (base, version.name):
        answer = client.chat.completions.create(
            model=name, messages=messages, max_tokens=40, temperature=0
        )
        _row(table, answer.model, (answer.choices[0].message.content or "").strip())
    console.print(table)
