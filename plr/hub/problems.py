"""What the hub library raises, in words that say what to do."""

from __future__ import annotations

import errno
import os
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


def _explain(error: Exception, kind: str, name: str, revision: str | None, advice: str) -> PlrError | None:
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    not_the_hub = UsageError(
        f"what answers in the place of the hub for {name!r} is not the hub",
        hint=f"a proxy or a login page may stand between: check the network, and HF_ENDPOINT ({constants.ENDPOINT})",
    )
    if isinstance(error, HubError):
        step = _network(error, proxies="" if error.reached else _proxies())
        hint = f"{error.hint}; or {advice}" if error.hint else f"{step} and run it again, or {advice}"
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
        return UsageError(
            f"{name} on the hub has no revision {revision!r}",
            expected="a branch, tag or sha",
            hint=f"see which there are at {page}/tree/main",
        )
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
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return _explain(error.__cause__, kind, name, revision, advice)
    if isinstance(error, errors.FileMetadataError):
        return not_the_hub
    if isinstance(error, errors.HfHubHTTPError):
        if status == 401:
            return UsageError(f"the hub refuses the token that {name!r} was asked with", hint="hf auth login")
        said = error.response.headers.get("X-Error-Message") or _line(error)
        return UsageError(f"the hub refuses {name!r} (status {status}): {said}", hint=advice)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            f"the disk is full: {name!r} from the hub does not fit into {constants.HF_HUB_CACHE}",
            hint="make room there (hf cache ls), or point HF_HOME to a larger disk; what is whole is kept",
        )
    if isinstance(error, OSError) and error.filename is not None:
        return ResourceError(f"{error.filename}: {error.strerror or error}", hint="check HF_HOME and its permissions")
    if type(error).__name__ == "UnsupportedProtocol" and not constants.ENDPOINT.startswith(("http://", "https://")):
        return UsageError(f"HF_ENDPOINT is {constants.ENDPOINT!r}", expected="an address: https://huggingface.co")
    if isinstance(error, UnicodeEncodeError) and _where(error).startswith("httpx"):
        return UsageError(
            "the token of the hub holds a character that is in none", hint="hf auth login, or set HF_TOKEN"
        )
    if isinstance(error, (ValueError, ImportError)) and _where(error).startswith(
        ("httpx2._config", "httpx2._transports")
    ):
        return UsageError(
            f"the proxy that {_proxies() or 'the environment'} names cannot be used: {_line(error)}",
            expected="http://HOST:PORT",
            hint="a SOCKS proxy needs one more package: pip install socksio",
        )
    if isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "huggingface_hub")):
        return UsageError(
            f"the hub cannot be reached for {name!r}: {type(error).__name__}: {_line(error)}",
            hint=f"{_network(error, proxies=_proxies())} or {advice}",
        )
    # No JSON, or JSON that says something else than the library reads in it.
    if isinstance(error, (ValueError, LookupError, TypeError)) and _where(error).startswith(
        ("json", "huggingface_hub")
    ):
        return not_the_hub
    return None


def _network(error: Exception, *, proxies: str) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "if your network signs certificates itself, name the file with its own in SSL_CERT_FILE"
    return f"check the network, and the proxy in {proxies}," if proxies else "check the network"


def _proxies() -> str:
    """The variables that send requests through a proxy. Their values may hold a password."""
    names = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
    return ", ".join(one for name in names for one in (name, name.lower()) if os.environ.get(one))


def _where(error: BaseException) -> str:
    """The module in which ``error`` was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
