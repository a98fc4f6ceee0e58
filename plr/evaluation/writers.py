"""Generation backends for evaluation: local transformers or vLLM, behind one protocol (`generate`, `answer_loss`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from plr.bases.load import base_folder, load_tokenizer, tokenizer_ref
from plr.bases.resolve import model_path
from plr.core.runtime import Runtime
from plr.core.specs import Evaluate, GivenBase, Quantize, Restore
from plr.core.store import Store
from plr.errors import IntegrityError
from plr.evaluation.protocol import EngineFacts
from plr.lm import AnswerLoss, Generation, answer_loss, generate
from plr.restoration.attach import check_init, check_provenance
from plr.restoration.served import as_served, served_adapter
from plr.serving import check_engine
from plr.tasks.data.rows import load_split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from plr.serving.vllm import VllmEngine

__all__ = ["Local", "Served", "ServingBase", "Writer"]

OnProgress = Callable[[int, int], None]
PROBE_ROWS = 4


class Writer(Protocol):
    """A model with its adapter, ready to answer."""

    @property
    def facts(self) -> EngineFacts: ...

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        stop: Sequence[str],
        on_progress: OnProgress | None,
        names: Sequence[str] | None = None,
    ) -> list[Generation]:
        """Answer `prompts`; see `plr.lm.generate`."""
        ...

    def answer_loss(self, pairs: Sequence[tuple[str, str]], names: Sequence[str] | None = None) -> list[AnswerLoss]:
        """Measure the loss of given answers; see `plr.lm.answer_loss`."""
        ...


class Local:
    """The transformers model in this process."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, slots: int) -> None:
        self.model, self.tokenizer, self.slots = model, tokenizer, slots
        self.facts: EngineFacts = {"dtype": str(model.dtype).removeprefix("torch.")}

    def generate(self, prompts: Sequence[str], **settings: Any) -> list[Generation]:
        return generate(self.model, self.tokenizer, prompts, slots=self.slots, **settings)

    def answer_loss(self, pairs: Sequence[tuple[str, str]], names: Sequence[str] | None = None) -> list[AnswerLoss]:
        return answer_loss(self.model, self.tokenizer, pairs, names=names)


@dataclass(frozen=True)
class Served:
    """vLLM, with an adapter as a LoRA request."""

    engine: VllmEngine
    adapter: Path | None
    tokenizer: PreTrainedTokenizerBase
    facts: EngineFacts
    change: float | None = None
    """The adapter's largest change of a log-probability; None without an adapter."""

    def generate(self, prompts: Sequence[str], **settings: Any) -> list[Generation]:
        return self.engine.generate(prompts, adapter=self.adapter, **settings)

    def answer_loss(self, pairs: Sequence[tuple[str, str]], names: Sequence[str] | None = None) -> list[AnswerLoss]:
        return self.engine.answer_loss(pairs, adapter=self.adapter, names=names)


class ServingBase:
    """The base that vLLM holds; another base, or an adapter it was not started for, restarts it."""

    def __init__(self, store: Store, runtime: Runtime) -> None:
        self.store, self.runtime = store, runtime
        self._key: tuple[str, str, int | None, frozenset[str] | None] | None = None
        self._engine: VllmEngine | None = None

    def writer(self, step: Evaluate) -> Served:
        """Start vLLM for `step`, unless it runs already.

        Raises:
            UsageError: see `plr.serving.check_engine`.
            ProvenanceError: an adapter of another source model, or one that holds a part of its own base.
            IntegrityError: an adapter that changes nothing.
            MissingDependencyError, ModelError, ResourceError: vLLM is not there or does not start.
        """
        from plr.serving.fits import lora_rank, lora_targets
        from plr.serving.package import require_vllm
        from plr.serving.vllm import VllmEngine

        check_engine(step)
        named = step.target
        if isinstance(named, Restore):
            step = step.replaced(target=as_served(named, self.store))
        folder, adapter, rank, targets = self._folder(step), None, None, None
        if isinstance(named, Restore) and isinstance(step.target, Restore) and not named.is_checkpoint:
            adapter = served_adapter(named, self.store, offline=self.runtime.offline)
            check_provenance(step.target.adapter, step.target.base, allow_mismatch=step.target.allow_mismatch)
            check_init(step.target, adapter)
            config = json.loads((adapter / "adapter_config.json").read_text())
            rank, targets = lora_rank(step.target.adapter.adapter.method, config), lora_targets([config])
        dtype = step.dtype or self.runtime.precision()
        key = (str(folder), dtype, rank, targets)
        if self._engine is None or self._key != key:
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
        facts: EngineFacts = {"dtype": self._engine.dtype, "version": require_vllm().__version__}
        change = None if adapter is None else _change(self._engine, step, adapter)
        tokenizer = load_tokenizer(tokenizer_ref(step.base), offline=self.runtime.offline, home=self.store.home)
        return Served(self._engine, adapter, tokenizer, facts, change)

    def _folder(self, step: Evaluate) -> Path:
        if isinstance(step.target, Restore) and step.target.is_checkpoint:
            return self.store.require(step.target).path
        if isinstance(step.base, Quantize):
            return self.store.require(step.base).path
        if isinstance(step.base, GivenBase):
            return base_folder(step.base, self.store, offline=self.runtime.offline)
        return model_path(step.base.model, offline=self.runtime.offline)

    def close(self) -> None:
        """Let the engine go, with the memory it holds."""
        if self._engine is not None:
            self._engine.close()
        self._engine = self._key = None


def _change(engine: VllmEngine, step: Evaluate, adapter: Path) -> float:
    """Prove that the adapter acts, on a few validation rows of the task it was trained on."""
    assert isinstance(step.target, Restore)
    rows = load_split(step.target.adapter.task or step.task, "validation").examples[:PROBE_ROWS]
    change = engine.adapter_change([(row.prompt, row.target) for row in rows], adapter)
    if change == 0.0:
        raise IntegrityError(
            f"the adapter {step.target.adapter.label} changes no log-probability of {step.base.label} in vLLM",
            expected="an adapter that acts",
            hint="it was trained for no step, its weights are all zero, or vLLM passes over it: try --engine hf",
        )
    return change
