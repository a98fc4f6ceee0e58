"""The provenance of an artifact: versions, machine, code and command."""

from __future__ import annotations

from plr.core.provenance import provenance


def test_provenance_names_versions_and_machine() -> None:
    made = provenance()
    assert {"date", "command", "versions", "git", "machine"} == made.keys()
    assert {"python", "torch", "transformers", "peft"} <= made["versions"].keys()
