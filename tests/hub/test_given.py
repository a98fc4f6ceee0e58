"""Adapters and quantized checkpoints from a hub on localhost: named by commit, fetched once, their bases among them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import SHA, FakeHub, Repo
from given import save_adapter
from hub_client import point

from plr import Lab
from plr.bases.given_adapters import adapter_path, resolve_adapter
from plr.bases.given_bases import resolve_base
from plr.core.specs import GivenAdapter, GivenBase, Restore
from plr.embedded import tiny_path
from plr.errors import HubUnreachable, ModelError, UsageError


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    theirs = content(save_adapter(tmp_path / "theirs", named="org/tiny"))
    pickled = {name: data for name, data in theirs.items() if name != "adapter_model.safetensors"}
    config = json.loads((tiny_path() / "config.json").read_text())
    setting = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    card = b"---\nbase_model: org/tiny\n---\n"
    four = {"config.json": json.dumps(config | {"quantization_config": setting}).encode(), "README.md": card}
    repos = {
        "org/tiny": Repo(content(tiny_path()), "models"),
        "org/lora": Repo(theirs | {"optimizer.pt": b"pickle", "checkpoint-1/adapter_config.json": b"{}"}, "models"),
        "org/old": Repo(pickled | {"adapter_model.bin": b"pickle"}, "models"),
        "org/tiny-bnb-4bit": Repo(four | {"model.safetensors": b"-"}, "models"),
    }
    with FakeHub(repos).running() as hub:
        point(monkeypatch, hub.endpoint, tmp_path)
        yield hub


def test_an_adapter_is_scored_on_the_base_that_it_names(hub: FakeHub, home: Path) -> None:
    lab = Lab(home, dtype="float32", device="cpu")
    step = lab.result("org/lora", "tiny_math", limit=2, max_new_tokens=2)
    assert isinstance(step.target, Restore)
    assert isinstance(step.target.adapter, GivenAdapter)
    assert step.target.adapter.folder.revision == SHA
    assert not any("adapter_model" in one.path for one in hub.downloads())  # a plan reads the configuration alone
    assert lab.make(step).metrics["largest_logit_change"] > 0
    assert not any("optimizer.pt" in one.path for one in hub.downloads())
    count = len(hub.asked)
    again = Lab(home, dtype="float32", device="cpu", offline=True)
    assert again.evaluate("org/lora", "tiny_math", limit=2, max_new_tokens=2).fingerprint == step.fingerprint
    assert len(hub.asked) == count


def test_pickled_weights_are_not_fetched(hub: FakeHub) -> None:
    adapter = resolve_adapter("org/old")
    with pytest.raises(ModelError, match=r"adapter_model\.bin: pickled weights are not read"):
        adapter_path(adapter.folder)
    assert not any("adapter_model.bin" in one.path for one in hub.downloads())


def test_a_quantized_repository_and_the_source_on_its_card(hub: FakeHub) -> None:
    base = resolve_base("org/tiny-bnb-4bit")
    assert isinstance(base, GivenBase)
    assert base.bits == 4
    assert base.origin is not None
    assert base.origin.name == "org/tiny"
    assert not any(one.path.endswith(".safetensors") for one in hub.downloads())
    hub.repos["org/lora"].files = dict(hub.repos["org/lora"].files) | {
        "adapter_config.json": json.dumps(
            json.loads(hub.repos["org/lora"].files["adapter_config.json"])
            | {"base_model_name_or_path": "org/tiny-bnb-4bit"}
        ).encode()
    }
    adapter = resolve_adapter("org/lora")
    assert adapter.trained_bits == 4
    assert adapter.named.source.model.name == "org/tiny"


def test_a_model_is_no_adapter_and_offline_is_one_message(hub: FakeHub, home: Path) -> None:
    with pytest.raises(ModelError, match=r"org/tiny has no adapter_config\.json"):
        resolve_adapter("org/tiny")
    with pytest.raises(HubUnreachable, match="not in the local hub cache"):
        resolve_adapter("org/lora", offline=True)
    with pytest.raises(UsageError, match="without a task"):
        Lab(home).result("org/lora")
