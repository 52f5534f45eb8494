"""The recipe's parts on the adapter's shape and on how it is trained."""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from adapters.prompt import Task

LINEAR_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_NOT_ADAPTED = ("lm_head", "embed_tokens")

Reporter = Literal["tensorboard", "mlflow"]
SELECTABLE: dict[Task, tuple[str, ...]] = {
    "generate": ("loss", "reward_accuracy"),
    "translate": ("loss", "chrf", "bleu"),
    "answer": ("loss", "exact_match", "f1"),
    "classify": ("loss", "accuracy", "macro_f1"),
}
"""Figures by which `training.best_by` may choose; `metric_names.sign_of` tells their direction."""


class BatchBounds(NamedTuple):
    """How large a batch may be; one that is bounded by examples takes them however long."""

    tokens: int | None
    """Padding included."""
    examples: int | None = None


class Part(BaseModel):
    """A part of a recipe: it can't be changed, and unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _adaptable(value: str) -> str:
    if value.rsplit(".", 1)[-1] in _NOT_ADAPTED:
        raise ValueError(f"{value} cannot be adapted: the server keeps one vocabulary for all")
    return value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Lora(Part):
    """The adapter's shape."""

    r: int = Field(16, ge=1, le=256, description="rank")
    alpha: float = Field(32, gt=0, description="the update is scaled by alpha / r")
    use_rslora: bool = Field(False, description="scale by alpha / sqrt(r) instead: rsLoRA")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the adapter's input")
    target_modules: list[Annotated[str, AfterValidator(_adaptable)]] = Field(
        list(LINEAR_MODULES), min_length=1, description="names of linear modules"
    )


class Training(Part):
    """The optimiser's part."""

    method: Literal["supervised", "dpo"] = Field(
        "supervised", description="dpo: learn which of two answers is preferred"
    )
    beta: float = Field(0.1, gt=0, le=2, description="dpo only: larger stays nearer to the base")
    start: Literal["fresh", "parent"] = Field(
        "fresh", description="the adapter's first weights; parent: those of the version `parent`"
    )
    epochs: int = Field(3, ge=1, le=1000, description="passes over the training examples")
    max_steps: int | None = Field(None, ge=1, description="stop after so many steps")
    learning_rate: float = Field(5e-4, gt=0, le=1, description="peak, for example 0.0005")
    learning_rate_multiplier: float = Field(
        1.0, gt=0, le=100, description="the peak is so many times learning_rate"
    )
    loraplus_lr_ratio: float = Field(
        1.0, ge=1, le=1000, description="LoRA+: B matrices learn so many times faster than A"
    )
    batch_tokens: int = Field(1024, ge=16, description="tokens in a batch, padding included")
    batch_size: int | None = Field(
        None, ge=1, le=4096, description="examples in a batch; none: as many as batch_tokens takes"
    )
    micro_batch_tokens: int | None = Field(
        None, ge=16, description="tokens at once; a batch's gradients are summed; none: by memory"
    )
    activation_checkpointing: Literal["auto", "on", "off"] = Field(
        "auto", description="compute activations twice to save memory; auto: where they don't fit"
    )
    max_length: int = Field(1024, ge=8, description="tokens of an example; more is cut")
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="share of steps that warm up")
    schedule: Literal["cosine"] = Field("cosine", description="from the peak to zero")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's")
    max_grad_norm: float = Field(1.0, gt=0, description="longer gradients are scaled down")
    seed: int = Field(0, ge=0, lt=2**32, description="of the first values, the order and dropout")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the base model; auto: bfloat16 where it is measured clearly faster"
    )
    quantization: Literal["none", "nf4"] = Field(
        "none", description="nf4: QLoRA, the base in 4 bits while training, on a GPU"
    )
    checkpoint_every_steps: int = Field(
        50, ge=1, description="steps between checkpoints; data.validation is measured at each"
    )
    keep_epochs: int = Field(
        0, ge=0, le=100, description="publish the adapters of so many epochs before the last too"
    )
    best_by: str | None = Field(
        None, description="keep the adapter that is best by this figure on data.validation"
    )
    patience: int | None = Field(
        None, ge=1, description="stop after so many checkpoints that were not better by best_by"
    )
    report_to: Annotated[list[Reporter], BeforeValidator(_as_list)] = Field(
        [], description="also write the figures there: tensorboard, mlflow"
    )

    @property
    def peak_rate(self) -> float:
        return self.learning_rate * self.learning_rate_multiplier

    @property
    def batch_bounds(self) -> BatchBounds:
        if self.batch_size is None:
            return BatchBounds(self.batch_tokens)
        return BatchBounds(None, self.batch_size)
