"""Models from a hub on localhost: their files are compared too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import SHA, FakeHub, Fault, Repo
from hub_client import point

from plr.bases.load import load_source
from plr.bases.resolve import model_path, resolve_model
from plr.embedded import tiny_path
from plr.errors import IntegrityError, ModelError, UsageError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    files = {file.name: file.read_bytes() for file in tiny_path().iterdir() if file.is_file()}
    with FakeHub({"org/tiny": Repo(files | {"pytorch_model.bin": b"pickle"}, "models")}).running() as hub:
        point(monkeypatch, hub.endpoint, tmp_path)
        yield hub


def test_weights_survive_a_cut_and_are_fetched_once(hub: FakeHub) -> None:
    hub.faults.append(Fault("cut", times=2))
    ref = resolve_model("org/tiny")
    folder = model_path(ref)
    assert (folder / "model.safetensors").read_bytes() == (tiny_path() / "model.safetensors").read_bytes()
    assert not any("pytorch_model.bin" in one.path for one in hub.downloads())
    count = len(hub.asked)
    assert resolve_model("org/tiny", offline=True) == ref
    assert model_path(ref) == model_path(ref, offline=True) == folder
    assert len(hub.asked) == count


def test_weights_that_are_not_those_of_the_commit_are_refused(hub: FakeHub) -> None:
    hub.faults.append(Fault("wrong"))
    with pytest.raises(IntegrityError, match=r"does not send model.safetensors of org/tiny as its listing promises"):
        model_path(resolve_model("org/tiny"))


def test_a_gate_and_a_hub_that_goes_away_are_one_message(hub: FakeHub) -> None:
    ref = resolve_model("org/tiny")
    hub.repos["org/tiny"].gate = 403
    with pytest.raises(ModelError, match="org/tiny on the hub asks for its licence to be accepted"):
        model_path(ref)
    hub.faults.append(Fault("status", "/resolve/"))
    with pytest.raises(ModelError, match="'org/tiny' cannot be had from the hub: it answers 500") as e:
        model_path(ref)
    assert f"hf download org/tiny --revision {SHA}" in str(e.value.hint)
    with pytest.raises(ModelError, match="plr is offline, and org/tiny at 0123456789ab from the hub"):
        model_path(ref, offline=True)


def test_a_branch_may_have_slashes_and_a_commit_that_is_there_is_not_asked_for(hub: FakeHub) -> None:
    hub.repos["org/tiny"].revisions = {"main": "9" * 40, "refs/pr/1": SHA}
    ref = resolve_model("org/tiny@refs/pr/1")
    assert (ref.name, ref.revision) == ("org/tiny", SHA)
    assert resolve_model(f"org/tiny@{SHA}") == ref
    model_path(ref)
    assert resolve_model("org/tiny@refs/pr/1", offline=True) == ref
    count = len(hub.asked)
    assert resolve_model(f"org/tiny@{SHA}") == ref
    assert len(hub.asked) == count
    with pytest.raises(UsageError, match="org/tiny@v2 is not in the local hub cache") as e:
        resolve_model("org/tiny@v2", offline=True)
    assert e.value.hint == "fetch it once with: hf download org/tiny --revision v2"


def test_only_what_is_read_is_fetched(hub: FakeHub) -> None:
    """Not the weights a second time, in another layout, nor checkpoints and exports in folders."""
    repo = hub.repos["org/tiny"]
    more = ("consolidated.safetensors", "checkpoint-1/model.safetensors", "onnx/config.json", "model.onnx")
    template = "additional_chat_templates/tool_use.jinja"
    repo.files = dict(repo.files) | dict.fromkeys((*more, template), b"{}")
    folder = model_path(resolve_model("org/tiny"))
    fetched = {one.path.split(f"{SHA}/")[1] for one in hub.downloads() if "/resolve/" in one.path}
    assert fetched == {file.name for file in tiny_path().iterdir() if file.name != "README.md"} | {template}
    assert not any((folder / path).exists() for path in more)


def test_weights_of_another_name_are_read_and_pickled_ones_are_not(hub: FakeHub) -> None:
    repo = hub.repos["org/tiny"]
    weights = repo.files["model.safetensors"]
    rest = {name: body for name, body in repo.files.items() if not name.endswith("safetensors")}
    repo.files = rest | {"gptq_model-4bit.safetensors": weights}
    assert (model_path(resolve_model("org/tiny")) / "gptq_model-4bit.safetensors").read_bytes() == weights
    hub.repos["org/old"] = Repo(rest, "models")
    with pytest.raises(ModelError, match=r"org/old has no \*\.safetensors") as e:
        load_source(resolve_model("org/old"), dtype="auto", device="cpu")
    assert "org/old@refs/pr/1" in str(e.value.hint)


def test_a_cache_that_an_older_program_filled_is_used_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no listing, so nothing can be compared; what lacks shows when the weights are read."""
    point(monkeypatch, "http://127.0.0.1:9", tmp_path)
    folder = tmp_path / "hub" / "models--org--tiny" / "snapshots" / SHA
    folder.parent.mkdir(parents=True)
    os.symlink(tiny_path(), folder)
    ref = resolve_model("org/tiny", offline=True)
    assert model_path(ref, offline=True) == folder
    with pytest.raises(UsageError, match=r"org/tiny@v2 is not in the local hub cache and plr is offline"):
        resolve_model("org/tiny@v2", offline=True)
