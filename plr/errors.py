"""The one error tree of plr.

```
PlrError (exit 1)              something failed; the message says what
├── UsageError (2)             the request cannot be carried out as given
│   ├── ConfigError            a YAML file or an option
│   ├── UnknownNameError       a name no registry knows (did-you-mean)
│   ├── DataError              a data file, data set or row
│   ├── HubError               the hub does not give what it is asked for
│   │   ├── HubUnreachable     it cannot be asked now: no network, no usable answer, or offline
│   │   │   └── HubDataUnreachable   the same of a data set: a DataError too
│   │   ├── HubNotFound        it knows no such repository, revision or file
│   │   └── HubRefused         a licence, a token or the hub itself forbids it
│   └── LeakageError           calibration or training rows stand in validation or test
├── ModelError (1)             a base that cannot be resolved, loaded or quantized
├── TrainingError (1)          training diverged or cannot start
├── MissingDependencyError (1) an extra is not installed
├── CellsFailedError (3)       a study finished, some of its cells did not
├── ResourceError (4)          out of memory or disk
│   └── DiskFullError          nothing more can be written: every step would fail
└── IntegrityError (5)         an artifact is corrupted
    └── ProvenanceError        an adapter and a base do not belong together
```

Callers decide by class, never by the words of a message. Every message says what was given; `expected` says what would have been
right and `hint` what to do next. The command line prints these three and no traceback.
"""

from __future__ import annotations

__all__ = [
    "CellsFailedError",
    "ConfigError",
    "DataError",
    "DiskFullError",
    "HubDataUnreachable",
    "HubError",
    "HubNotFound",
    "HubRefused",
    "HubUnreachable",
    "IntegrityError",
    "LeakageError",
    "MissingDependencyError",
    "ModelError",
    "PlrError",
    "ProvenanceError",
    "ResourceError",
    "TrainingError",
    "UnknownNameError",
    "UsageError",
]


class PlrError(Exception):
    """A situation of the user's that plr can explain.

    >>> print(PlrError("bits is 5", expected="one of 16, 8, 4, 3, 2", hint="choose --bits 4"))
    bits is 5
      expected: one of 16, 8, 4, 3, 2
      next: choose --bits 4
    """

    exit_code = 1

    def __init__(self, message: str, *, expected: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.expected = expected
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.message]
        if self.expected:
            lines.append(f"  expected: {self.expected}")
        if self.hint:
            lines.append(f"  next: {self.hint}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.expected, self.hint))


def _rebuild(cls: type[PlrError], message: str, expected: str | None, hint: str | None) -> PlrError:
    return cls(message, expected=expected, hint=hint)


class UsageError(PlrError):
    exit_code = 2


class ConfigError(UsageError):
    pass


class UnknownNameError(UsageError):
    pass


class DataError(UsageError):
    pass


class HubError(UsageError):
    pass


class HubUnreachable(HubError):
    pass


class HubDataUnreachable(DataError, HubUnreachable):
    pass


class HubNotFound(HubError):
    pass


class HubRefused(HubError):
    pass


class LeakageError(UsageError):
    pass


class ModelError(PlrError):
    pass


class TrainingError(PlrError):
    pass


class MissingDependencyError(PlrError):
    pass


class CellsFailedError(PlrError):
    exit_code = 3


class ResourceError(PlrError):
    exit_code = 4


class DiskFullError(ResourceError):
    pass


class IntegrityError(PlrError):
    exit_code = 5


class ProvenanceError(IntegrityError):
    pass
