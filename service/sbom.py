"""`modiste sbom`: a bill of materials of what is installed, in CycloneDX's form.

It has modiste and every package that it needs, as this environment has them, and says who needs
whom. Tools beside them are left out, and so is what a lock leaves out on purpose, such as
torchvision.
"""

from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component

ROOT = "modiste"
LONGEST_LICENCE = 100
"""Characters. Some packages have its whole text there, which is no name."""

Needs = dict[str, set[str]]


def sbom(
    output: Annotated[
        Path | None, typer.Option(help="File to write; default: print it.", dir_okay=False)
    ] = None,
) -> None:
    """Write a CycloneDX bill of materials (JSON) of modiste and what it needs, as installed."""
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion

    text = make_outputter(bill(), OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1)
    if output is None:
        print(text)
    else:
        output.write_text(text + "\n")


def installed(root: str = ROOT) -> tuple[dict[str, Distribution], Needs]:
    """A package and all that it needs here, by canonical names; and what each of them needs."""
    found: dict[str, Distribution] = {}
    needs: Needs = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(canonicalize_name(root), frozenset[str]())]
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            found.setdefault(name, distribution(name))
        except PackageNotFoundError:
            continue
        for needed in _needed(found[name], extras):
            other = canonicalize_name(needed.name)
            needs.setdefault(name, set()).add(other)
            waiting.append((other, frozenset(needed.extras)))
    return found, {name: others & found.keys() - {name} for name, others in needs.items()}


def _needed(package: Distribution, extras: frozenset[str]) -> Iterator[Requirement]:
    for line in package.requires or ():
        needed = Requirement(line)
        chosen = [{"extra": extra} for extra in ("", *extras)]
        if needed.marker is None or any(needed.marker.evaluate(one) for one in chosen):
            yield needed


def bill(root: str = ROOT) -> "Bom":
    """The bill of materials of a package."""
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import ComponentType

    found, needs = installed(root)
    parts = {name: _component(name, package) for name, package in found.items()}
    top = parts[canonicalize_name(root)]
    top.type = ComponentType.APPLICATION
    bom = Bom(components=[part for part in parts.values() if part is not top])
    bom.metadata.component = top
    for name, part in parts.items():
        bom.register_dependency(part, [parts[other] for other in needs.get(name, ())])
    return bom


def _component(name: str, package: Distribution) -> "Component":
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model.component import Component
    from packageurl import PackageURL

    address = PackageURL("pypi", None, name, package.version)
    licence = _licence(package)
    return Component(
        name=name,
        version=package.version,
        purl=address,
        bom_ref=address.to_string(),
        description=_said(package, "Summary"),
        licenses=[LicenseFactory().make_from_string(licence)] if licence else None,
    )


def _licence(package: Distribution) -> str:
    """What a package says of its licence; empty where it says nothing short."""
    for said in (_said(package, "License-Expression"), _said(package, "License")):
        if said and len(said) <= LONGEST_LICENCE and "\n" not in said and said != "UNKNOWN":
            return said
    prefix = "License :: "
    classes = [c for c in package.metadata.get_all("Classifier") or () if c.startswith(prefix)]
    return classes[0].rpartition(" :: ")[2] if classes else ""


def _said(package: Distribution, name: str) -> str | None:
    """A field of the package's metadata; the first where it has several."""
    found = package.metadata.get_all(name)
    return str(found[0]) if found else None
