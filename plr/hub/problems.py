"""Turn what the hub library raises into errors of plr that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from plr.core.files import disk_full
from plr.errors import DiskFullError, HubError, HubNotFound, HubRefused, HubUnreachable, PlrError, ResourceError
from plr.hub.client import proxy_variables
from plr.hub.patience import RequestFailed

__all__ = ["explained"]


@contextmanager
def explained(
    kind: Literal["model", "dataset"],
    name: str,
    revision: str | None = None,
    *,
    advice: str,
    parsing: bool = False,
) -> Iterator[None]:
    """Turn what goes wrong inside with `name` on the hub into an error of plr; what is no matter of the hub passes.

    With `parsing` nothing but a call of the hub library stands inside: a ValueError, LookupError or TypeError is then of an answer
    that is not the hub's.

    Raises:
        HubNotFound: the hub does not know the repository, revision or file.
        HubRefused: a licence is not accepted, or a token refused.
        HubUnreachable: it cannot be asked.
        HubError: the environment names no usable hub, proxy or token.
        DiskFullError: the disk of the cache is full.
        ResourceError: the cache cannot be written.
    """
    try:
        yield
    except PlrError:
        raise
    except Exception as error:
        explanation = _explain(error, kind, name, revision, advice, parsing)
        if explanation is None:
            raise
        raise explanation from error


def _explain(
    error: BaseException, kind: str, name: str, revision: str | None, advice: str, parsing: bool
) -> PlrError | None:
    import httpx2
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
    if isinstance(error, RequestFailed):
        return _failed(error, name, advice)
    if isinstance(error, httpx2.UnsupportedProtocol) and not constants.ENDPOINT.startswith(("http://", "https://")):
        return HubError(f"HF_ENDPOINT is {constants.ENDPOINT!r}", expected="an address: https://huggingface.co")
    if isinstance(error, errors.GatedRepoError):
        anonymous = error.response.status_code == 401
        login = "hf auth login, " if anonymous else ""
        return HubRefused(
            f"{name} on the hub asks for its licence to be accepted"
            + (", and you are not logged in" if anonymous else ""),
            hint=f"accept it at {page}, then: {login}and run this again" if login else f"accept it at {page}",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return HubNotFound(
            f"{name} on the hub has no revision {revision!r}",
            expected="a branch, tag or sha",
            hint=f"see which there are at {page}/tree/main",
        )
    if isinstance(error, errors.DisabledRepoError):
        return HubRefused(f"the hub has disabled {kind} {name!r}", hint=f"see {page}; {advice}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubNotFound(
            f"the hub knows no {kind} {name!r} (or it is private: hf auth login)",
            expected="the exact ORG/NAME of the hub",
            hint=advice,
        )
    if isinstance(error, errors.HFValidationError):
        return HubNotFound(f"{name!r} cannot be the name of a {kind} on the hub", expected="ORG/NAME", hint=advice)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubUnreachable(f"plr is offline, and {name!r} would have to be asked for on the hub", hint=advice)
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return HubNotFound(f"{name} on the hub has lost a file that it lists: {_line(error)}", hint=advice)
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        return _explain(error.__cause__, kind, name, revision, advice, parsing)
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return HubRefused(f"the hub refuses the token that {name!r} was asked with", hint="hf auth login")
        message = error.response.headers.get("X-Error-Message") or _line(error)
        return HubRefused(f"the hub refuses {name!r} (status {status}): {message}", hint=advice)
    # No JSON, or JSON that says something else than the library reads in it, or a file without the headers of the hub.
    if isinstance(error, errors.FileMetadataError) or (
        parsing and isinstance(error, (ValueError, LookupError, TypeError))
    ):
        return HubUnreachable(
            f"what answers in the place of the hub for {name!r} is not the hub",
            hint=f"a proxy or a login page may stand between: check the network, and HF_ENDPOINT ({constants.ENDPOINT})",
        )
    if disk_full(error):
        return DiskFullError(
            f"the disk is full: {name!r} from the hub does not fit into {constants.HF_HUB_CACHE}",
            hint="make room there (hf cache ls), or point HF_HOME to a larger disk; what is whole is kept",
        )
    if isinstance(error, OSError) and error.filename is not None:
        return ResourceError(f"{error.filename}: {error.strerror or error}", hint="check HF_HOME and its permissions")
    if isinstance(error, (OSError, httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, errors.EntryNotFoundError)):
        return HubUnreachable(
            f"the hub cannot be reached for {name!r}: {type(error).__name__}: {_line(error)}",
            hint=f"{_check_network(proxy_variables())} or {advice}",
        )
    return None


def _failed(error: RequestFailed, name: str, advice: str) -> HubUnreachable:
    what = f"{name!r} cannot be had from the hub" if error.reached else f"the hub cannot be reached for {name!r}"
    if error.hint:
        return HubUnreachable(f"{what}: {error}", hint=f"{error.hint}; or {advice}")
    step = _check_network("" if error.reached else proxy_variables())
    if error.certificate:
        step = "if your network signs certificates itself, name the file with its own in SSL_CERT_FILE"
    return HubUnreachable(f"{what}: {error}", hint=f"{step} and run it again, or {advice}")


def _check_network(proxies: str) -> str:
    return f"check the network, and the proxy in {proxies}," if proxies else "check the network"


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
