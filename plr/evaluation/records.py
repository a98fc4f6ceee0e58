"""Results as files in lm-eval's layout: one record a row, their summary, the settings of the run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plr.core.fingerprint import text_sha256
from plr.core.provenance import provenance
from plr.core.specs import Evaluate
from plr.evaluation.fewshot import DELIMITER
from plr.quantizers import is_quantized_layer
from plr.tasks import Example, Task

__all__ = ["ANSWER_LOSS", "record", "summary", "write"]

ANSWER_LOSS = "answer_loss"


def record(
    row: Example,
    *,
    arguments: list[Any],
    response: Any,
    answer: Any,
    scores: Mapping[str, float | None],
    loss: float,
    **more: Any,
) -> dict[str, Any]:
    """The record of one row; ``scores`` by metric, None where the row has none; the first of
    ``arguments`` is the prompt as the model read it; ``more`` is added as it is."""
    doc = dict(row.row)
    return {
        "doc_id": int(row.id.rsplit("-", 1)[1]),
        "doc": doc,
        "target": row.target,
        "arguments": {"gen_args_0": {f"arg_{i}": argument for i, argument in enumerate(arguments)}},
        "resps": [[response]],
        "filtered_resps": [answer],
        "filter": "none",
        "metrics": [*scores, ANSWER_LOSS],
        "doc_hash": text_sha256(json.dumps(doc, indent=2, default=str, ensure_ascii=False)),  # as lm-eval hashes it
        "prompt_hash": text_sha256(str(arguments[0])),
        "target_hash": text_sha256(row.target),
        ANSWER_LOSS: loss,
        **more,
        **scores,
    }


def summary(samples: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean, standard error of the mean and n over the scored samples of each metric."""
    found: dict[str, dict[str, Any]] = {}
    for name in samples[0]["metrics"] if samples else []:
        values = [float(s[name]) for s in samples if s[name] is not None]
        n = len(values)
        mean = sum(values) / n if n else None
        stderr = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n) if mean is not None and n > 1 else None
        found[name] = {"value": mean, "stderr": stderr, "n": n, "unscored": len(samples) - n}
    return found


def write(
    step: Evaluate,
    task: Task,
    samples: list[dict[str, Any]],
    metrics: Mapping[str, Mapping[str, Any]],
    folder: Path,
    *,
    total: int,
    settings: Mapping[str, Any],
    protocol: Mapping[str, Any],
    model: Any = None,
    tokenizer: Any = None,
    seconds: float | None = None,
) -> None:
    """``results_*.json`` and ``samples_*.jsonl`` in ``folder``; ``total`` is the rows of the split, ``settings`` what lm-eval
    keeps of a task's configuration beyond its name, ``protocol`` what was asked and how (:mod:`plr.evaluation.protocol`),
    ``model`` None where it is not in this process, ``seconds`` the time of the evaluation."""
    now = datetime.now(UTC)
    stamp = now.strftime("%Y-%m-%dT%H-%M-%S.%f")
    results: dict[str, Any] = {"name": task.name, "alias": task.name, "sample_len": len(samples)}
    for name, metric in metrics.items():
        measure, _, filter_name = name.partition(",")
        results[f"{measure},{filter_name or 'none'}"] = metric["value"]
        results[f"{measure}_stderr,{filter_name or 'none'}"] = "N/A" if metric["stderr"] is None else metric["stderr"]
    made_by = provenance()
    document = {
        "results": {task.name: results},
        "group_subtasks": {task.name: []},
        "configs": {
            task.name: {
                "task": task.name,
                "test_split": step.split,
                **settings,
                "metric_list": [
                    {
                        "metric": name,
                        "aggregation": "mean" if not samples or name in samples[0]["metrics"] else name,
                        "higher_is_better": name != ANSWER_LOSS,
                    }
                    for name in metrics
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
        "higher_is_better": {task.name: {name.partition(",")[0]: name != ANSWER_LOSS for name in metrics}},
        "n-samples": {task.name: {"original": total, "effective": len(samples)}},
        "config": {
            "model": "plr",
            "model_args": step.target.label,
            **_model_info(step, model, protocol),
            "limit": step.limit,
            "random_seed": step.limit_seed,
            "torch_seed": None,
            "fewshot_seed": step.fewshot_seed,
            "step": step.model_dump(mode="json"),
        },
        "git_hash": (made_by["git"] or {}).get("commit"),
        "date": now.timestamp(),
        "task_hashes": {
            task.name: text_sha256("".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples))
        },
        "model_source": "plr",
        "model_name": step.base.model.name,
        "model_name_sanitized": re.sub(r"[\"<>:/|\\?*\[\]]+", "__", step.base.model.name),
        "system_instruction": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": False,
        "chat_template": None,
        "chat_template_sha": None,
        "transformers_version": made_by["versions"].get("transformers"),
        **_tokenizer_info(model, tokenizer),
        "total_evaluation_time_seconds": None if seconds is None else str(seconds),
        "versions_of_packages": made_by["versions"],
        "protocol": protocol,
    }
    (folder / f"results_{stamp}.json").write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")
    with (folder / f"samples_{task.name}_{stamp}.jsonl").open("wb") as stream:
        for sample in samples:
            stream.write(_line(sample))


def _model_info(step: Evaluate, model: Any, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What lm-eval says of a model, and how it ran."""
    revision = step.base.model.revision
    return {
        "model_num_parameters": None if model is None else _num_parameters(model),
        "model_dtype": protocol["engine"]["dtype"],
        "model_revision": revision,
        "model_sha": revision,
        "batch_size": None,
        "device": None if model is None else str(model.device),
    }


def _num_parameters(model: Any) -> int:
    """Of the network and the adapter on it; weights that are held as k-bit codes count one by one."""
    coded = [module for module in model.modules() if is_quantized_layer(module)]
    codes = {id(p) for module in coded for name, p in module.named_parameters(recurse=False) if name == "weight"}
    return sum(p.numel() for p in model.parameters() if id(p) not in codes) + sum(
        module.in_features * module.out_features for module in coded
    )


def _tokenizer_info(model: Any, tokenizer: Any) -> dict[str, Any]:
    """The special tokens as lm-eval notes them: ``[token, id]``."""
    tokens = {
        f"tokenizer_{name}_token": [getattr(tokenizer, f"{name}_token"), str(getattr(tokenizer, f"{name}_token_id"))]
        for name in ("pad", "eos", "bos")
        if tokenizer is not None
    }
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return {**tokens, "eot_token_id": getattr(tokenizer, "eos_token_id", None), "max_length": limit}


def _line(sample: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(sample, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, in a field that no model reads: it stays an escape
        return json.dumps(sample).encode() + b"\n"
