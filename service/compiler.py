"""How vLLM's engine compiles what answers shall fit.

Of the few modules that import vllm: the rest of the server knows `service.grammars.Compiler`.
"""

import json
from typing import Any

from vllm.utils.mistral import is_mistral_tokenizer
from vllm.v1.structured_output.utils import choice_as_grammar, grammar_is_likely_lark

from service.constraints import Constraint
from service.grammars import Compiler


def describe(client: Any) -> Compiler | None:
    """The compiler of an engine's client; None where it is another than xgrammar's own, which
    can't be tried beforehand.

    Takes tenths of a second: the vocabulary is written.
    """
    config = client.vllm_config.structured_outputs_config
    tokenizer = client.renderer.get_tokenizer()
    if config.backend != "xgrammar" or is_mistral_tokenizer(tokenizer):
        return None
    import xgrammar

    info = xgrammar.TokenizerInfo.from_huggingface(
        tokenizer, vocab_size=client.model_config.get_vocab_size()
    )
    return Compiler(info.serialize_json(), not config.disable_any_whitespace, dialect)


def dialect(constraint: Constraint) -> tuple[str, str]:
    """Kind and text of a constraint as xgrammar gets them from vLLM."""
    if constraint.kind == "choice":
        return "ebnf", choice_as_grammar([str(one) for one in json.loads(constraint.text)])
    if constraint.kind == "grammar":
        return "lark" if grammar_is_likely_lark(constraint.text) else "ebnf", constraint.text
    return constraint.kind, constraint.text
