"""The errors that this package raises.

    AdapterError
    ├── InvalidInput           a value that the caller gave
    │   └── InvalidName
    ├── NotFound
    │   ├── AdapterNotFound
    │   ├── VersionNotFound
    │   ├── AliasNotFound
    │   ├── BaseNotFound
    │   └── Retired            taken out of use
    ├── InvalidManifest
    ├── DigestMismatch         content that is not what its digest says
    ├── UnsafeFile             pickle, links, paths that leave their folder
    ├── IncompatibleAdapter    whole and well-formed, but not for this base or engine
    ├── ProofFailed            the engine does not reproduce the probe
    ├── GateFailed             worse on held-out examples than its recipe allows
    ├── Quarantined            failed its proof earlier
    ├── Removed                its files were collected as garbage
    ├── VersionInUse           an alias or a canary points at it
    └── StoreFailed            the disk or the database

They know nothing of HTTP; `service.errors` maps them.
"""

from typing import ClassVar


class AdapterError(Exception):
    """An error with a message for the user and a hint that says what to do."""

    code: ClassVar[str] = "adapter_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "", param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.param = param

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InvalidInput(AdapterError):
    code = "invalid_value"


class InvalidName(InvalidInput):
    code = "invalid_name"


class NotFound(AdapterError):
    code = "not_found"


class AdapterNotFound(NotFound):
    code = "adapter_not_found"


class VersionNotFound(NotFound):
    code = "version_not_found"


class AliasNotFound(NotFound):
    code = "alias_not_found"


class BaseNotFound(NotFound):
    code = "base_not_found"


class Retired(NotFound):
    code = "version_retired"


class InvalidManifest(AdapterError):
    code = "invalid_manifest"


class DigestMismatch(AdapterError):
    code = "digest_mismatch"


class UnsafeFile(AdapterError):
    code = "unsafe_file"


class IncompatibleAdapter(AdapterError):
    code = "incompatible_adapter"


class ProofFailed(AdapterError):
    code = "proof_failed"


class GateFailed(AdapterError):
    code = "gate_failed"


class Quarantined(AdapterError):
    code = "quarantined"


class Removed(AdapterError):
    code = "version_removed"


class VersionInUse(AdapterError):
    code = "model_in_use"


class StoreFailed(AdapterError):
    code = "store_failed"
    retryable = True
