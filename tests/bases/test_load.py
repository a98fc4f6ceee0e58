"""Where a base may come from: the package, a folder, a GGUF file, the hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_hub import SHA, serve
from ggufs import write_gguf

from plr.bases.load import load_base, load_source, runtime_dtype
from plr.bases.resolve import resolve_model
from plr.core.runtime import Runtime
from plr.core.specs import Source
from plr.core.store import Store
from plr.embedded import tiny_path
from plr.errors import ModelError, UsageError
from plr.lab import Lab


def test_a_folder_is_known_by_its_content(tmp_path: Path) -> None:
    shutil.copytree(tiny_path(), tmp_path / "a")
    shutil.copytree(tiny_path(), tmp_path / "b")
    a, b = resolve_model(str(tmp_path / "a")), resolve_model(str(tmp_path / "b"))
    assert a.identity() == b.identity()
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    (tmp_path / "b" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-4}))
    assert resolve_model(str(tmp_path / "b")).identity() != a.identity()


def test_folder_without_config_or_weights(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no config\.json"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"has no \*.safetensors"):
        resolve_model(str(tmp_path))


def test_folder_that_moved_away(tmp_path: Path) -> None:
    shutil.copytree(tiny_path(), tmp_path / "a")
    ref = resolve_model(str(tmp_path / "a"))
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(ModelError, match="is not there any more"):
        load_source(ref, dtype=torch.float32, device="cpu")


def test_broken_weights_are_one_message(tmp_path: Path) -> None:
    shutil.copytree(tiny_path(), tmp_path / "a")
    file = tmp_path / "a" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": "lama"}))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_source(resolve_model(str(tmp_path / "a")), dtype=torch.float32, device="cpu")


def test_load_base_of_16_bits_is_the_source() -> None:
    runtime = Runtime(device="cpu", dtype="float32")
    loaded = load_base(Source(model=resolve_model("embedded:tiny")), Store(Path("nowhere")), runtime)
    assert loaded.model.dtype == runtime_dtype(runtime) == torch.float32
    assert loaded.tokenizer.pad_token_id is not None


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An F32 GGUF of the embedded base, written with the gguf package."""
    folder = load_source(resolve_model("embedded:tiny"), dtype=torch.float32, device="cpu")
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(file, folder.model, folder.tokenizer)
    return file


def test_gguf_file_gives_the_logits_of_the_folder_it_was_made_from(
    tiny_gguf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = load_source(resolve_model("embedded:tiny"), dtype=torch.float32, device="cpu")
    ref = resolve_model(str(tiny_gguf))
    assert (ref.kind, ref.name) == ("gguf", "tiny")
    capfd.readouterr()
    loaded = load_source(ref, dtype=torch.float32, device="cpu")
    assert capfd.readouterr().err == ""
    text = "Tom has 3 apples."
    assert loaded.tokenizer(text)["input_ids"] == folder.tokenizer(text)["input_ids"]
    ids = torch.arange(5, 17)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids).logits, folder.model(ids).logits, rtol=1e-6, atol=1e-6)
    loaded.model.save_pretrained(tmp_path / "saved")  # as a quantized or merged base of it is
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())


@pytest.mark.parametrize("size", [0, 100, 1000, 200_000])
def test_a_gguf_file_that_was_cut_is_refused(tiny_gguf: Path, size: int, tmp_path: Path) -> None:
    file = tmp_path / "cut.gguf"
    file.write_bytes(tiny_gguf.read_bytes()[:size])
    with pytest.raises(ModelError, match="cannot be loaded from"):
        load_source(resolve_model(str(file)), dtype=torch.float32, device="cpu")


def test_a_gguf_file_is_quantized_and_served(tiny_gguf: Path, tmp_path: Path) -> None:
    lab = Lab(tmp_path / "store")
    small = {"task": "tiny_math", "overrides": ["quantize.samples=16", "train.train_limit=32", "train.epochs=1"]}
    adapter = lab.train(str(tiny_gguf), 4, **small)
    for bits, merge in ((16, True), (8, False)):
        served = lab.restore(adapter, bits=bits, merge=merge)
        assert lab.evaluate(served, limit=2, max_new_tokens=4).metrics["n"] == 2


def ask(endpoint: str, cache: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a process whose hub is ``endpoint`` and whose cache is ``cache``, whatever this process was told."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_CACHE": str(cache / "hub")}
    environment |= {"HF_HUB_DISABLE_XET": "1"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_hub_id_is_resolved_to_a_commit_and_fetched_at_that_commit(tmp_path: Path) -> None:
    code = (
        "import torch\n"
        "from plr.bases.resolve import resolve_model\nfrom plr.bases.load import load_source\n"
        "ref = resolve_model('org/tiny')\n"
        "print(ref.kind, ref.name, ref.revision)\n"
        "print(load_source(ref, dtype=torch.float32, device='cpu').model.config.hidden_size)\n"
    )
    with serve("org/tiny", tiny_path()) as (endpoint, requests):
        done = ask(endpoint, tmp_path, code)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.split()[:3] == ["hub", "org/tiny", SHA]
        fetched = [line for line in requests if "/resolve/" in line]
        assert fetched
        assert all(f"/resolve/{SHA}/" in line for line in fetched), fetched
        count = len(requests)
        offline = "from plr.bases.resolve import resolve_model, model_path as p\nr = resolve_model('org/tiny', offline=True)\n"
        again = ask(endpoint, tmp_path, offline + "print(r.revision, (p(r, offline=True) / 'config.json').is_file())")
        assert again.stdout.split() == [SHA, "True"], again.stderr[-2000:]
        assert len(requests) == count, "offline mode must make no network call"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("org/none", "the hub knows no model 'org/none'"),
        ("org/gated", "asks for its licence to be accepted"),
        ("org/tiny@v9", "has no revision 'v9'"),
    ],
)
def test_hub_says_no(tmp_path: Path, model: str, message: str) -> None:
    code = (
        "from plr.bases.resolve import resolve_model\nfrom plr.errors import UsageError\n"
        f"try:\n    resolve_model({model!r})\nexcept UsageError as error:\n    print(error)\n"
    )
    with serve("org/tiny", tiny_path()) as (endpoint, _):
        done = ask(endpoint, tmp_path, code)
    assert message in done.stdout, done.stderr[-2000:]


def test_hub_out_of_reach(tmp_path: Path) -> None:
    code = (
        "from plr.bases.resolve import resolve_model\nfrom plr.errors import UsageError\n"
        "try:\n    resolve_model('org/tiny')\nexcept UsageError as error:\n    print(error)\n"
    )
    done = ask("http://127.0.0.1:9", tmp_path, code)
    assert "the hub cannot be reached for 'org/tiny'" in done.stdout, done.stderr[-2000:]
