"""What writes the answers of a cell: the transformers model in this process, or vLLM. To a cell both are the same two verbs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from plr.bases.load import load_tokenizer
from plr.bases.resolve import model_path
from plr.core.runtime import Runtime
from plr.core.specs import Evaluate, Quantize, Restore
from plr.core.store import Store
from plr.errors import IntegrityError
from plr.lm import AnswerLoss, Generation, answer_loss, generate
from plr.restoration.attach import check_init, check_provenance
from plr.serving import check_engine
from plr.tasks.data.rows import load_split

__all__ = ["Local", "Served", "ServingBase", "Writer"]

OnProgress = Callable[[int, int], None]
PROBE_ROWS = 4


class Writer(Protocol):
    """A model with its adapter, ready to answer."""

    facts: Mapping[str, Any]
    """What the engine says of itself, for the protocol."""
    model: Any
    """The model in this process; None where it is elsewhere."""
    tokenizer: Any

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        stop: Sequence[str],
        on_progress: OnProgress | None,
        names: Sequence[str] | None = None,
    ) -> list[Generation]:
        """See :func:`plr.lm.generate`."""
        ...

    def answer_loss(self, pairs: Sequence[tuple[str, str]], names: Sequence[str] | None = None) -> list[AnswerLoss]:
        """See :func:`plr.lm.answer_loss`."""
        ...


class Local:
    """The transformers model in this process."""

    def __init__(self, model: Any, tokenizer: Any, slots: int) -> None:
        self.model, self.tokenizer, self.slots = model, tokenizer, slots
        self.facts: Mapping[str, Any] = {"dtype": str(model.dtype).removeprefix("torch.")}

    def generate(self, prompts: Sequence[str], **settings: Any) -> list[Generation]:
        return generate(self.model, self.tokenizer, prompts, slots=self.slots, **settings)

    def answer_loss(self, pairs: Sequence[tuple[str, str]], names: Sequence[str] | None = None) -> list[AnswerLoss]:
        return answer_loss(self.model, self.tokenizer, pairs, names=names)


class Served:
    """vLLM, with an adapter as a LoRA request."""

    model = None

    def __init__(
        self, engine: Any, adapter: Path | None, tokenizer: Any, facts: Mapping[str, Any], change: float | None = None
    ) -> None:
        self.engine, self.adapter, self.tokenizer, self.change = engine, adapter, tokenizer, change
        self.facts: Mapping[str, Any] = facts

    def generate(self, prompts: Sequence[str], **settings: Any) -> list[Generation]:
        return self.engine.generate(prompts, adapter=self.adapter, **settings)

    def answer_loss(self, pairs: Sequence[tuple[str, str]], names: Sequence[str] | None = None) -> list[AnswerLoss]:
        return self.engine.answer_loss(pairs, adapter=self.adapter, names=names)


class ServingBase:
    """The base that vLLM holds. Asking for another one, or for adapters that it was not started for, starts it anew."""

    def __init__(self, store: Store, runtime: Runtime) -> None:
        self.store, self.runtime = store, runtime
        self._key: tuple[Any, ...] | None = None
        self._engine: Any = None

    def writer(self, step: Evaluate) -> Served:
        """The writer of ``step``.

        Raises:
            UsageError: see :func:`plr.serving.check_engine`.
            ProvenanceError: an adapter of another source model, or one that holds a part of its own base.
            IntegrityError: an adapter that changes nothing.
            MissingDependencyError, ModelError, ResourceError: vLLM is not there or does not start.
        """
        from plr.serving.fits import lora_rank, lora_targets
        from plr.serving.package import require_vllm
        from plr.serving.vllm import VllmEngine

        check_engine(step)
        folder, adapter, rank, targets = self._folder(step), None, None, None
        if isinstance(step.target, Restore) and not step.target.is_checkpoint:
            adapter = self.store.require(step.target.adapter).path
            check_provenance(step.target.adapter, step.target.base, allow_mismatch=step.target.allow_mismatch)
            check_init(step.target, adapter)
            config = json.loads((adapter / "adapter_config.json").read_text())
            rank, targets = lora_rank(step.target.adapter.adapter.method, config), lora_targets([config])
        dtype = self.runtime.dtype
        key = (str(folder), dtype, rank, targets)
        if self._key != key:
            self.close()
            self._engine = VllmEngine(
                folder,
                tokenizer_folder=folder,  # what plr writes has its tokenizer; a GGUF source is no folder
                dtype=dtype,
                max_model_len=None,
                seed=0,
                offline=self.runtime.offline,
                max_lora_rank=rank,
                targets=targets,
            )
            self._key = key
        facts = {"dtype": self._engine.dtype, "version": require_vllm().__version__}
        change = None if adapter is None else self._change(step, adapter)
        tokenizer = load_tokenizer(step.base.model, offline=self.runtime.offline)
        return Served(self._engine, adapter, tokenizer, facts, change)

    def _change(self, step: Evaluate, adapter: Path) -> float:
        """Proof that the adapter acts, on a few validation rows of the task it was trained on."""
        assert isinstance(step.target, Restore)
        rows = load_split(step.target.adapter.task, "validation").examples[:PROBE_ROWS]
        change = self._engine.adapter_change([(row.prompt, row.target) for row in rows], adapter)
        if change == 0.0:
            raise IntegrityError(
                f"the adapter {step.target.adapter.label} changes no log-probability of {step.base.label} in vLLM",
                expected="an adapter that acts",
                hint="it was trained for no step, its weights are all zero, or vLLM passes over it: try --engine hf",
            )
        return change

    def _folder(self, step: Evaluate) -> Path:
        if isinstance(step.target, Restore) and step.target.is_checkpoint:
            return self.store.require(step.target).path
        if isinstance(step.base, Quantize):
            return self.store.require(step.base).path
        return model_path(step.base.model, offline=self.runtime.offline)

    def close(self) -> None:
        """Let the engine go, with the memory it holds."""
        if self._engine is not None:
            self._engine.close()
        self._engine = self._key = None
