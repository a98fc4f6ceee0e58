"""Pushes to a hub on localhost by the real client, and what is not sent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_hub import FakeHub, Fault
from given import save_adapter
from hub_client import point

from plr import Lab
from plr.errors import HubError, UsageError
from plr.hub.upload import look_before_pushing, push


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    lab = Lab(tmp_path / "home", dtype="float32", device="cpu", offline=True)
    adapter = save_adapter(tmp_path / "theirs", named="embedded:tiny")
    return lab.export(str(adapter), tmp_path / "out", "peft", bits=16).folder


def test_a_folder_goes_out_and_comes_back(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeHub({}).running() as hub:
        point(monkeypatch, hub.endpoint, tmp_path / "cache")
        done = push(exported, "org/mine", private=True)
        assert hub.private == {"org/mine": True}
        assert done.url.endswith("/org/mine")
        sent = hub.repos["org/mine"].files
        for name in done.files:
            assert sent[name] == (exported / name).read_bytes()
        assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= {*sent}
        assert "plr-export.json" not in sent, "it holds the paths of this machine"
        again = push(exported, "org/mine")
        assert again.files == done.files
        from plr.bases.given_adapters import adapter_config, adapter_path
        from plr.bases.resolve import hub_reference

        ref = hub_reference("org/mine")
        assert adapter_config(ref)["base_model_name_or_path"] == "embedded:tiny"
        fetched = adapter_path(ref)
        weights = "adapter_model.safetensors"
        assert (fetched / weights).read_bytes() == (exported / weights).read_bytes()


def test_an_artifact_is_exported_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(tmp_path / "home", dtype="float32", device="cpu")
    base = lab.quantize(bits=4, task="tiny_math", samples=4)
    with FakeHub({}).running() as hub:
        point(monkeypatch, hub.endpoint, tmp_path / "cache")
        lab.push(base, "org/base")
        files = hub.repos["org/base"].files
        assert json.loads(files["config.json"])["quantization_config"]["quant_method"] == "gptq"
        assert "manifest.json" not in files


def test_who_may_not_write_is_told(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeHub({}).running() as hub:
        point(monkeypatch, hub.endpoint, tmp_path / "cache")
        hub.writers = {"Bearer somebody"}
        with pytest.raises(HubError, match=r"hf auth login"):
            push(exported, "org/mine")
        assert hub.repos == {}
        hub.writers = None
        hub.faults.append(
            Fault("status", "/commit/", method="POST", status=403, headers={"X-Error-Message": "no room"})
        )
        with pytest.raises(HubError, match=r"no room"):
            push(exported, "org/mine")


def test_nothing_is_sent_offline(exported: Path) -> None:
    with pytest.raises(UsageError, match=r"plr is offline"):
        push(exported, "org/mine", offline=True)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (".env", r"looks like a secret"),
        ("server.pem", r"looks like a secret"),
        ("pytorch_model.bin", r"is pickled"),
        ("part/optimizer.pt", r"is pickled"),
    ],
)
def test_what_must_not_go_out(exported: Path, name: str, words: str) -> None:
    (exported / name).parent.mkdir(exist_ok=True)
    (exported / name).write_text("x")
    with pytest.raises(UsageError, match=words):
        look_before_pushing(exported)


def test_a_link_a_name_and_a_folder_without_weights(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is no name of the Hub"):
        push(exported, "mine")
    (tmp_path / "secret.txt").write_text("x")
    (exported / "notes.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(UsageError, match=r"leads out of the folder"):
        look_before_pushing(exported)
    (exported / "notes.txt").unlink()
    (exported / "adapter_model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"has no weights"):
        look_before_pushing(exported)
    with pytest.raises(UsageError, match=r"is no folder"):
        look_before_pushing(tmp_path / "nowhere")
