"""The Hugging Face hub: names -> commits -> files whose bytes are those of the commit. Requests end in bounded time."""

from __future__ import annotations

from plr.hub.files import Fetched, fetch, is_listed, listing
from plr.hub.names import cached_sha, commit_sha, is_offline, is_sha, repo_folder
from plr.hub.patience import Patience
from plr.hub.upload import Pushed, push

__all__ = [
    "Fetched",
    "Patience",
    "Pushed",
    "cached_sha",
    "commit_sha",
    "fetch",
    "is_listed",
    "is_offline",
    "is_sha",
    "listing",
    "push",
    "repo_folder",
]
