"""What one server holds and answers on H100s: arithmetic over published figures and assumptions.

Nothing here was measured on a GPU. Every figure that goes in is an `Input`, which says whether it
is published, read in code, measured here, or assumed.
"""

from dataclasses import dataclass

from service.capacity import LEAST_SLOTS, MOST_SLOTS, SLOTS_SHARE

BYTES = 2
"""Of a weight: bfloat16."""
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_MODULES = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
ROW_PARALLEL = frozenset({"o_proj", "down_proj"})
"""Their inputs are shared out over the GPUs; of the others it is the outputs."""


@dataclass(frozen=True, slots=True)
class Input:
    """One figure, and where it is from."""

    what: str
    value: float
    shown: str
    source: str


NVIDIA = "published: NVIDIA, H100 SXM data sheet"
VLLM = "code of vLLM 0.32.0"
ASSUMED = "assumed"

GPU_BYTES = Input("memory of a GPU", 80e9, "80 GB", NVIDIA)
GPU_BANDWIDTH = Input("its bandwidth", 3.35e12, "3.35 TB/s", NVIDIA)
GPU_FLOPS = Input("its bfloat16 speed, dense", 989e12, "989 TFLOP/s", NVIDIA)
HOST_BYTES = Input(
    "memory of the host, a GPU", 250e9, "250 GB",
    "published: MLPerf Inference 3.1, Dell XE9680 with 8 H100 and 2 TB",
)  # fmt: skip
GPU_SHARE = Input("share of a GPU's memory that the engine takes", 0.92, "0.92", VLLM)
MOST_SEQUENCES = Input("sequences in one step at most", 1024, "1,024", VLLM)
COMPUTE_SHARE = Input("share of the speed that is reached", 0.5, "0.5", ASSUMED)
BANDWIDTH_SHARE = Input("share of the bandwidth that is reached", 0.7, "0.7", ASSUMED)
LORA_COST = Input("products with adapters over those without", 1.15, "1.15", ASSUMED)
GPU_RESERVED = Input("activations and CUDA graphs, a GPU", 4e9, "4 GB", ASSUMED)
PROMPT = Input("tokens of a prompt, none of them cached", 500, "500", ASSUMED)
ANSWER = Input("tokens of an answer", 100, "100", ASSUMED)
TOKEN_GAP_S = Input("longest time between two tokens", 0.05, "50 ms", ASSUMED)
PLANNED = Input("share of the highest rate that is planned for", 0.7, "0.7", ASSUMED)
RANK = Input("rank of the adapters, on all seven modules", 16, "16", ASSUMED)
HOST_SHARE = Input("share of the host's memory for versions", 0.5, "0.5", ASSUMED)
LOAD_S = Input("a load: what it takes whatever the size", 0.05, "50 ms", ASSUMED)
LOAD_SPEED = Input("a load: from files to the host's memory", 2e9, "2 GB/s", ASSUMED)
COPY_S = Input("a slot that changes: what it takes whatever the size", 0.005, "5 ms", ASSUMED)
COPY_SPEED = Input(
    "a slot that changes: host to GPU", 25e9, "25 GB/s",
    "assumed: 0.4 of the published 64 GB/s of PCIe 5.0 in one direction",
)  # fmt: skip
FRONT_END_S = Input(
    "CPU time of the API process, a token", 2.31e-3 / 16, "0.144 ms",
    "measured without a GPU: 2.31 ms for 16 tokens, tiny base, 32 at once (docs/benchmarks.md)",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Model:
    """A base model of the Llama family, and over how many GPUs it is split."""

    name: str
    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    inner: int
    vocabulary: int
    gpus: int
    source: str

    @property
    def head(self) -> int:
        return self.hidden // self.heads

    @property
    def parameters(self) -> int:
        """Of the whole model; its embeddings are not tied."""
        a_layer = sum(into * out for into, out in map(self.sides, ALL_MODULES)) + 2 * self.hidden
        return self.layers * a_layer + (2 * self.vocabulary + 1) * self.hidden

    def sides(self, module: str) -> tuple[int, int]:
        """Inputs and outputs of a module."""
        shared = self.key_value_heads * self.head
        return {
            "q_proj": (self.hidden, self.hidden), "k_proj": (self.hidden, shared),
            "v_proj": (self.hidden, shared), "o_proj": (self.hidden, self.hidden),
            "gate_proj": (self.hidden, self.inner), "up_proj": (self.hidden, self.inner),
            "down_proj": (self.inner, self.hidden),
        }[module]  # fmt: skip

    def adapter_bytes(self, rank: int, modules: tuple[str, ...] = ALL_MODULES) -> int:
        """An adapter's tensors, in a file or in the memory of a host's process."""
        return self.layers * rank * BYTES * sum(sum(self.sides(module)) for module in modules)

    def slot_bytes(self, rank: int, modules: tuple[str, ...] = ALL_MODULES) -> int:
        """A slot in one GPU: vLLM splits one of the two matrices of each module."""
        total = 0
        for module in modules:
            into, out = self.sides(module)
            total += into // self.gpus + out if module in ROW_PARALLEL else into + out // self.gpus
        return self.layers * rank * BYTES * total

    @property
    def cache_bytes(self) -> int:
        """The KV cache of a token, over all GPUs."""
        return 2 * self.key_value_heads * self.head * self.layers * BYTES


META = "published: Meta, config.json of Llama 3.1"
LLAMA_8B = Model("8B", 32, 4096, 32, 8, 14336, 128256, 1, META)
LLAMA_70B = Model("70B", 80, 8192, 64, 8, 28672, 128256, 4, META)
MODELS = (LLAMA_8B, LLAMA_70B)


def planned_slots(model: Model, live: int) -> int:
    """`max_loras` as `service.capacity.plan` chooses it, for adapters of RANK."""
    wanted = min(max(LEAST_SLOTS, live), MOST_SLOTS)
    fitting = int(GPU_BYTES.value * SLOTS_SHARE / model.adapter_bytes(int(RANK.value)))
    return max(1, min(wanted, fitting))


@dataclass(frozen=True, slots=True)
class Server:
    """One server: an engine with its GPUs."""

    model: Model
    slots: int

    @property
    def cache_tokens(self) -> int:
        """Of the KV cache: what weights and slots leave of the GPUs."""
        model = self.model
        free = (
            GPU_BYTES.value * GPU_SHARE.value
            - model.parameters * BYTES / model.gpus
            - self.slots * model.slot_bytes(int(RANK.value))
            - GPU_RESERVED.value
        )
        return max(0, int(free * model.gpus / model.cache_bytes))

    @property
    def sequences(self) -> int:
        """That fit in the KV cache when each is whole."""
        whole = PROMPT.value + ANSWER.value
        return min(int(MOST_SEQUENCES.value), int(self.cache_tokens / whole))

    @property
    def places(self) -> int:
        """Versions that the host's memory holds; each GPU's process keeps one whole."""
        model = self.model
        room = HOST_BYTES.value * model.gpus * HOST_SHARE.value
        return int(room / (model.adapter_bytes(int(RANK.value)) * model.gpus))

    def step_s(self, sequences: float) -> float:
        """One step: weights and cache are read, each sequence gets a token, prompts are read."""
        model = self.model
        whole = PROMPT.value + ANSWER.value
        read = model.parameters * BYTES + sequences * whole * model.cache_bytes
        tokens = sequences * whole / ANSWER.value
        flops = 2 * model.parameters * tokens * LORA_COST.value
        return (
            read / (GPU_BANDWIDTH.value * BANDWIDTH_SHARE.value)
            + flops / (GPU_FLOPS.value * COMPUTE_SHARE.value)
        ) / model.gpus

    def rate(self, sequences: float) -> float:
        """Requests a second while so many run."""
        return sequences / (ANSWER.value * self.step_s(sequences))

    @property
    def most_running(self) -> float:
        """Sequences at which the time between tokens reaches its bound, or the cache is full."""
        low, high = 0.0, float(self.sequences)
        if self.step_s(high) <= TOKEN_GAP_S.value:
            return high
        for _ in range(60):  # the step grows with the sequences: halve
            middle = (low + high) / 2
            low, high = (middle, high) if self.step_s(middle) < TOKEN_GAP_S.value else (low, middle)
        return low

    @property
    def planned_rate(self) -> float:
        """Requests a second that one server is planned for."""
        return PLANNED.value * self.rate(self.most_running)

    def running(self, rate: float) -> float:
        """Sequences that run at a rate below the highest: rate times the time each takes."""
        fixed, more = self.step_s(0), self.step_s(1) - self.step_s(0)
        return rate * ANSWER.value * fixed / (1 - rate * ANSWER.value * more)

    @property
    def load_s(self) -> float:
        """How long the engine stands still for a version that is loaded."""
        return LOAD_S.value + self.model.adapter_bytes(int(RANK.value)) / LOAD_SPEED.value

    @property
    def copy_s(self) -> float:
        """How long it stands still for a loaded version that gets a slot."""
        return COPY_S.value + self.model.slot_bytes(int(RANK.value)) / COPY_SPEED.value


INPUTS = tuple(value for value in list(globals().values()) if isinstance(value, Input))
