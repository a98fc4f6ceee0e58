"""A scored cell as files in lm-eval's layout: `results_*.json` and `samples_*.jsonl`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plr.core.fingerprint import JsonObject, text_sha256
from plr.core.provenance import provenance
from plr.core.text import without_nan
from plr.evaluation.cell import OpenCell
from plr.evaluation.fewshot import DELIMITER
from plr.evaluation.records import Sample, Scored
from plr.quantizers import is_quantized_layer

__all__ = ["ModelFacts", "model_facts", "write"]


@dataclass(frozen=True)
class ModelFacts:
    """The facts that lm-eval records of a model and its tokenizer; None where the model is not in this process."""

    num_parameters: int | None
    device: str | None
    max_length: int | None
    eot_token_id: int | None
    special_tokens: Mapping[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    """Token and id of `pad`, `eos` and `bos`."""


def model_facts(model: Any, tokenizer: Any) -> ModelFacts:
    """Record size, device and special tokens; `model` is None where it is not in this process."""
    return ModelFacts(
        num_parameters=None if model is None else _num_parameters(model),
        device=None if model is None else str(model.device),
        max_length=getattr(getattr(model, "config", None), "max_position_embeddings", None),
        eot_token_id=tokenizer.eos_token_id,
        special_tokens={
            name: (getattr(tokenizer, f"{name}_token"), str(getattr(tokenizer, f"{name}_token_id")))
            for name in ("pad", "eos", "bos")
        },
    )


def write(cell: OpenCell, scored: Scored, model: ModelFacts, folder: Path, *, seconds: float) -> None:
    """Write the settings and means of a run and its samples to `folder`; `seconds` is the time of the evaluation."""
    now = datetime.now(UTC)
    stamp = now.strftime("%Y-%m-%dT%H-%M-%S.%f")
    document = _document(cell, scored, model, now, seconds)
    (folder / f"results_{stamp}.json").write_text(
        json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8"
    )
    with (folder / f"samples_{cell.task.name}_{stamp}.jsonl").open("wb") as stream:
        for sample in scored.samples:
            stream.write(_line(sample))


def _document(cell: OpenCell, scored: Scored, model: ModelFacts, now: datetime, seconds: float) -> dict[str, object]:
    step, task, samples, protocol = cell.step, cell.task, scored.samples, scored.protocol
    made_by: JsonObject = provenance()
    git: dict[str, str] = made_by["git"] or {}
    revision = step.base.model.revision
    return {
        "results": {task.name: {"name": task.name, "alias": task.name, "sample_len": len(samples), **_means(scored)}},
        "group_subtasks": {task.name: []},
        "configs": {
            task.name: {
                "task": task.name,
                "test_split": step.split,
                **scored.settings,
                "metric_list": [
                    {
                        "metric": name,
                        "aggregation": "mean" if not samples or name in samples[0].metrics else name,
                        "higher_is_better": task.metric(name).higher_is_better,
                    }
                    for name in scored.metrics
                ],
                "repeats": 1,
                "description": "",
                "target_delimiter": "",  # our targets begin with theirs
                "fewshot_delimiter": DELIMITER,
                "fewshot_config": {"sampler": protocol["fewshot"]["sampler"], "split": protocol["fewshot"]["split"]},
                "num_fewshot": step.num_fewshot,
                "should_decontaminate": False,
                "metadata": {"version": task.version, "primary": task.primary},
            }
        },
        "versions": {task.name: task.version},
        "n-shot": {task.name: step.num_fewshot},
        "higher_is_better": {
            task.name: {name.partition(",")[0]: task.metric(name).higher_is_better for name in scored.metrics}
        },
        "n-samples": {task.name: {"original": cell.split_rows, "effective": len(samples)}},
        "config": {
            "model": "plr",
            "model_args": step.target.label,
            "model_num_parameters": model.num_parameters,
            "model_dtype": scored.dtype,
            "model_revision": revision,
            "model_sha": revision,
            "batch_size": None,
            "device": model.device,
            "limit": step.limit,
            "random_seed": step.limit_seed,
            "torch_seed": None,
            "fewshot_seed": step.fewshot_seed,
            "step": step.model_dump(mode="json"),
        },
        "git_hash": git.get("commit"),
        "date": now.timestamp(),
        "task_hashes": {task.name: text_sha256("".join("".join(sample.hashes) for sample in samples))},
        "model_source": "plr",
        "model_name": step.base.model.name,
        "model_name_sanitized": re.sub(r"[\"<>:/|\\?*\[\]]+", "__", step.base.model.name),
        "system_instruction": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": False,
        "chat_template": None,
        "chat_template_sha": None,
        "transformers_version": made_by["versions"].get("transformers"),
        **{f"tokenizer_{name}_token": list(token) for name, token in model.special_tokens.items()},
        "eot_token_id": model.eot_token_id,
        "max_length": model.max_length,
        "total_evaluation_time_seconds": str(seconds),
        "versions_of_packages": made_by["versions"],
        "protocol": protocol,
    }


def _means(scored: Scored) -> dict[str, float | str | None]:
    """List values and standard errors under lm-eval's names: `metric,filter` and `metric_stderr,filter`."""
    means: dict[str, float | str | None] = {}
    for name, metric in scored.metrics.items():
        measure, _, filter_name = name.partition(",")
        means[f"{measure},{filter_name or 'none'}"] = metric["value"]
        means[f"{measure}_stderr,{filter_name or 'none'}"] = "N/A" if metric["stderr"] is None else metric["stderr"]
    return means


def _num_parameters(model: Any) -> int:
    """Count the parameters of the network and of the adapter on it; weights held as k-bit codes count one by one."""
    coded = [module for module in model.modules() if is_quantized_layer(module)]
    codes = {id(p) for module in coded for name, p in module.named_parameters(recurse=False) if name == "weight"}
    return sum(p.numel() for p in model.parameters() if id(p) not in codes) + sum(
        module.in_features * module.out_features for module in coded
    )


def _line(sample: Sample) -> bytes:
    value = without_nan(sample.as_json())
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, in a field that no model reads: it stays an escape
        return json.dumps(value, allow_nan=False).encode() + b"\n"
