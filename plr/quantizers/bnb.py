"""bitsandbytes' NF4 (QLoRA's own 4 bits) and int8, on a CPU and on a GPU.

How it works:

1. the layers that GPTQ would quantize (`plr.gptq.blocks.find_targets`) become `Linear4bit` or `Linear8bitLt`; the
   others stay as they are and are named in `llm_int8_skip_modules`. So a base has the same layers in k bits whatever made it;
2. the `state_dict` of such a model with a `quantization_config` is a checkpoint that opens in plain transformers. The block
   size stands in the tensors themselves (`weight.quant_state.bitsandbytes__nf4`);
3. it is read back by transformers, and set to compute in the dtype of the run.

`nf4` (Dettmers et al. 2023, QLoRA, section 3): one of 16 NormalFloat levels times the largest value of a block of `group_size`
consecutive weights of a row. Scales are float32 (32 / group_size bits a weight), or with `double_quant` 8 bits and a float32 for
every 256 of them. A block that spans two rows is an error: bitsandbytes 0.50.2 reads it with the wrong scale on a CPU with AVX512
(measured: 6 to 30 % error in the product, on rows of 80 to 640).

`int8` (Dettmers et al. 2022, LLM.int8()): codes of 8 bits and one float32 scale a row. The inputs are rounded too, a scale for
each position, but for columns that hold a value of 6 or more. Which columns these are is found for the batch as a whole: the logits
of a row depend, at the size of that rounding, on the rows beside it. On a CPU bitsandbytes does so in evaluation only; in training
it multiplies by the dequantized weight.

What it gives up: bitsandbytes packs NF4 weights anew on a CPU with AVX512-BF16 when it first evaluates: scales in bfloat16, in
place, and a product that has no gradient, so that a training which validates in between loses the gradient below that layer without
a word. That path is switched off; the slower one is exact and has a gradient.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plr.core.fingerprint import JsonObject
from plr.errors import MissingDependencyError, ModelError
from plr.quantizers.base import Execution, Quantizer, check_settings, named_modules, quantizers

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from plr.core.specs import Quantization

__all__ = ["BitsAndBytesQuantizer", "load_bitsandbytes"]

THRESHOLD = 6.0
"""LLM.int8()'s: inputs as large as this stay in 16 bits."""
_WIDTH = {"nf4": 4, "int8": 8}
_TAKES: dict[str, dict[str, tuple[Any, ...]]] = {
    "nf4": {"group_size": (64, 32, 128, 256, 512, 1024, 2048, 4096)},
    "int8": {"group_size": (-1,)},
}
_FREE = {"nf4": ("double_quant",), "int8": ()}
_SHARD = "5GB"


class BitsAndBytesQuantizer(Quantizer):
    """`nf4`: 4 bits, `group_size` is bitsandbytes' block size (QLoRA: 64). `int8`: 8 bits, group_size -1 (one scale a row).

    Both round to nearest on a grid of their own: no calibration. `sym` must be left at true, although NF4's levels are not
    quite symmetric: there is no zero point to search for. `damp_percent` and `block_size` have no meaning here.
    """

    needs_calibration = False
    grouped = True
    encoders = False  # transformers reads them back as causal language models
    formats = ("bitsandbytes",)

    def __init__(self, method: Literal["nf4", "int8"]) -> None:
        self.method: Literal["nf4", "int8"] = method
        self.widths = (_WIDTH[method],)

    def check(self, spec: Quantization) -> None:
        check_settings(self.method, spec, {"bits": self.widths, **_TAKES[self.method]}, free=_FREE[self.method])

    def width(self, config: Mapping[str, Any]) -> object:
        return 4 if config.get("load_in_4bit") else 8 if config.get("load_in_8bit") else None

    def load(self, folder: Path, *, dtype: torch.dtype, device: str, kernel: str) -> PreTrainedModel:
        return load_bitsandbytes(folder, dtype=dtype, device=device)

    def is_layer(self, module: nn.Module) -> bool:
        return _is_bitsandbytes(module)

    def dense(self, module: nn.Module) -> nn.Module:
        return _dense_layer(module)

    def densify(self, model: PreTrainedModel) -> None:
        super().densify(model)
        # How the checkpoint was read is how it would be written: without the steps that unpacked k-bit weights.
        conversions = [step for step in getattr(model, "_weight_conversions", None) or () if not _unpacks(step)]
        vars(model)["_weight_conversions"] = conversions or None

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

        from plr.gptq import GPTQError
        from plr.gptq.blocks import dense_weight, features, find_targets, is_linear, replace_module

        self.check(spec)
        bnb = _bitsandbytes()
        try:
            targets = find_targets(model, ("lm_head",))
        except GPTQError as error:
            raise ModelError(str(error)) from error
        if self.method == "nf4":
            _check_blocks({name: features(linear)[0] for name, linear in targets.items()}, spec.group_size)
        rest = [name for name, module in named_modules(model) if is_linear(module) and name not in targets]
        modules: list[JsonObject] = []
        for name, linear in targets.items():
            start = time.perf_counter()
            weight, (in_features, out_features) = dense_weight(linear).detach().float(), features(linear)
            try:
                layer = self._layer(bnb, linear, weight, spec, model.dtype)
                error = _relative_error(_dequantized(layer), weight)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as refusal:  # no native library for this GPU, say
                raise ModelError(
                    f"bitsandbytes cannot quantize {name} on {weight.device}: {_first_line(refusal)}",
                    expected="a device for which bitsandbytes has its native library: python -m bitsandbytes names it",
                    hint="use --device cpu, or --method gptq or rtn, which run everywhere",
                ) from refusal
            replace_module(model, name, layer)
            modules.append(
                {
                    "name": name,
                    "in_features": in_features,
                    "out_features": out_features,
                    "bits": spec.bits,
                    "group_size": spec.group_size,
                    "weight_error": error,
                    "seconds": time.perf_counter() - start,
                }
            )
            if on_progress is not None:
                on_progress(len(modules), len(targets))
        config: Any = model.config
        config.quantization_config = self._config(spec, str(model.dtype).removeprefix("torch."), rest)
        model.save_pretrained(folder, max_shard_size=_SHARD)  # pyright: ignore[reportUnknownMemberType]
        # It says what is in the folder, and would mislead whoever puts the dense layers back.
        del config.quantization_config
        return {"modules": modules, "bitsandbytes": bnb.__version__}

    def _layer(self, bnb: Any, linear: Any, weight: Tensor, spec: Quantization, dtype: torch.dtype) -> Any:
        """Make the k-bit layer for `linear`, whose weight is `weight` float32 [out, in], on its device. It writes to neither."""
        import torch

        sizes = (weight.shape[1], weight.shape[0], linear.bias is not None)
        with torch.device("meta"):
            if self.method == "nf4":
                layer = bnb.nn.Linear4bit(*sizes, dtype, spec.double_quant, "nf4", torch.uint8)
            else:
                layer = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=THRESHOLD)
        if self.method == "nf4":
            layer.weight = bnb.nn.Params4bit(
                weight,
                requires_grad=False,
                blocksize=spec.group_size,
                compress_statistics=spec.double_quant,
                quant_type="nf4",
                quant_storage=torch.uint8,
                module=layer,
            ).to(weight.device)
        else:  # it is rounded on the way from the CPU to its device
            cpu = weight.to("cpu")
            layer.weight = bnb.nn.Int8Params(cpu, requires_grad=False, has_fp16_weights=False).to(weight.device)
        layer.bias = linear.bias
        layer.source_cls = type(linear)  # as transformers notes it
        _settle(layer, dtype)
        return layer.train(linear.training)

    def _config(self, spec: Quantization, dtype: str, skipped: list[str]) -> JsonObject:
        """Make the `quantization_config` of the checkpoint, every key spelled out."""
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": self.method == "nf4",
            "load_in_8bit": self.method == "int8",
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": spec.double_quant,
            "bnb_4bit_compute_dtype": dtype,
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_threshold": THRESHOLD,
            "llm_int8_skip_modules": skipped,
            "llm_int8_has_fp16_weight": False,
            "llm_int8_enable_fp32_cpu_offload": False,
        }


def load_bitsandbytes(folder: Path, *, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Load the model in `folder`, its layers as bitsandbytes', computing in `dtype`; in eval mode.

    Raises:
        MissingDependencyError: bitsandbytes is not installed.
        ModelError: transformers cannot load the checkpoint; its own words are given.
    """
    import transformers

    _bitsandbytes()
    auto: Any = transformers.AutoModelForCausalLM
    try:
        model: Any = auto.from_pretrained(
            folder, dtype=dtype, device_map={"": device}, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ModelError(f"the bitsandbytes checkpoint {folder} cannot be loaded: {error}") from error
    for module in model.modules():
        _settle(module, dtype)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_floating_point() and not (_is_bitsandbytes(module) and name == "weight"):
                parameter.data = parameter.data.to(dtype)  # transformers leaves dense weights as they were stored
    model.config.dtype = dtype
    return model.eval()


def _is_bitsandbytes(module: nn.Module) -> bool:
    return type(module).__name__ in ("Linear4bit", "Linear8bitLt") and type(module).__module__.startswith(
        "bitsandbytes"
    )


def _dense_layer(module: Any) -> nn.Module:
    """Return an ordinary float32 layer with the dequantized weight of a layer of bitsandbytes, of the kind it replaced."""
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    weight, bias = _dequantized(module), module.bias
    with torch.device("meta"):
        if getattr(module, "source_cls", nn.Linear) is Conv1D:  # GPT-2's, weight [in, out]
            layer, weight = Conv1D(module.out_features, module.in_features), weight.t().contiguous()
        else:
            layer = nn.Linear(module.in_features, module.out_features, bias=bias is not None)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().float(), requires_grad=False)
    return layer


def _dequantized(module: Any) -> Tensor:
    """Return the weight float32 [out, in] of a layer of bitsandbytes."""
    bnb, weight = _bitsandbytes(), module.weight
    if type(module).__name__ == "Linear4bit":
        return bnb.functional.dequantize_4bit(weight.data, weight.quant_state).float()
    state = module.state
    return bnb.functional.int8_vectorwise_dequant(weight.data, state.SCB if state.SCB is not None else weight.SCB)


def _unpacks(step: Any) -> bool:
    return any("bitsandbytes" in type(operation).__module__ for operation in getattr(step, "operations", ()))


def _relative_error(ours: Any, exact: Any) -> float:
    return float((ours - exact).norm() / exact.norm().clamp(min=1e-30))


def _settle(module: Any, dtype: torch.dtype) -> None:
    """Have a 4-bit layer compute in `dtype`, without the packing that has no gradient (see the module's docstring)."""
    if type(module).__name__ == "Linear4bit" and _is_bitsandbytes(module):
        module.compute_dtype, module.compute_type_is_set = dtype, True
        module.weight.quant_state.dtype = dtype
        module.support_avx512bf16_for_cpu = False


def _check_blocks(in_features: dict[str, int], block: int) -> None:
    """Raise `ModelError` for the first layer whose rows are not a whole number of blocks."""
    for name, size in in_features.items():
        if size % block:
            fitting = [
                other for other in _TAKES["nf4"]["group_size"] if not any(n % other for n in in_features.values())
            ]
            raise ModelError(
                f"{name} has {size} inputs: blocks of {block} would span two rows, which bitsandbytes misreads on a CPU",
                expected=f"a group_size that divides every layer's inputs: {', '.join(map(str, fitting)) or 'none does'}",
                hint=f"give --group-size {fitting[0]}" if fitting else "use method gptq or rtn with group_size -1",
            )


def _bitsandbytes() -> Any:
    """Import the package.

    Raises:
        MissingDependencyError: it is not installed, or cannot be imported here.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependencyError(
            "nf4 and int8 bases need bitsandbytes, and it is not installed",
            hint="pip install 'plr[bitsandbytes]'",
        )
    try:
        return importlib.import_module("bitsandbytes")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise MissingDependencyError(
            f"bitsandbytes is installed and cannot be imported: {_first_line(error)}",
            expected="bitsandbytes 0.50 or later, and the torch it was built for",
            hint="pip install 'plr[bitsandbytes]', or use --method gptq or rtn, which run everywhere",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


quantizers.register("nf4")(BitsAndBytesQuantizer("nf4"))
quantizers.register("int8")(BitsAndBytesQuantizer("int8"))
