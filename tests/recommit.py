"""An artifact whose files a test has changed, committed as they are now: what it tests lies behind the check of the files."""

from __future__ import annotations

from plr.core.artifact import Artifact
from plr.core.fingerprint import file_sha256
from plr.core.manifest import MANIFEST, read_manifest, write_manifest

__all__ = ["recommit"]


def recommit(artifact: Artifact) -> Artifact:
    """Write the manifest of an artifact anew, with the sizes and hashes that its files have now, and read it again."""
    folder = artifact.path
    _, content = read_manifest(folder / MANIFEST)
    files = {name: folder / name for name in content["files"]}
    content["files"] = {
        name: {"sha256": file_sha256(file), "size": file.stat().st_size} for name, file in files.items()
    }
    own = {key: value for key, value in content.items() if key not in ("format", "sha256")}
    write_manifest(folder / MANIFEST, own)
    return Artifact(folder)
