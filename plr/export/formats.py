"""The formats of `plr export`: one row each, with what it takes, and the function that writes it."""

from __future__ import annotations

from plr.adapters import adapters
from plr.adapters.peft import PeftMethod
from plr.core.fingerprint import JsonObject
from plr.core.specs import GivenBase, Quantize, Restore, Source
from plr.errors import UsageError
from plr.export.work import ExportFormat, Target, Work
from plr.registry import Registry
from plr.restoration.check import check_merges

__all__ = ["formats", "what_is"]

formats: Registry[ExportFormat] = Registry("export format", "plr.exports")


def _add(row: ExportFormat) -> None:
    formats.register(row.name)(row)


def what_is(target: Target) -> str:
    """Say in a few words what a target is."""
    if isinstance(target, Quantize):
        return f"{target.label} is a base of {target.bits} bits, without an adapter"
    if target.is_checkpoint:
        return f"{target.label} is a whole checkpoint ({target.form.serves})"
    return f"{target.label} is an adapter beside its base"


def _adapter_of_peft(target: Target) -> None:
    if isinstance(target, Quantize) or target.is_checkpoint:
        raise UsageError(
            what_is(target),
            expected="an adapter",
            hint="use --format "
            + ("merged" if isinstance(target, Restore) and target.form.writes == "dense" else "gptq"),
        )
    name = target.adapter.adapter.method
    method = adapters.get(name)
    if not isinstance(method, PeftMethod):
        raise UsageError(f"{name} trains the whole model: there is no adapter", hint="use --format merged")
    if method.module != "peft":
        merged = "use --format merged, or serve" if method.properties.merges else "serve"
        raise UsageError(
            f"{name} is a method of plr's own: PEFT alone does not open it",
            expected="a method of PEFT",
            hint=f"{merged} it with plr installed: PEFT opens it then",
        )


def _merges(target: Target) -> None:
    if isinstance(target, Quantize):
        raise UsageError(what_is(target), expected="an adapter to merge", hint="use --format gptq")
    if target.form.writes == "quantized":
        raise UsageError(what_is(target), expected="16-bit weights", hint="use --format gptq")
    if not target.is_checkpoint:
        check_merges(target.replaced(merge=True))


def _is_gptq(target: Target) -> None:
    if isinstance(target, Restore) and target.form.writes != "quantized":
        raise UsageError(
            what_is(target),
            expected="a quantized base, or an adapter that was merged and quantized anew (--mode requantize)",
            hint="use --format peft beside --format gptq of its base, or add --mode requantize --bits 4",
        )
    base = target if isinstance(target, Quantize) else target.base
    if isinstance(base, Source | GivenBase):
        raise UsageError(what_is(target), expected="a base that plr quantized")
    method = base.quantization.method
    if method not in ("gptq", "rtn", "gptqmodel"):
        raise UsageError(
            f"{base.label} was quantized by {method}, whose checkpoint is no GPTQ checkpoint",
            expected="gptq, rtn or gptqmodel",
            hint="transformers opens a base of nf4 or int8 as it lies: plr quantize ... --output FOLDER",
        )


def _peft(work: Work) -> JsonObject:
    from plr.export.peft import write_peft

    return write_peft(work)


def _merged(work: Work) -> JsonObject:
    from plr.export.merged import write_merged

    return write_merged(work)


def _gptq(work: Work) -> JsonObject:
    from plr.export.gptq import write_gptq

    return write_gptq(work)


def _compressed(work: Work) -> JsonObject:
    from plr.export.compressed import write_from_store

    return write_from_store(work)


def _gguf_lora(work: Work) -> JsonObject:
    from plr.export.gguf_lora import write_from_store

    return write_from_store(work)


_add(
    ExportFormat(
        "peft",
        "the adapter alone, which names its base",
        'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), "FOLDER")',
        _adapter_of_peft,
        _peft,
        relation="adapter",
        library="peft",
    )
)
_add(
    ExportFormat(
        "merged",
        "one dense checkpoint, the adapter merged into its base",
        'AutoModelForCausalLM.from_pretrained("FOLDER")',
        _merges,
        _merged,
        relation="finetune",
    )
)
_add(
    ExportFormat(
        "gptq",
        "one GPTQ checkpoint",
        'AutoModelForCausalLM.from_pretrained("FOLDER")  # with GPTQModel installed',
        _is_gptq,
        _gptq,
        relation="quantized",
    )
)
_add(
    ExportFormat(
        "compressed-tensors",
        "one checkpoint in the layout of compressed-tensors, 2 and 3 bits too",
        "vllm serve FOLDER",
        _is_gptq,
        _compressed,
        relation="quantized",
    )
)
_add(
    ExportFormat(
        "gguf-lora",
        "the adapter as one GGUF file",
        "llama-cli -m BASE.gguf --lora FOLDER/adapter.gguf",
        _adapter_of_peft,
        _gguf_lora,
        relation="adapter",
        library="llama.cpp",
    )
)
