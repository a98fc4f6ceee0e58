"""Cells that name the engine vllm: refused when planned, or scored as the other engine scores them. On the stand-in of
`vllm_stand_in.py`, which proves nothing about vLLM itself."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from recommit import recommit
from safetensors.torch import load_file, save_file

from plr import Lab
from plr.errors import IntegrityError, MissingDependencyError, ModelError, UsageError
from plr.study import Study
from plr.study.file import study_config

from .vllm_stand_in import LLM

HAS_VLLM = importlib.util.find_spec("vllm") is not None
SHORT = ["train.epochs=1", "train.train_limit=32", "train.validation_limit=4"]


def lab(folder: Path, dtype: str = "float32") -> Lab:
    return Lab(folder, offline=True, dtype=dtype)


def rows(result: Any) -> list[dict[str, Any]]:
    text = next(result.path.glob("samples_*.jsonl")).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_a_base_scores_the_same_in_both_engines(stand_in: type[LLM], tmp_path: Path) -> None:
    here = lab(tmp_path)
    ours, theirs = (
        here.evaluate(here.base(bits=16), task="tiny_math", limit=5, max_new_tokens=24, num_fewshot=2, engine=engine)
        for engine in ("hf", "vllm")
    )
    assert ours.path != theirs.path
    assert [row["resps"] for row in rows(ours)] == [row["resps"] for row in rows(theirs)]
    for name, metric in ours.metrics["metrics"].items():
        assert theirs.metrics["metrics"][name]["value"] == pytest.approx(metric["value"], rel=1e-4)
    asked = theirs.metrics["protocol"]
    assert asked["engine"] == {"name": "vllm", "dtype": "float32", "version": "0.33.0"}
    assert {k: v for k, v in asked.items() if k != "engine"} == {
        k: v for k, v in ours.metrics["protocol"].items() if k != "engine"
    }


def test_an_adapter_is_a_request_beside_its_base(stand_in: type[LLM], tmp_path: Path) -> None:
    here = lab(tmp_path, "bfloat16")
    adapter = here.train(bits=16, task="tiny_math", overrides=SHORT)
    result = here.evaluate(adapter, limit=3, max_new_tokens=8, engine="vllm")
    (started,) = stand_in.started
    assert started["enable_lora"]
    assert started["lora_target_modules"]
    assert result.metrics["n"] == 3
    assert result.metrics["metrics"]["answer_loss"]["value"] > 0
    assert result.metrics["largest_logprob_change"] > 0
    assert "largest_logit_change" not in result.metrics  # vLLM shows no logits


def test_an_adapter_that_changes_nothing_is_an_error(stand_in: type[LLM], tmp_path: Path) -> None:
    here = lab(tmp_path, "bfloat16")
    adapter = here.train(bits=16, task="tiny_math", overrides=SHORT)
    file = adapter.path / "adapter_model.safetensors"
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    adapter = recommit(adapter)
    for engine, what in (("hf", "no logit of"), ("vllm", "no log-probability of .* in vLLM")):
        with pytest.raises(IntegrityError, match=f"changes {what}"):
            here.evaluate(adapter, limit=3, max_new_tokens=8, engine=engine)


def test_the_tokenizer_is_the_checkpoints_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its source may be a GGUF file, which has none that vLLM reads."""

    def asked(folder: Path, *, tokenizer_folder: Path, **_: Any) -> None:
        raise ModelError(f"{tokenizer_folder.name} for {folder.name}")

    monkeypatch.setattr("plr.serving.vllm.VllmEngine", asked)
    here = lab(tmp_path)
    base = here.quantize(bits=4, task="tiny_math", overrides=["quantize.method=rtn", "quantize.group_size=32"])
    assert (base.path / "tokenizer.json").is_file()
    with pytest.raises(ModelError, match=f"^{base.path.name} for {base.path.name}$"):
        here.evaluate(base, task="tiny_math", limit=1, engine="vllm")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"train_bits": [3]}, "not at 3"),
        ({"quantize": {"sym": False}, "train_bits": [4]}, "sym: false"),
        ({"train_bits": [16], "adapters": ["ia3"]}, "ia3 is none"),
    ],
)
def test_what_cannot_be_served_is_said_when_the_study_is_planned(settings: dict[str, Any], says: str) -> None:
    study = {"name": "s", "preset": "tiny", "restore_bits": [16], "evaluate": {"engine": "vllm"}, **settings}
    with pytest.raises(UsageError, match=says):
        Study(study_config(study))


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is here")
def test_without_vllm_the_message_says_what_to_do(tmp_path: Path) -> None:
    here = lab(tmp_path)
    with pytest.raises(MissingDependencyError, match="pip install"):
        here.evaluate(here.base(bits=16), task="tiny_math", limit=2, engine="vllm")
