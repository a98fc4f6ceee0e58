"""GPTQModel as a backend: its own solver, in the checkpoint format that plr's solver writes too.

How it works:

1. GPTQModel loads from a folder, so the model is saved to a scratch folder inside the target, with a tokenizer of one word: it
   insists on one, and calibration comes as token ids;
2. every setting that can change a result is spelled out; nothing is left to a default. Rounding to nearest in place of a layer
   that GPTQ cannot solve is off (`fallback=None`), and so is damping that grows by itself; a layer that comes back unsolved is an
   error;
3. the checkpoint is read back with `plr.gptq.load_checkpoint`, which proves that it loads, and its layers are put into the
   model, as any quantizer does.

Where it differs from method `gptq` under the same settings: scales of groups smaller than 128 are those of the weights before the
128 columns around them were corrected, and codes are solved for float32 scales, which the file then rounds to float16.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import math
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plr.core.fingerprint import JsonObject
from plr.core.quiet import import_gptqmodel, silenced
from plr.errors import MissingDependencyError, ModelError, UsageError
from plr.quantizers.base import Execution, Quantizer, check_settings, named_modules, quantizers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from plr.core.specs import Quantization

__all__ = ["GPTQModelQuantizer"]

UNSOLVED = 999999999
"""The loss GPTQModel gives a layer that it has not solved."""
_TAKES: dict[str, tuple[Any, ...]] = {
    "group_size": (-1, 16, 32, 64, 128, 256, 512, 1024),
    "block_size": (128,),
}
_FREE = ("sym", "desc_act", "static_groups", "act_group_aware")
_KEPT = ("config.json", "quantize_config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")


class GPTQModelQuantizer(Quantizer):
    """GPTQ by the package GPTQModel (7.6): 8, 4, 3 or 2 bits, symmetric or not, with its three orders of columns."""

    needs_calibration = True
    grouped = True

    def check(self, spec: Quantization) -> None:
        check_settings("gptqmodel", spec, _TAKES, free=_FREE)
        if spec.act_group_aware and (spec.desc_act or spec.group_size == -1):
            other = "desc_act" if spec.desc_act else "group_size -1"
            raise UsageError(
                f"method gptqmodel cannot carry out act_group_aware with {other}",
                expected="act_group_aware with groups and without desc_act",
                hint=f"leave out act_group_aware or {other}",
            )

    def quantize(
        self,
        model: PreTrainedModel,
        batches: Sequence[dict[str, Tensor]],
        spec: Quantization,
        folder: Path,
        *,
        execution: Execution | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> JsonObject:
        import torch

        from plr.gptq import GPTQError, PackedLinear, load_checkpoint
        from plr.gptq.blocks import find_blocks, find_targets, replace_module

        self.check(spec)
        _require()
        try:
            targets, prefix = find_targets(model, ("lm_head",)), find_blocks(model)[0]
        except GPTQError as error:
            raise ModelError(str(error)) from error
        if on_progress is not None:
            on_progress(0, len(targets))
        folder.mkdir(parents=True, exist_ok=True)
        scratch = folder / ".gptqmodel"
        device = (execution.device if execution else None) or str(model.device)
        threads = torch.get_num_threads()
        try:
            scratch.mkdir()
            log = _run(model, _rows(batches), spec, scratch, device)
            for pattern in _KEPT:
                for file in (scratch / "quantized").glob(pattern):
                    file.rename(folder / file.name)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, AttributeError, ImportError) as error:
            raise ModelError(
                f"GPTQModel cannot quantize this model: {type(error).__name__}: {error}",
                hint="use method gptq; PLR_DEBUG=1 shows what GPTQModel prints",
            ) from error
        finally:
            torch.set_num_threads(threads)
            shutil.rmtree(scratch, ignore_errors=True)
        modules = [_report(entry, prefix, spec) for entry in log]
        tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
        used = max(module["n_tokens"] for module in modules)
        if used != tokens:
            raise ModelError(
                f"GPTQModel calibrated on {used} of the {tokens} tokens",
                expected="all of them: samples no longer than the model's context",
                hint="lower quantize.max_length, or use method gptq",
            )
        try:
            packed = load_checkpoint(folder, dtype=model.dtype, device=model.device)
        except GPTQError as error:
            raise ModelError(f"GPTQModel wrote a checkpoint that cannot be read: {error}") from error
        layers = {name: layer for name, layer in named_modules(packed) if isinstance(layer, PackedLinear)}
        for name, layer in layers.items():
            replace_module(model, name, layer)
        if on_progress is not None:
            on_progress(len(targets), len(targets))
        return {
            "modules": modules,
            "left_dense": sorted(targets.keys() - layers.keys()),
            "gptqmodel": importlib.metadata.version("gptqmodel"),
        }


def _run(model: Any, rows: list[dict[str, Tensor]], spec: Quantization, scratch: Path, device: str) -> list[JsonObject]:
    """Quantize `model`, from a copy on disk, on `device`, into `scratch/quantized`.

    Returns GPTQModel's log, one entry a layer.
    """
    import torch

    import_gptqmodel()
    with silenced(), _logs_in(scratch / "logs"):
        gptqmodel: Any = importlib.import_module("gptqmodel")

        model.save_pretrained(scratch / "source")
        _save_stand_in_tokenizer(scratch / "source")
        settings: JsonObject = {
            "bits": spec.bits,
            "group_size": spec.group_size,
            "sym": spec.sym,
            "desc_act": spec.desc_act,
            "static_groups": spec.static_groups,
            "act_group_aware": spec.act_group_aware,
            "damp_percent": spec.damp_percent,
            "damp_auto_increment": 0.0,
            "fallback": None,
            "true_sequential": True,
            "lm_head": False,
            "mse": 0.0,
            "gptaq": None,
            "foem": None,
            "rotation": None,
            "dynamic": None,
            "mock_quantization": False,
            "method": "gptq",
            "format": "gptq",
            "pack_dtype": torch.int32,
            "pack_impl": "cpu",
            "offload_to_disk": False,
            "auto_forward_data_parallel": False,
            "device": device,
        }
        theirs: Any = gptqmodel.GPTQModel.load(
            str(scratch / "source"), gptqmodel.QuantizeConfig(**settings), dtype=torch.float32
        )
        # GPTQModel filters the samples twice, and the second time forgets the shortest length it was given (10, exclusive).
        theirs.prepare_dataset = partial(theirs.prepare_dataset, calibration_data_min_length=0)
        logs = theirs.quantize(
            rows,
            batch_size=1,
            calibration_concat_size=None,
            calibration_sort="desc",
            calibration_data_min_length=0,
            backend=gptqmodel.BACKEND.GPTQ_TORCH,
        )
        theirs.save(str(scratch / "quantized"))
    return logs["gptq"]


def _rows(batches: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """List one entry a sample, padding taken off: int64 [t]."""
    rows: list[dict[str, Tensor]] = []
    for batch in batches:
        for ids, mask in zip(batch["input_ids"].cpu(), batch["attention_mask"].cpu(), strict=True):
            tokens = ids[mask.bool()]
            rows.append({"input_ids": tokens, "attention_mask": tokens.new_ones(len(tokens))})
    return rows


def _report(entry: JsonObject, prefix: str, spec: Quantization) -> JsonObject:
    """Make the record of one layer.

    Raises:
        ModelError: GPTQModel has not solved it.
    """
    name, loss = f"{prefix}.{entry['layer']}.{entry['module']}", _number(entry["loss"])
    if not math.isfinite(loss) or loss >= UNSOLVED:
        raise ModelError(
            f"GPTQModel could not solve {name}: loss {entry['loss']}",
            expected="a Hessian that can be factored at the damping asked for",
            hint="use more calibration samples or a larger damp_percent (0.05, 0.1)",
        )
    return {
        "name": name,
        "bits": spec.bits,
        "group_size": spec.group_size,
        "loss": loss,
        "damp_percent": _number(entry["damp"]),
        "n_tokens": int(_number(entry["samples"])),
        "seconds": _number(entry["time"]),
    }


def _number(text: Any) -> float:
    """Read the number in a cell of GPTQModel's log; NaN for words ("rtn fallback: ...")."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan


def _save_stand_in_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    names = {"unk_token": "?", "pad_token": "?", "bos_token": "?", "eos_token": "?"}
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=words, **names)
    tokenizer.save_pretrained(folder)


@contextmanager
def _logs_in(folder: Path) -> Generator[None]:
    """Send GPTQModel's logs to `folder`: it writes them to `logs/` where the user stands."""
    loop_processor: Any = importlib.import_module("gptqmodel.looper.loop_processor")
    before = loop_processor._PROJECT_LOG_DIR
    loop_processor._PROJECT_LOG_DIR = folder
    try:
        yield
    finally:
        loop_processor._PROJECT_LOG_DIR = before


def _require() -> None:
    if importlib.util.find_spec("gptqmodel") is None:
        raise MissingDependencyError(
            "method gptqmodel needs the package gptqmodel, and it is not installed",
            hint="pip install 'plr[gptqmodel]', or use --method gptq: plr's own solver in the same format",
        )


quantizers.register("gptqmodel")(GPTQModelQuantizer())
