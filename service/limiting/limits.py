"""How much a key or a project may ask: its limits, and those of the settings beneath them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from sqlalchemy import Select, or_, select

from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Limits:
    """None: as the settings say; 0: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    """Requests that are being answered at once."""

    @classmethod
    def of(cls, row: Any) -> Self:
        """Those of a row of keys or projects."""
        return cls(row.requests_per_minute, row.tokens_per_minute, row.concurrent)

    @staticmethod
    def set_in(table: Any) -> Select[Any]:
        """The rows of keys or projects that have some of their own."""
        own = [getattr(table, name).is_not(None) for name in LIMITS]
        return select(table).where(or_(*own))

    def columns(self) -> dict[str, int | None]:
        return asdict(self)

    def above(self, defaults: "Limits") -> "Limits":
        """The limits that are in effect: here None is none."""
        pairs = ((getattr(self, name), getattr(defaults, name)) for name in LIMITS)
        return Limits(*((default if own is None else own) or None for own, default in pairs))

    def __bool__(self) -> bool:
        return any(getattr(self, name) is not None for name in LIMITS)


NO_LIMITS = Limits()
LIMITS: Sequence[str] = [field.name for field in fields(Limits)]


@dataclass(frozen=True, slots=True)
class Defaults:
    """For keys and projects that have none of their own."""

    key: Limits = NO_LIMITS
    project: Limits = NO_LIMITS

    def __bool__(self) -> bool:
        return bool(self.key or self.project)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(
            *(
                Limits(*(getattr(settings, f"{whose}_{name}") for name in LIMITS))
                for whose in ("key", "project")
            )
        )
