"""Asking the hub which commit a name stands for, with answers a user can act on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from plr.errors import UsageError

__all__ = ["cached_sha", "commit_sha", "is_offline"]


def is_offline(asked: bool) -> bool:
    """Whether no network call may be made: by ``--offline``, or by the hub library's own variable."""
    return asked or os.environ.get("HF_HUB_OFFLINE", "") in ("1", "ON", "YES", "TRUE", "true")


def cached_sha(kind: Literal["model", "dataset"], name: str, revision: str | None = None) -> str | None:
    """The commit of ``name`` in the local hub cache: what ``revision`` (or main) points at there, or the only one there is."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"
    ref = folder / "refs" / (revision or "main")
    sha = ref.read_text().strip() if ref.is_file() else revision
    if sha is not None:
        return sha if (folder / "snapshots" / sha).is_dir() else None
    snapshots = [path.name for path in (folder / "snapshots").glob("*")]
    return snapshots[0] if len(snapshots) == 1 else None


def commit_sha(kind: Literal["model", "dataset"], name: str, revision: str | None = None, *, advice: str) -> str:
    """The commit that ``name`` (at ``revision``, or at the head of its main branch) stands for.

    Raises:
        UsageError: the hub does not know the repository or the revision, asks for a licence, or cannot be reached; the message
            ends with ``advice``.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
    try:
        sha = ask(name, revision=revision).sha
    except GatedRepoError as error:
        raise UsageError(
            f"{name} on the hub asks for its licence to be accepted", hint="accept it on its page, then: hf auth login"
        ) from error
    except RevisionNotFoundError as error:
        raise UsageError(f"{name} on the hub has no revision {revision!r}", expected="a branch, tag or sha") from error
    except RepositoryNotFoundError as error:
        raise UsageError(
            f"the hub knows no {kind} {name!r} (or it is private: hf auth login)",
            expected="the exact ORG/NAME of the hub",
            hint=advice,
        ) from error
    except Exception as error:
        # The hub library passes on the errors of whichever HTTP client it was built with.
        if not isinstance(error, OSError) and not type(error).__module__.startswith(("httpx", "huggingface_hub")):
            raise
        raise UsageError(
            f"the hub cannot be reached for {name!r}: {type(error).__name__}", hint=f"check the network, or {advice}"
        ) from error
    if sha is None:
        raise UsageError(f"the hub gave no commit sha for {name}", hint=advice)
    return sha
