"""How much memory each pool needs on each of its devices: formulas, and what they say of a configuration. docs/planner.md derives them.

Everything is in bytes. `T` tokens of a packed row, `L` layers, `h` hidden, `q` width of the queries, `f` of the feed-forward, `V`
vocabulary, `P` parameters. What is left out: a process's own few hundred megabytes, and what an allocator keeps; on a
GPU, `USABLE` leaves room for both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TextIO

from rich.table import Table

from safeladder.launch.architectures import Architecture, architecture
from safeladder.launch.config import Config
from safeladder.launch.recipe_files import GENERATOR, LEARNER, REFERENCE
from safeladder.launch.sections import Pool
from safeladder.launch.terminal import console

BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
HEAD_ELEMENTS: Final = 2**25  # as in policies/scoring.py: logits that exist at once
PROMPT_TOKENS: Final = 1024  # as in policies/engines/llama.py: tokens of one prefill
USABLE: Final = 0.92  # of a GPU; not measured
COUNTS: Final = (1, 2, 4, 8, 16, 32, 64)
VERIFIERS: Final = "safeladder.actors.verifier:VerifierPool"


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by what they are for."""

    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Training:
    """What decides a learner's memory. tokens: of a packed row. prompt, branches: of it, shared by so many completions. packs: rows of one
    update, as far as it matters whether there is more than one. rank: of adapters, 0 for all weights. weights: their type, float32
    where all are trained; dtype: of the computation."""

    tokens: int
    dtype: str = "float32"
    weights: str = "float32"
    checkpointing: bool = False
    head_tokens: int | None = None
    prompt: int = 0
    branches: int = 1
    packs: int = 2
    rank: int = 0


def learner(arch: Architecture, given: Training, devices: int = 1) -> Memory:
    """The peak of an optimizer step on one device.

    What is trained, its gradients and Adam's two moments are float32 and sharded; adapters leave the base as it was loaded.
    The backward pass of the last row has all gradients of the rows
    before it beside its activations; with one row in all, gradients grow as activations go and only the larger counts. The fused
    Adam needs nothing beside them.
    """
    trained = adapters(arch, given.rank) if given.rank else arch.parameters
    narrow = given.dtype != "float32"
    gradients = 4.0 * trained / devices
    working = stored(arch, given) + _head(arch, given.tokens, given.head_tokens, narrow)
    if not given.rank:
        working += 4.0 * arch.embedding  # the head's gradient, before it is added to the one of earlier rows
    if given.packs < 2:
        working = max(0.0, working - gradients)
    width = BYTES[given.weights]
    gathered = float((2 * arch.layer + 2 * arch.embedding) * width) if devices > 1 else 0.0
    return Memory(
        {
            "weights": (width * arch.parameters + (4.0 * trained if given.rank else 0.0)) / devices,
            "gradients": gradients,
            "optimizer": 8.0 * trained / devices,
            # autocast keeps a narrow copy of each trained weight until the forward pass is over, sharded or not
            "narrow copies": 2.0 * trained if narrow else 0.0,
            "activations": working,
            "gathered": gathered,
        }
    )


def stored(arch: Architecture, given: Training) -> float:
    """Bytes that a row's forward pass keeps for its backward pass. Counted from the tensors that autograd saves, see docs/planner.md.

    float32: 4 T (6 h + a q + 4 f) a layer, with a = 5, and where b completions share a prompt of P tokens 6 + 2 b P / T. Under bfloat16
    autocast: T (26 h + 2 a q + 8 f) a layer, because norms and residual stay float32; 18 h over weights that are bfloat16 themselves. With
    checkpointing a layer keeps its input alone, T h of the residual's type, and one layer at a time has the rest.
    """
    tokens, h = given.tokens, arch.hidden_size
    a = 5.0 if given.branches < 2 else 6.0 + 2.0 * given.branches * given.prompt / tokens
    q, f = arch.query, arch.intermediate_size
    residual = BYTES[given.weights]
    if given.dtype == "float32":
        layer = 4.0 * tokens * (6 * h + a * q + 4 * f)
    else:
        layer = tokens * ((26 if residual == 4 else 18) * h + 2 * a * q + 8 * f)
    ends = 4.0 * 4 * tokens * h
    if given.checkpointing:
        return float(residual * tokens * h * arch.num_hidden_layers) + layer + ends
    return layer * arch.num_hidden_layers + ends


def adapters(arch: Architecture, rank: int) -> int:
    """Parameters of adapters on every linear layer but the head."""
    h, q, k, f = arch.hidden_size, arch.query, arch.key, arch.intermediate_size
    return arch.num_hidden_layers * rank * (2 * (h + q) + 2 * (h + k) + 3 * (h + f))


def _head(arch: Architecture, tokens: int, head_tokens: int | None, narrow: bool = False) -> float:
    """A chunk of logits, which becomes its softmax in place: in float32, and in the narrow type before that."""
    chunk = min(tokens, head_tokens or max(1, HEAD_ELEMENTS // arch.vocab_size))
    return (6.0 if narrow else 4.0) * chunk * arch.vocab_size


def generator(
    arch: Architecture,
    *,
    engine: str,
    dtype: str,
    tokens: int,
    sequences: int,
    prompt: int | None = None,
    devices: int = 1,
    cpu: bool = True,
) -> Memory:
    """An engine's peak: weights, the key-value cache, one prefill and the logits of a step.

    tokens: of the cache, `max_tokens`; sequences: at once, `max_sequences`; prompt: tokens of each prompt, where known. The embedded
    engine holds the weights twice on a CPU in float32 (products.py), and a cache that grows for a moment twice. Engines of a
    server reserve theirs whole.
    """
    width = BYTES[dtype]
    embedded = engine == "transformers"
    copies = (
        (arch.parameters - arch.vision - (0 if arch.tied else arch.embedding)) if embedded and cpu and width == 4 else 0
    )
    cache = float(width * arch.cache_numbers * tokens)
    rows = min(PROMPT_TOKENS, tokens)
    prefill = width * rows * (3 * arch.hidden_size + 4 * (arch.query + 2 * arch.key) + 4 * arch.intermediate_size)
    logits = 4.0 * 4 * sequences * arch.vocab_size
    return Memory(
        {
            "weights": width * arch.parameters / devices,
            "packed copies": float(width * copies),
            "key-value cache": cache * (growth(tokens // sequences, prompt) if embedded else 1.0) / devices,
            "working": prefill / devices + logits,
        }
    )


def growth(longest: int, prompt: int | None) -> float:
    """The largest size of the embedded engine's cache while it grows, old and new beside each other, in units of the `longest` columns.

    It begins with 64 columns beyond the prompt and grows by half of what it has, or to 64 beyond what is needed (llama.py). Without a
    prompt the worst case: all but full, then half as long again.
    """
    if prompt is None:
        return 2.5
    columns, peak = prompt + 64, prompt + 64
    while columns < longest:
        grown = max(columns + 65, columns + columns // 2)
        columns, peak = grown, columns + grown
    return peak / longest


def reference(arch: Architecture, dtype: str, tokens: int) -> Memory:
    """The frozen policy and one forward pass without gradient: a layer's tensors at a time, and a chunk of the head."""
    width = BYTES[dtype]
    row = width * tokens * (4 * arch.hidden_size + 4 * arch.query + 3 * arch.intermediate_size)
    return Memory({"weights": float(width * arch.parameters), "activations": row + _head(arch, tokens, None)})


# ------------------------------------------------------------------------------------------------- of a configuration


@dataclass(frozen=True)
class Planned:
    """A model of a pool. `on`: bytes on each device, as a function of their number; `devices`: how many it has, by the configuration;
    first: the number of the first; None where it runs elsewhere. fits: the smallest number of devices of which it fits each."""

    pool: str
    model: str
    on: Callable[[int], Memory]
    devices: int
    first: int | None
    replicas: int = 1

    def fits(self, capacity: float) -> int | None:
        return next((count for count in COUNTS if self.on(count).total <= USABLE * capacity), None)


@dataclass(frozen=True)
class Plan:
    models: Sequence[Planned]
    unknown: Sequence[str] = field(default_factory=list)  # pool: model that the planner knows nothing of


def plan(config: Config) -> Plan:
    """Every model that a pool on a GPU runs, or that a remote judge stands for."""
    found: list[Planned] = []
    unknown: list[str] = []
    for name, pool in config.pools.items():
        for model, make in _models(config, pool):
            arch = architecture(model)
            if arch is None:
                unknown.append(f"{name}: {model}")
                continue
            planned = make(name, arch)
            if planned.first is not None or (planned.pool, planned.model) not in {(p.pool, p.model) for p in found}:
                found.append(planned)  # of a remote model, that several judges may ask, once
    return Plan(found, unknown)


Make = Callable[[str, Architecture], Planned]


def _models(config: Config, pool: Pool) -> Iterator[tuple[str, Make]]:
    policy, on_gpu = config.policy.model, pool.device.startswith("cuda")
    first = int(pool.device.partition(":")[2] or 0) if on_gpu else None
    if on_gpu and pool.actor == LEARNER:
        ranks, given = int(pool.options.get("ranks", 1)), training(config)
        yield policy, lambda name, arch: Planned(name, policy, lambda n: learner(arch, given, n), ranks, first)
    elif on_gpu and pool.actor == GENERATOR:
        yield policy, _generating(policy, config.policy.dtype, pool, pool.options, first)
    elif on_gpu and pool.actor == REFERENCE:
        model = str(pool.options.get("model") or policy)
        tokens = int(pool.options.get("token_budget", 1024))
        one = lambda name, arch: Planned(  # noqa: E731
            name, model, lambda n: reference(arch, config.policy.dtype, tokens), 1, first, pool.replicas
        )
        yield model, one
    elif pool.actor == VERIFIERS:
        for options in (pool.options.get("verifiers") or {}).values():
            yield from _judge(options or {}, pool)


def _judge(options: Mapping[str, Any], pool: Pool) -> Iterator[tuple[str, Make]]:
    """A verifier's model: here, by its engine, or behind an address, where its own machine has to bear it."""
    remote, model = options.get("remote"), options.get("model")
    if isinstance(remote, Mapping):
        served = str(remote.get("model"))
        yield served, _generating(served, "bfloat16", pool, {"engine": "vllm"}, None)
    elif model is not None:
        section = dict(options.get("engine") or {})
        device = str(section.get("device", "cpu"))
        if device.startswith("cuda"):
            first = int(device.partition(":")[2] or 0)
            yield str(model), _generating(str(model), str(section.get("dtype", "float32")), pool, section, first)


def _generating(model: str, dtype: str, pool: Pool, options: Mapping[str, Any], first: int | None) -> Make:
    arguments = (options.get("engine_options") or {}).get("arguments") or {}
    devices, dtype = int(arguments.get("tensor_parallel_size", 1)), str(arguments.get("dtype", dtype))
    tokens, sequences = int(options.get("max_tokens", 16_384)), int(options.get("max_sequences", 16))
    engine = str(options.get("engine", "transformers"))

    def on(arch: Architecture) -> Callable[[int], Memory]:
        return lambda n: generator(
            arch, engine=engine, dtype=dtype, tokens=tokens, sequences=sequences, devices=n, cpu=False
        )

    replicas = pool.replicas if first is not None else 1
    return lambda name, arch: Planned(name, model, on(arch), devices, first, replicas)


def training(config: Config) -> Training:
    """The learner's section as the planner reads it. Half of a row that holds several completions is taken for their prompt."""
    section, longest = config.learner, config.sampling.max_new_tokens
    tokens = max(section.token_budget, longest)
    branches = max(1, min(config.sampling.samples, tokens // 2 // longest))
    return Training(
        tokens=tokens,
        dtype=section.compute_dtype,
        weights=config.policy.dtype,
        checkpointing=section.activation_checkpointing,
        head_tokens=section.head_tokens,
        prompt=tokens // 2 if branches > 1 else 0,
        branches=branches,
        rank=config.policy.lora.rank if config.policy.lora else 0,
    )


def crowded(planned: Plan, capacity: float) -> Iterator[tuple[str, str]]:
    """(pool, what is wrong) for each device that has more to bear than it can."""
    on_device: dict[int, list[tuple[str, float]]] = defaultdict(list)
    for each in planned.models:
        if each.first is not None:
            size = each.on(each.devices).total * each.replicas
            for device in range(each.first, each.first + each.devices):
                on_device[device].append((each.pool, size))
    said: set[tuple[str, ...]] = set()
    for device, loads in sorted(on_device.items()):
        total, pools = sum(size for _, size in loads), tuple(dict.fromkeys(pool for pool, _ in loads))
        if total > USABLE * capacity and pools not in said:
            said.add(pools)
            parts = ", ".join(f"{pool} {size / 1e9:.0f} GB" for pool, size in loads)
            yield (
                pools[-1],
                f"cuda:{device} would have to hold {total / 1e9:.0f} GB ({parts}); "
                f"{USABLE * capacity / 1e9:.0f} of {capacity / 1e9:.0f} GB are usable",
            )


def device_bytes() -> float:
    """Memory of a GPU of this machine; of one with 80 GB where there is none."""
    import torch

    return float(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else 80e9


def show(planned: Plan, capacity: float, stream: TextIO) -> None:
    """A row a model: what one device holds, and the smallest number of devices that is enough."""
    out = console(stream)
    table = Table(title=f"memory on devices of {capacity / 1e9:.0f} GB", title_justify="left", box=None)
    for heading in ("pool", "model", "where", "GB a device", "of which", "fits on"):
        table.add_column(heading, justify="right" if heading == "GB a device" else "left")
    for each in planned.models:
        memory = each.on(each.devices)
        where = "elsewhere" if each.first is None else f"cuda:{each.first}"
        where += f" .. {each.first + each.devices - 1}" if each.first is not None and each.devices > 1 else ""
        parts = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in memory.parts.items() if size >= 5e7)
        least = each.fits(capacity)
        enough = "no number" if least is None else f"{least} device{'s' if least > 1 else ''}"
        table.add_row(each.pool, each.model, where, f"{memory.total / 1e9:.1f}", parts, enough)
    out.print(table)
    for name in planned.unknown:
        out.print(f"not planned, its config.json is not here: {name}", markup=False)
