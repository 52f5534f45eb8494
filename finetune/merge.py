"""`python -m finetune.merge NAME@A NAME@B … --into NEW`: make one version of several.

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.errors import IncompatibleAdapter, InvalidInput
from adapters.manifest import Draft
from adapters.names import check_name
from adapters.probe import Probe, tolerance
from adapters.registry import Registry, Version
from finetune.command import Progress, run_command
from finetune.methods import DENSITY, METHODS, Mix, mix_of

if TYPE_CHECKING:
    from adapters.bases import Base
    from finetune.combine import Combined
    from finetune.lora import Lora

_SAID = ("languages", "labels", "prompt", "project")
"""Parts of a manifest that parents must share, or the caller choose."""

_EPILOG = """
methods:
  cat               (default) exactly the weighted sum of what the parents change; ranks add up
  svd               that sum, cut to --rank (default: the parents' largest); exact when --rank
                    is the sum of the parents' ranks
  linear            A and B are summed apart, so parts of one parent are multiplied with parts of
                    another: a rough approximation of the sum, at the parents' rank
  ties              keeps the largest --density of each parent, then what agrees in sign
  dare_linear       keeps a random --density of each parent, scaled up, then sums (--seed)
  dare_ties         keeps a random --density, scaled up, then what agrees in sign (--seed)
  magnitude_prune   keeps the largest --density of each parent, then sums
  …_svd             ties, dare_linear, dare_ties and magnitude_prune work on A and B apart; with
                    _svd behind, on the changes themselves, cut to --rank

Weights are by default equal: 1 for ties and dare_ties, which average themselves, else one
divided by the number of parents. Negative ones subtract; write --weights=1,-0.5 with "=".
All but cat and …svd need parents of one rank. The same parents, options and packages give the
same digest on the same machine.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(arguments)

    def work(progress: Progress) -> tuple[str, dict[str, Any]]:
        version = merge(options, Registry.open(options.home), progress)
        about = {"version": version.reference, "digest": version.digest}
        return f"{version.reference} {version.digest}", about

    return run_command("merge", work, as_json=options.json)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="modiste adapters merge",
        description="Make one version of several adapters of one base and task.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument("parents", nargs="+", metavar="NAME@N", help="two versions or more")
    made.add_argument("--into", required=True, metavar="NEW", help="the adapter's name")
    made.add_argument("--method", choices=METHODS, default=METHODS[0], metavar="METHOD")
    made.add_argument("--weights", metavar="W,W,…", help="one number for each parent")
    made.add_argument("--density", type=float, help=f"share that is kept (default: {DENSITY})")
    made.add_argument("--seed", type=int, help="of what dare drops (default: 0)")
    made.add_argument("--rank", type=int, help="of what svd makes")
    made.add_argument(
        "--prompt-from", metavar="NAME@N",
        help="the parent whose prompt, languages, labels and project are used where they differ",
    )  # fmt: skip
    made.add_argument("--home", type=Path, help="the home folder (default: MODISTE_HOME)")
    made.add_argument("--json", action="store_true", help="print JSON on stdout")
    return made


def merge(options: argparse.Namespace, registry: Registry, progress: Progress) -> Version:
    """Combine the parents that the options name, probe the result, and publish it.

    Raises:
        InvalidInput: an option is wrong, or the parents differ and nothing says whose part counts.
        IncompatibleAdapter: parents of several bases, or a merge without effect.
        NotFound, Quarantined, Removed, DigestMismatch: a parent is not one to use.
        StoreFailed: nothing was published.
    """
    name = check_name(options.into)
    progress("checking the parents")
    parents = [registry.verified(reference) for reference in options.parents]
    check_parents(parents)
    leader = leader_of(registry, parents, options.prompt_from)
    mix = mix_of(
        options.method, [parent.manifest.rank for parent in parents], options.weights,
        density=options.density, seed=options.seed, rank=options.rank,
    )  # fmt: skip

    from finetune.combine import combine  # torch takes seconds to import
    from finetune.lora import Lora, base_of

    base = base_of(registry, parents[0])
    with registry.store.scratch() as parcel:
        progress(f"merging {len(parents)} adapters by {mix.method}")
        combined = combine(base, [Lora.of(parent) for parent in parents], mix, parcel)
        _tell(combined, parents, progress)
        progress(f"loading it on {base.name}")
        probe = _probe(base, combined.lora, parents)
        check_effect(probe, progress)
        progress("publishing")
        with registry.store.writing():
            probe.save(parcel / "probe.json")
        return registry.publish(parcel, _draft(name, leader, parents, (mix, combined, probe)))


def check_parents(parents: Sequence[Version]) -> None:
    """Parents are two or more, different, for one task and one base.

    Raises:
        InvalidInput, IncompatibleAdapter: name the two that differ, and in what.
    """
    if len({parent.digest for parent in parents}) < max(len(parents), 2):
        raise InvalidInput(
            "a merge needs two versions or more, each once",
            hint="to give one more say, use --weights",
            param="parents",
        )
    first = parents[0]
    for other in parents[1:]:
        both = f"{first.reference} and {other.reference}"
        if first.manifest.task != other.manifest.task:
            raise InvalidInput(
                f"{both} are for {first.manifest.task} and {other.manifest.task}",
                hint="merge versions of one task",
                param="parents",
            )
        if parts := first.manifest.base.differences(other.manifest.base):
            raise IncompatibleAdapter(
                f"{both} were made for bases that differ in {', '.join(parts)}",
                hint="merge versions of one base",
                param="parents",
            )


def leader_of(registry: Registry, parents: Sequence[Version], chosen: str | None) -> Version:
    """The parent whose prompt, languages, labels and project the merged version gets.

    Raises:
        InvalidInput: the parents differ and none is chosen, or the chosen one is no parent.
    """
    if chosen is not None:
        digest = registry.find(chosen).digest
        for parent in parents:
            if parent.digest == digest:
                return parent
        raise InvalidInput(
            f"{chosen} is not one of the parents",
            hint=f"give one of {', '.join(p.reference for p in parents)}",
            param="prompt_from",
        )
    first = parents[0]
    for other in parents[1:]:
        differing = [
            part for part in _SAID
            if getattr(first.manifest, part) != getattr(other.manifest, part)
        ]  # fmt: skip
        if differing:
            raise InvalidInput(
                f"{first.reference} and {other.reference} differ in {', '.join(differing)}",
                hint=f"say whose to use, for example --prompt-from {first.reference}",
                param="prompt_from",
            )
    return first


def _tell(combined: "Combined", parents: Sequence[Version], progress: Progress) -> None:
    """What the caller would not guess of the merged matrices."""
    if combined.off_sum is not None and combined.off_sum > 0.005:
        progress(f"it is {combined.off_sum:.0%} off the weighted sum of what the parents change")
    if combined.lora.rank > max(parent.manifest.rank for parent in parents):
        progress(f"its rank is {combined.lora.rank}: max_lora_rank of servers must be that much")


def _probe(base: "Base", lora: "Lora", parents: Sequence[Version]) -> Probe:
    """Load base and merged adapter, and record a probe on the prompts of the parents' probes."""
    import torch

    from finetune.base_model import load_model
    from finetune.lora import attach
    from finetune.plan import choose_dtype, cores
    from finetune.publish import record_probe

    probes = [Probe.load(parent.folder / "probe.json") for parent in parents]
    prompts = list(dict.fromkeys(tuple(i.prompt_ids) for probe in probes for i in probe.items))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = choose_dtype("auto", device)
    torch.set_num_threads(cores())
    adapted = attach(load_model(base.path, dtype, device), [lora])
    return record_probe(adapted, [list(ids) for ids in prompts], dtype)


def check_effect(probe: Probe, progress: Progress) -> None:
    """Refuse a merged version that answers like its base, or not in numbers; warn of a weak one.

    Raises:
        IncompatibleAdapter: with the remedy.
    """
    effect = probe.effect()
    if not 0.0 < effect < float("inf"):
        problem = (
            "has no effect" if effect == 0.0 else "gives log-probabilities that are no numbers"
        )
        raise IncompatibleAdapter(
            f"the merged adapter {problem}", hint="give other --weights", param="weights"
        )
    if effect < (limit := tolerance(probe.dtype)):
        progress(
            f"warning: it changes the probe by {effect:.2g} nats, and servers tell {limit:g} apart"
        )


def _draft(
    name: str, leader: Version, parents: Sequence[Version], made: "tuple[Mix, Combined, Probe]"
) -> Draft:
    from finetune.publish import package_versions

    mix, combined, probe = made
    said = leader.manifest
    about = {
        "method": mix.method, "density": mix.density, "seed": mix.seed, "rank": combined.lora.rank,
        "off_sum": None if combined.off_sum is None else float(f"{combined.off_sum:.2g}"),
        "prompt_from": leader.reference,
        "parents": [
            {"version": parent.reference, "digest": parent.digest, "weight": weight}
            for parent, weight in zip(parents, mix.weights, strict=True)
        ],
    }  # fmt: skip
    return Draft(
        name=name, project=said.project, task=said.task, languages=said.languages,
        labels=said.labels, base=said.base, peft=combined.config, prompt=said.prompt,
        probe=probe.digest(), training={"merge": about, "packages": package_versions()},
        parents=[f"{parent.name}@{parent.digest}" for parent in parents],
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
