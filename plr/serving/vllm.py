"""vLLM as the engine behind greedy answers: the same `Generation` as `plr.lm.generate` gives.

1. vLLM gets token ids, made by `encode_prompt`, and nothing of its own sampling defaults: temperature 0, the end tokens that
   plr reads from the checkpoint, the stop strings.
2. It gives token ids back, and the text is made here, by `decode` and `StopStrings`. vLLM's own text is not taken: it decodes
   an answer as the continuation of its prompt, so that a leading space may stand there and not here.
3. So the two may disagree about where a stop string is. Where vLLM's is later, what came after ours is dropped. Where vLLM
   stopped and plr sees no stop string, that prompt runs once more without stop strings, and is cut here.
4. An adapter is a LoRA request; its name and number belong to its folder, and so do the prefixes that vLLM caches under it.
   A folder is therefore not to change while an engine lives.

What it gives up: the sums of a GPU kernel depend on what else is in the batch, so two near-equal logits may change places, here
as in every batched engine; `VLLM_BATCH_INVARIANT=1` asks vLLM for kernels that do not, where it has them.

vLLM runs in this process (`VLLM_ENABLE_V1_MULTIPROCESSING=0`) and sends no usage statistics, unless the environment says so.
"""

from __future__ import annotations

import gc
import io
import json
import math
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from plr.errors import ModelError, UsageError
from plr.lm import AnswerLoss, Generation, encode_pair
from plr.lm.stops import StopStrings
from plr.lm.tokens import check_room, check_some, decode, encode_prompt, end_tokens
from plr.serving.fits import lora_rank, lora_targets, room_for_rank, why_not_vllm
from plr.serving.package import failures, not_served, require_vllm

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["VllmEngine"]

DTYPES = ("auto", "bfloat16", "float16", "float32")


class VllmEngine:
    """One base in vLLM, and any number of LoRA adapters over it, one at a time.

    Args:
        model_folder: a checkpoint at 16 bits, or a GPTQ checkpoint at 8 or 4.
        tokenizer_folder: where the tokenizer lies.
        dtype: of the computation: `bfloat16`, `float16`, `float32` or `auto`: the checkpoint's, and for a GPTQ base
            float16, as its scales are (vLLM rounds them to the dtype of the computation).
        max_model_len: most tokens of prompt and answer together; None: what the model's positions allow.
        seed: vLLM's; greedy answers do not depend on it.
        offline: make no network call.
        max_lora_rank: the largest rank of the adapters that will come, see `plr.serving.fits.lora_rank`; None: no adapter.
        targets: names of the layers that adapters may be on, see `plr.serving.fits.lora_targets`; None: all. Without it
            vLLM also wraps the output layer, and `answer_loss` may fail (vLLM 0.32 on CPUs).
        slots: most prompts that run at once; None: vLLM's choice.
        memory_share: of the GPU's memory that vLLM takes for weights and keys and values.
        eager: do not compile: the engine starts in seconds instead of a minute or more, and is slower afterwards.

    Raises:
        MissingDependencyError: see `require_vllm`.
        UsageError: an unknown dtype, or float32 where vLLM has no kernel for it.
        ModelError: no checkpoint is there, or vLLM does not start; its own words are given.
        ResourceError: the GPU's memory does not suffice.
    """

    def __init__(
        self,
        model_folder: Path,
        *,
        tokenizer_folder: Path,
        dtype: str,
        max_model_len: int | None,
        seed: int,
        offline: bool,
        max_lora_rank: int | None,
        targets: Collection[str] | None = None,
        slots: int | None = None,
        memory_share: float = 0.9,
        eager: bool = False,
    ) -> None:
        from transformers import AutoTokenizer

        self.folder = Path(model_folder)
        if not (self.folder / "config.json").is_file():
            raise ModelError(f"{self.folder} has no config.json", expected="a checkpoint's folder")
        quantized = bool(_json(self.folder, "config.json").get("quantization_config"))
        _check_dtype(dtype, quantized=quantized, adapters=max_lora_rank is not None)
        if offline:
            os.environ["HF_HUB_OFFLINE"] = "1"
        package = require_vllm()
        self._tokenizer = cast(
            "PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(str(tokenizer_folder), trust_remote_code=False)
        )
        self._ends = _ends(self.folder, self._tokenizer)
        self._numbers: dict[str, int] = {}  # an adapter's folder -> its number in vLLM, from 1
        arguments: dict[str, Any] = {
            "model": str(self.folder),
            "tokenizer": str(tokenizer_folder),
            "dtype": "float16" if dtype == "auto" and quantized else dtype,
            "seed": seed,
            "max_model_len": max_model_len,
            "gpu_memory_utilization": memory_share,
            "enable_prefix_caching": True,
            "enforce_eager": eager,
            "generation_config": "vllm",
            "trust_remote_code": False,
        }
        if slots is not None:
            arguments["max_num_seqs"] = slots
        self._targets = None if targets is None else frozenset(targets)
        self._max_rank = None if max_lora_rank is None else room_for_rank(max_lora_rank)
        if self._max_rank is not None:
            arguments |= {"enable_lora": True, "max_lora_rank": self._max_rank, "max_loras": 1}
            arguments["lora_target_modules"] = None if self._targets is None else sorted(self._targets)
        try:
            self._llm: Any = package.LLM(**arguments)
        except failures() as error:
            raise not_served(self.folder, error) from error
        self.max_model_len = int(self._llm.model_config.max_model_len)
        self.dtype = str(self._llm.model_config.dtype).removeprefix("torch.")

    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        adapter: Path | str | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        names: Sequence[str] | None = None,
    ) -> list[Generation]:
        """Generate greedy answers to `prompts` (texts, or token ids), in their order; see `plr.lm.generate` for what an answer is.

        `adapter` is the folder of a saved LoRA. `on_progress(done, total)` is called as answers finish, `names` is what
        messages call the prompts.

        Raises:
            DataError: a prompt has no token, or no room for `max_new_tokens`.
            UsageError: `max_new_tokens` below 1 or beyond the positions, an empty stop string, an adapter that vLLM cannot serve.
            ModelError: vLLM fails; its own words are given.
        """
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {max_new_tokens}", expected="1 or more")
        stops = StopStrings(self._tokenizer, stop)
        encoded = [encode_prompt(self._tokenizer, p) if isinstance(p, str) else list(p) for p in prompts]
        check_room(encoded, self.max_model_len, max_new_tokens, names=names)
        request = self._request(adapter)
        common = {"max_tokens": max_new_tokens, "stop_token_ids": sorted(self._ends)}
        done = self._run(encoded, {**common, "stop": list(stops.strings)}, request, on_progress)
        answers = [list(output.outputs[0].token_ids) for output in done]
        unsure = [
            i
            for i, output in enumerate(done)
            if isinstance(output.outputs[0].stop_reason, str) and self._cut(answers[i], stops) is None
        ]
        again = self._run([encoded[i] for i in unsure], {**common, "stop": []}, request, None)
        for i, output in zip(unsure, again, strict=True):
            answers[i] = list(output.outputs[0].token_ids)
        return [self._answer(ids, out, stops) for ids, out in zip(encoded, answers, strict=True)]

    def answer_loss(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        adapter: Path | str | None = None,
        names: Sequence[str] | None = None,
    ) -> list[AnswerLoss]:
        """Compute the teacher-forced loss of each `(prompt, target)`, as `plr.lm.answer_loss` does, from vLLM's log-probabilities.

        A pair takes one position more than there: vLLM must generate a token.

        Raises:
            DataError, UsageError, ModelError: see `generate`.
        """
        encoded = [encode_pair(self._tokenizer, prompt, target) for prompt, target in pairs]
        for name, (prompt, _) in zip(names or range(len(encoded)), encoded, strict=True):
            check_some(prompt, name)
        texts = [prompt + target for prompt, target in encoded]
        check_room(texts, self.max_model_len, 1, names=names)
        read = self._read(texts, self._request(adapter))
        counts = [len(target) for _, target in encoded]
        return [
            AnswerLoss(-math.fsum(term for term, _ in row[-n:]), n, all(likeliest for _, likeliest in row[-n:]))
            for row, n in zip(read, counts, strict=True)
        ]

    def adapter_change(self, pairs: Sequence[tuple[str, str]], adapter: Path | str) -> float:
        """Measure the largest change, in nats, that `adapter` makes to the log-probability of a token of `pairs`.

        A pair is `(prompt, target)`, target and EOS included; 0.0 if it moves none farther than two runs without it lie apart.

        Texts run one by one, so that equal weights mean equal sums. One that is too long is read as far as there is room.

        Raises:
            DataError, UsageError, ModelError: see `generate`.
        """
        texts = [[*prompt, *target] for prompt, target in (encode_pair(self._tokenizer, *pair) for pair in pairs)]
        texts = [ids[: self.max_model_len - 1] for ids in texts]
        before, after, again = (
            [term for ids in texts for term in self._logprobs([ids], request)[0]]
            for request in (None, self._request(adapter), None)
        )
        change, noise = (max(abs(b - a) for a, b in zip(before, other, strict=True)) for other in (after, again))
        return 0.0 if change <= noise else change

    def close(self) -> None:
        """Give the GPU's memory back; the engine is of no use afterwards."""
        import torch

        llm, self._llm = self._llm, None
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()
            del llm
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _run(
        self,
        prompts: list[list[int]],
        sampling: dict[str, object],
        request: object,
        on_progress: Callable[[int, int], None] | None,
    ) -> list[Any]:
        """Run vLLM: its outputs, in the order of `prompts`."""
        if not prompts:
            return []
        if self._llm is None:
            raise ModelError(f"the engine of {self.folder} is closed", hint="start another one")
        from vllm import SamplingParams  # type: ignore[import-not-found]

        # Stop strings need vLLM's own text; without them it makes none.
        params = SamplingParams(temperature=0.0, detokenize=bool(sampling.get("stop")), **sampling)
        inputs = [{"prompt_token_ids": ids} for ids in prompts]
        bar = False if on_progress is None else _bar(on_progress)
        try:
            return self._llm.generate(inputs, params, lora_request=request, use_tqdm=bar)
        except failures() as error:
            raise not_served(self.folder, error) from error

    def _logprobs(self, texts: list[list[int]], request: object) -> list[list[float]]:
        """Compute of each text the log-probabilities of its tokens after the first."""
        return [[term for term, _ in row] for row in self._read(texts, request)]

    def _read(self, texts: list[list[int]], request: object) -> list[list[tuple[float, bool]]]:
        """Compute of each text, for each token after the first, its log-probability, and whether it is the likeliest (rank 1)."""
        done = self._run(texts, {"max_tokens": 1, "prompt_logprobs": 0}, request, None)
        found = [
            [output.prompt_logprobs[at][ids[at]] for at in range(1, len(ids))]
            for ids, output in zip(texts, done, strict=True)
        ]
        return [[(one.logprob, one.rank == 1) for one in row] for row in found]

    def _cut(self, ids: list[int], stops: StopStrings) -> int | None:
        """Count the `ids` up to the token that completes the first stop string."""
        if not stops.strings:
            return None
        return next((n for n in range(1, len(ids) + 1) if stops.cut(ids[:n])), None)

    def _answer(self, prompt: list[int], out: list[int], stops: StopStrings) -> Generation:
        end = next((i for i, token in enumerate(out) if token in self._ends), None)
        cut = self._cut(out if end is None else out[:end], stops)
        if cut is not None:
            text = stops.find(decode(self._tokenizer, out[:cut]))
            assert text is not None
            return Generation(text[0], cut, False, text[1], len(prompt))
        ids = out if end is None else out[:end]
        return Generation(
            decode(self._tokenizer, ids), len(ids) + (end is not None), end is not None, None, len(prompt)
        )

    def _request(self, adapter: Path | str | None) -> object:
        if adapter is None:
            return None
        folder = Path(adapter).resolve()
        config = _json(folder, "adapter_config.json")
        reason = why_not_vllm(16, None, str(config.get("peft_type")).lower(), config, False)
        if not config or not (folder / "adapter_model.safetensors").is_file():
            reason = "it has no adapter_config.json and adapter_model.safetensors"
        elif reason is None and self._max_rank is None:
            reason = "this engine was started without max_lora_rank"
        elif reason is None and lora_rank("lora", config) > (self._max_rank or 0):
            reason = f"its rank is {lora_rank('lora', config)}, and this engine was started for {self._max_rank}"
        elif reason is None and self._targets is not None and not (lora_targets([config]) or {""}) <= self._targets:
            # vLLM passes over what an adapter does to other layers.
            reason = f"it is not only on {', '.join(sorted(self._targets))}, for which this engine was started"
        if reason is not None:
            raise UsageError(
                f"vLLM cannot serve the adapter {folder}: {reason}",
                expected="a LoRA in PEFT's format",
                hint="use --engine hf",
            )
        from vllm.lora.request import LoRARequest  # type: ignore[import-not-found]

        number = self._numbers.setdefault(str(folder), len(self._numbers) + 1)
        return LoRARequest(f"plr-{number}", number, str(folder))


def _check_dtype(dtype: str, *, quantized: bool, adapters: bool) -> None:
    if dtype not in DTYPES:
        raise UsageError(f"the dtype is {dtype}", expected=" or ".join(DTYPES))
    if dtype == "float32" and (quantized or adapters):
        what = "quantized bases" if quantized else "adapters"
        raise UsageError(
            f"vLLM does not compute {what} in float32",
            expected="bfloat16 or float16",
            hint="choose the dtype bfloat16 or float16 (--dtype, runtime.dtype of a study, dtype of a Lab)",
        )


def _ends(folder: Path, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """List the ids that end an answer, as transformers would read them from `folder`; see `end_tokens`."""
    config = _json(folder, "config.json")
    declared = _json(folder, "generation_config.json") or config.get("text_config") or config
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=declared.get("eos_token_id")))
    return end_tokens(model, tokenizer)


def _json(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON file of a folder; empty where there is none."""
    file = folder / name
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _bar(on_progress: Callable[[int, int], None]) -> Callable[..., Any]:
    """Make what vLLM takes for a tqdm, which draws nothing and tells `on_progress` of the answers that are done."""
    from tqdm import tqdm

    class Told(tqdm):  # type: ignore[type-arg]
        def __init__(self, iterable: Any = None, **settings: Any) -> None:
            super().__init__(iterable, **{**settings, "file": io.StringIO()})

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if self.iterable is None and self.total:  # the other bar counts prompts on their way in
                on_progress(int(self.n), int(self.total))
            return shown

    return Told
