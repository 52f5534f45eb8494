"""How a task's input becomes token ids, the same way in training and in serving.

A `PromptTemplate` travels in the manifest; a `Renderer` applies it through the
base model's own chat template. Nothing else in the project makes prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from adapters.digests import digest_bytes
from adapters.errors import InvalidInput
from adapters.languages import language_name

Task = Literal["generate", "translate", "answer", "classify"]
Message = dict[str, Any]
Tool = dict[str, Any]


@dataclass(frozen=True, slots=True)
class GenerateInput:
    prompt: str


@dataclass(frozen=True, slots=True)
class TranslateInput:
    text: str
    source_lang: str
    target_lang: str


@dataclass(frozen=True, slots=True)
class AnswerInput:
    question: str
    context: str | None = None


@dataclass(frozen=True, slots=True)
class ClassifyInput:
    text: str
    labels: tuple[str, ...]


TaskInput = GenerateInput | TranslateInput | AnswerInput | ClassifyInput

FIELDS: Mapping[Task, frozenset[str]] = {
    "generate": frozenset({"prompt"}),
    "translate": frozenset({"text", "source", "target"}),
    "answer": frozenset({"question", "context", "unanswerable"}),
    "classify": frozenset({"text", "labels"}),
}


def _values(template: "PromptTemplate", task_input: TaskInput) -> dict[str, str]:
    match task_input:
        case GenerateInput(prompt):
            return {"prompt": prompt}
        case TranslateInput(text, source, target):
            names = {"source": language_name(source), "target": language_name(target)}
            return {"text": text, **names}
        case AnswerInput(question, context):
            unanswerable = template.unanswerable
            return {"question": question, "context": context or "", "unanswerable": unanswerable}
        case ClassifyInput(text, labels):
            return {"text": text, "labels": ", ".join(labels)}


_TASK_OF: Mapping[type, Task] = {
    GenerateInput: "generate",
    TranslateInput: "translate",
    AnswerInput: "answer",
    ClassifyInput: "classify",
}


class PromptTemplate(BaseModel):
    """A system and a user message with fields in braces; `{{` stands for a brace."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Task
    system: str | None = Field(default=None, max_length=20_000)
    user: str = Field(max_length=20_000)
    user_without_context: str | None = Field(
        default=None,
        max_length=20_000,
        description="`answer` only: the user message without a context",
    )
    unanswerable: str = Field(
        default="unanswerable",
        description="`answer` only: what the model says when the context is silent",
    )

    @model_validator(mode="after")
    def _knows_its_fields(self) -> "PromptTemplate":
        for name in ("system", "user", "user_without_context"):
            text = getattr(self, name)
            used = _fields_of(text, name) if text is not None else set()
            if unknown := used - FIELDS[self.task]:
                raise ValueError(
                    f"{name} uses unknown fields {sorted(unknown)}; "
                    f"the task {self.task} has {sorted(FIELDS[self.task])}"
                )
        return self

    def messages(self, task_input: TaskInput) -> list[Message]:
        """The chat messages for one input.

        Raises:
            InvalidInput: the input is of another task.
        """
        if _TASK_OF[type(task_input)] != self.task:
            raise InvalidInput(
                f"a prompt for {self.task} got an input for {_TASK_OF[type(task_input)]}"
            )
        values = _values(self, task_input)
        user = self.user
        if isinstance(task_input, AnswerInput) and task_input.context is None:
            user = self.user_without_context or "{question}"
        messages: list[Message] = []
        if self.system is not None:
            messages.append({"role": "system", "content": self.system.format_map(values)})
        messages.append({"role": "user", "content": user.format_map(values)})
        return messages


def _fields_of(text: str, name: str) -> set[str]:
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"{name} is no template: {error}; write {{{{ for a brace") from error
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise ValueError(f"{name} has a field with a format; write just {{name}}")
    return {field for _, field, _, _ in parts if field is not None}


_DEFAULTS: Mapping[Task, PromptTemplate] = {
    "generate": PromptTemplate(task="generate", user="{prompt}"),
    "translate": PromptTemplate(
        task="translate",
        system="You translate from {source} to {target}. Reply with the translation only.",
        user="{text}",
    ),
    "answer": PromptTemplate(
        task="answer",
        system="Answer the question in as few words as possible, with words of the context. "
        "If the context does not say, reply: {unanswerable}",
        user="Context: {context}\n\nQuestion: {question}",
        user_without_context="{question}",
    ),
    "classify": PromptTemplate(
        task="classify",
        system="Classify the text as one of: {labels}. Reply with the label only.",
        user="{text}",
    ),
}


def default_prompt(task: Task) -> PromptTemplate:
    """The prompt that a base model gets for a task when no adapter brings its own."""
    return _DEFAULTS[task]


def changed_prompt(task: Task, changes: Mapping[Any, str | None]) -> PromptTemplate:
    """A task's prompt with some parts replaced.

    Raises:
        pydantic.ValidationError: they are not what a template has.
    """
    return PromptTemplate.model_validate({**default_prompt(task).model_dump(), **changes})


class Tokenizer(Protocol):
    """What is needed of a transformers fast tokenizer."""

    chat_template: str | None
    eos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...
    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = ...) -> str: ...
    def apply_chat_template(self, conversation: list[Message], **options: Any) -> Any: ...


_OTHER_BASE = ": use a base model whose template does, or leave them out"
_MARK = "\u241fmodiste\u241f"


class Renderer:
    """Makes token ids with one tokenizer and its chat template.

    A turn's text is tokenised in one piece, as vLLM's chat handler does, and an
    answer apart from its prompt, since the model is given the prompt whole.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        if not tokenizer.chat_template:
            raise InvalidInput("the base model has no chat template", param="base")
        self.tokenizer = tokenizer
        self.template_fingerprint = digest_bytes(tokenizer.chat_template.encode())
        self.end_text, self.end_id = self._end_of_turn()
        self._end_ids = self._encode(self.end_text)

    def text(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
        """The prompt as text, up to where the model begins to speak."""
        return self._written(messages, tools, add_generation_prompt=True)

    def chat_ids(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """Token ids of a prompt, [T]."""
        return self._encode(self.text(messages, tools))

    def prompt_ids(self, template: PromptTemplate, task_input: TaskInput) -> list[int]:
        """Token ids of a task's prompt, [T]."""
        return self.chat_ids(template.messages(task_input))

    def completion_ids(self, text: str) -> list[int]:
        """Token ids of an answer with its end of turn, [T]."""
        return [*self._encode(text), *self._end_ids]

    def conversation(
        self, messages: Sequence[Message], tools: Sequence[Tool] = ()
    ) -> tuple[list[int], list[bool]]:
        """Token ids of a whole chat, [T], and which of them the model must say, [T].

        The assistant's turns with their ends are supervised; a message may opt out
        with `"weight": 0`.

        Args:
            messages: with the arguments of tool calls as mappings.
            tools: functions in OpenAI's form that the template shows to the model.

        Raises:
            InvalidInput: no assistant turn, or the template rewrites earlier turns, or does not
                show tools, their calls or their answers.
        """
        ids: list[int] = []
        supervised: list[bool] = []
        done = ""
        self._check_tools(messages, tools)
        for position, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self.text(messages[:position], tools)
            if not prompt.startswith(done):
                raise InvalidInput(
                    "the chat template rewrites earlier turns",
                    hint="train on single-turn examples with this base",
                )
            before = self._encode(prompt[len(done) :])
            text = self.said(messages, position, tools)
            said = self.completion_ids(text)
            ids += before + said
            speaks = message.get("weight", 1) != 0
            supervised += [False] * len(before) + [speaks] * len(said)
            done = prompt + text + self.end_text
        if not ids:
            raise InvalidInput("the conversation has no assistant message", param="messages")
        return ids, supervised

    def said(self, messages: Sequence[Message], position: int, tools: Sequence[Tool] = ()) -> str:
        """What the assistant says in one turn, without its end; tool calls as the template has it.

        Raises:
            InvalidInput: the template does not show the calls.
        """
        message = messages[position]
        if not message.get("tool_calls"):
            content: str = message["content"]
            return content
        prompt = self.text(messages[:position], tools)
        whole = self._written(messages[: position + 1], tools, add_generation_prompt=False)
        said, end, _ = whole.removeprefix(prompt).rpartition(self.end_text)
        shown = all(call["function"]["name"] in said for call in message["tool_calls"])
        if not (whole.startswith(prompt) and end and shown):
            raise InvalidInput(f"the chat template does not show tool calls{_OTHER_BASE}")
        return said

    def _check_tools(self, messages: Sequence[Message], tools: Sequence[Tool]) -> None:
        """A template that passes over tools would train the model to guess them."""
        answered = any(m["role"] == "tool" and m["content"] for m in messages)
        if not tools and not answered:
            return
        text = self.text(messages, tools)
        if tools and text == self.text(messages):
            raise InvalidInput(f"the chat template does not show tools{_OTHER_BASE}")
        silent = [{**m, "content": ""} if m["role"] == "tool" else m for m in messages]
        if answered and text == self.text(silent, tools):
            raise InvalidInput(f"the chat template does not show tools' answers{_OTHER_BASE}")

    def _written(
        self, messages: Sequence[Message], tools: Sequence[Tool], *, add_generation_prompt: bool
    ) -> str:
        text: str = self.tokenizer.apply_chat_template(
            list(messages),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **({"tools": list(tools)} if tools else {}),
        )
        return text

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _end_of_turn(self) -> tuple[str, int]:
        """What the template writes after an assistant's words, and its first token."""
        user: Message = {"role": "user", "content": "a"}
        text: str = self.tokenizer.apply_chat_template(
            [user, {"role": "assistant", "content": _MARK}], tokenize=False
        )
        end = text.partition(_MARK)[2]
        ids = self._encode(end)
        if not ids:
            raise InvalidInput(
                "the chat template does not mark the end of an assistant's turn",
                hint="use a base model whose template ends each turn with a special token",
                param="base",
            )
        return self.tokenizer.decode(ids[:1], skip_special_tokens=False), ids[0]
