"""Send a folder to the Hub: one commit, after it was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from plr.errors import HubError, HubNotFound, UsageError
from plr.hub.client import patient
from plr.hub.names import is_offline
from plr.hub.problems import explained

__all__ = ["Pushed", "look_before_pushing", "push"]

WEIGHTS = ("*.safetensors", "*.gguf")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
SECRET = (".env*", "*.pem", "*.key", "id_rsa*", "id_ed25519*", ".netrc", "credentials*", "*token*.txt", "hf_token*")
LEFT_OUT = ("plr-export.json", "manifest.json", ".git/*", ".cache/*", "__pycache__/*")
"""Records of this machine: they hold its paths, and nobody needs them."""


@dataclass(frozen=True)
class Pushed:
    """A commit on the Hub."""

    url: str
    commit: str
    files: tuple[str, ...]


def look_before_pushing(folder: Path) -> tuple[str, ...]:
    """List the files of `folder` that go to the Hub.

    Raises:
        UsageError: no weights, pickled weights, links that lead out of it, or a file that looks like a secret.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder", expected="a folder with weights, e.g. one that plr export wrote")
    names: list[str] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if any(fnmatch(name, pattern) for pattern in LEFT_OUT) or path.is_dir():
            continue
        if any(fnmatch(path.name, pattern) for pattern in SECRET):
            raise UsageError(f"{path} looks like a secret", hint="take it out of the folder")
        if any(fnmatch(path.name, pattern) for pattern in PICKLED):
            raise UsageError(
                f"{path} is pickled: whoever loads it runs its code",
                expected="safetensors",
                hint="convert it, or take it out",
            )
        if path.is_symlink() and folder.resolve() not in path.resolve().parents:
            raise UsageError(f"{path} is a link that leads out of the folder", hint="put the file itself in its place")
        names.append(name)
    if not any(fnmatch(name, pattern) for name in names for pattern in WEIGHTS):
        raise UsageError(
            f"{folder} has no weights", expected="*.safetensors or *.gguf", hint="write some with plr export"
        )
    return tuple(names)


def push(
    folder: Path,
    name: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str = "Made with plr",
    offline: bool = False,
) -> Pushed:
    """Send the files of `folder` to the repository ORG/NAME as one commit; it is made if it is not there.

    Raises:
        UsageError: see `look_before_pushing`, or a name that is none; or plr is offline.
        HubRefused: no token, or one that may not write.
        HubUnreachable: the Hub cannot be asked.
        HubError: the Hub answers with something else.
    """
    from huggingface_hub import HfApi, errors

    files = look_before_pushing(folder)
    if name.count("/") != 1 or not all(name.split("/")):
        raise UsageError(f"{name!r} is no name of the Hub", expected="ORG/NAME")
    if is_offline(offline):
        raise UsageError("plr is offline, and a push goes to the Hub", hint="leave --offline out, unset HF_HUB_OFFLINE")
    advice = "hf auth login, with a token that may write"
    with patient(), explained("model", name, revision, advice=advice):
        api = HfApi()
        try:
            api.create_repo(name, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(name, branch=revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=name,
                folder_path=folder,
                commit_message=message,
                revision=revision,
                allow_patterns=list(files),
            )
        except errors.RepositoryNotFoundError as error:
            raise HubNotFound(
                f"{name} cannot be written: there is no such organisation, or you may not write there", hint=advice
            ) from error
        except ValueError as error:
            raise HubError(f"the hub does not take {name}: {error}", hint=advice) from error
    return Pushed(str(commit.repo_url), str(commit.oid), files)
