"""The files around the code: licence, citation, CI and templates say what the project says."""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DIGEST = "a0b9af0d1614b5e8f3004aaf2092bf005b64398ef067ca868d81a8beeb6cb0b5"
"""sha256 of the licence's words, of two copies that other projects ship."""


def test_licence_is_apache_2_word_for_word() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    assert PROJECT["license-files"] == ["LICENSE"]
    words = " ".join((ROOT / "LICENSE").read_text(encoding="utf-8").replace("http://", "https://").split())
    assert words.startswith("Apache License Version 2.0, January 2004 https://www.apache.org/licenses/")
    assert hashlib.sha256(words.encode()).hexdigest() == DIGEST


def test_citation_names_this_version_and_licence() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert citation["authors"][0]["name"] == PROJECT["authors"][0]["name"]
    assert {"message", "title", "type"} <= citation.keys()
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= reference.keys()


def test_ci_runs_what_contributors_run() -> None:
    run = ROOT / ".ci" / "run"
    assert os.access(run, os.X_OK)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    called = re.findall(r"^(?:exec )?make ([a-z-]+)$", run.read_text(encoding="utf-8"), re.MULTILINE)
    assert called == ["lint", "test"]
    assert set(called) <= targets
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert [step["run"] for step in workflow["jobs"]["run"]["steps"] if "run" in step] == [".ci/run"]
    assert workflow["permissions"] == {"contents": "read"}


def test_issue_forms_have_what_the_forge_asks_for() -> None:
    forms = [p for p in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if p.name != "config.yml"]
    assert forms
    for form in forms:
        value = yaml.safe_load(form.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= value.keys(), form.name
        ids = [field["id"] for field in value["body"]]
        assert len(set(ids)) == len(ids), form.name
        for field in value["body"]:
            assert field["type"] == "textarea", form.name
            assert field["attributes"]["label"], form.name
