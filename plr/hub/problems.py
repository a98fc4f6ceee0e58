"""What the hub library raises, in words that say what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from plr.errors import PlrError, ResourceError, UsageError
from plr.hub.patience import HubError

__all__ = ["explained"]


@contextmanager
def explained(
    kind: Literal["model", "dataset"], name: str, revision: str | None = None, *, advice: str
) -> Iterator[None]:
    """Turn what goes wrong inside with ``name`` on the hub into an error of plr; what is no matter of the hub passes.

    Raises:
        UsageError: the hub does not know the repository, revision or file, asks for a licence, or cannot be reached.
        ResourceError: the disk is full.
    """
    try:
        yield
    except PlrError:
        raise
    except Exception as error:
        found = _explain(error, kind, name, revision, advice)
        if found is None:
            raise
        raise found from error


def _explain(error: BaseException, kind: str, name: str, revision: str | None, advice: str) -> PlrError | None:
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, HubError):
        hint = f"{error.hint}; or {advice}" if error.hint else f"check the network and run it again, or {advice}"
        what = f"{name!r} cannot be had from the hub" if error.reached else f"the hub cannot be reached for {name!r}"
        return UsageError(f"{what}: {error}", hint=hint)
    if isinstance(error, errors.GatedRepoError):
        login = "hf auth login, " if status == 401 else ""
        return UsageError(
            f"{name} on the hub asks for its licence to be accepted"
            + (", and you are not logged in" if status == 401 else ""),
            hint=f"accept it at {page}, then: {login}and run this again" if login else f"accept it at {page}",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UsageError(f"{name} on the hub has no revision {revision!r}", expected="a branch, tag or sha")
    if isinstance(error, errors.DisabledRepoError):
        return UsageError(f"the hub has disabled {kind} {name!r}", hint=f"see {page}; {advice}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UsageError(
            f"the hub knows no {kind} {name!r} (or it is private: hf auth login)",
            expected="the exact ORG/NAME of the hub",
            hint=advice,
        )
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{name!r} cannot be the name of a {kind} on the hub", expected="ORG/NAME", hint=advice)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return UsageError(f"plr is offline, and {name!r} would have to be asked for on the hub", hint=advice)
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return UsageError(f"{name} on the hub has lost a file that it lists: {_line(error)}", hint=advice)
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        return _explain(error.__cause__, kind, name, revision, advice)
    if isinstance(error, errors.FileMetadataError):
        return UsageError(
            f"what answers in the place of the hub for {name!r} is not the hub",
            hint=f"a proxy or a login page may stand between: check the network, and HF_ENDPOINT ({constants.ENDPOINT})",
        )
    if isinstance(error, errors.HfHubHTTPError):
        if status == 401:
            return UsageError(f"the hub refuses the token that {name!r} was asked with", hint="hf auth login")
        return UsageError(f"the hub refuses {name!r} (status {status}): {_line(error)}", hint=advice)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            f"the disk is full: {name!r} from the hub does not fit into {constants.HF_HUB_CACHE}",
            hint="make room there (hf cache ls), or point HF_HOME to a larger disk; what is whole is kept",
        )
    if isinstance(error, OSError) and error.filename is not None:
        return ResourceError(f"{error.filename}: {error.strerror or error}", hint="check HF_HOME and its permissions")
    if isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "huggingface_hub")):
        return UsageError(
            f"the hub cannot be reached for {name!r}: {type(error).__name__}: {_line(error)}",
            hint=f"check the network, or {advice}",
        )
    if isinstance(error, ValueError) and "json" in type(error).__module__:
        return UsageError(
            f"what answers in the place of the hub for {name!r} is not the hub: no JSON",
            hint=f"a proxy or a login page may stand between: check the network, and HF_ENDPOINT ({constants.ENDPOINT})",
        )
    return None


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
