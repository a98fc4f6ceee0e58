"""The base that is in memory for the cells of a job, and the adapter that is on it at the moment."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from plr.bases.load import Loaded, load_base
from plr.core.fingerprint import canonical_json
from plr.core.precision import Precision
from plr.core.runtime import Runtime
from plr.core.specs import GivenAdapter, Restore
from plr.core.store import Store
from plr.evaluation.cell import OpenCell
from plr.evaluation.writers import Served, ServingBase
from plr.gptq.blocks import replace_module
from plr.lm.classify import Probe, probe
from plr.restoration.attach import attach, probe_texts
from plr.restoration.fit import embedding_rows, fit
from plr.restoration.served import as_served, load_served, served_adapter
from plr.tasks import HeadSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Attached", "BaseHolder"]


@dataclass(frozen=True)
class Attached:
    """A base in this process, with the adapter of a cell on it where the cell has one."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    head_is_new: bool
    """True where the classification head is a random start and comes from no checkpoint."""
    largest_logit_change: float | None = None
    """The adapter's largest change of a logit on a few rows of the task it was trained on; None without an adapter."""
    partial: Mapping[str, int] = field(default_factory=dict[str, int])
    """Counts of the adapter's tensors that do not fit its base; empty for a whole adapter."""


class BaseHolder:
    """The base that is in memory, and the adapter on it. Asking for another base lets the first one go."""

    def __init__(self, store: Store, runtime: Runtime) -> None:
        self.store, self.runtime = store, runtime
        self._key: tuple[str, HeadSpec | None, Precision | None] | None = None
        self._loaded: Loaded | None = None
        self._probes: dict[str, Probe] = {}
        self._serving = ServingBase(store, runtime)

    def base(self, cell: OpenCell) -> Loaded:
        """Load the base of `cell` with the head that its task asks for, unless it is in memory."""
        step, runtime = cell.step, self.runtime.computing_in(cell.step.dtype)
        self._serving.close()
        if isinstance(step.target, Restore) and step.target.is_checkpoint:
            self._key = self._loaded = None
            return load_served(step.target, self.store, runtime, cell.head)
        base = as_served(step.target, self.store).base if isinstance(step.target, Restore) else step.base
        key = (base.fingerprint, cell.head, step.dtype)
        if self._key != key or self._loaded is None:
            self._loaded = None  # before the next is loaded
            self._loaded = load_base(base, self.store, runtime, head=cell.head)
            self._key, self._probes = key, {}
        return self._loaded

    def writer(self, cell: OpenCell) -> Served:
        """Start vLLM with the base of `cell`; the one in this process is let go."""
        self._key = self._loaded = None
        return self._serving.writer(cell.step)

    @contextmanager
    def attached(self, cell: OpenCell) -> Generator[Attached]:
        """Put the adapter of `cell` on its base inside the context.

        Until it is off, no other cell gets the base: after a failure it may carry a part of an adapter, and is loaded anew.
        """
        loaded, target = self.base(cell), cell.step.target
        if not isinstance(target, Restore) or target.is_checkpoint:
            yield Attached(loaded.model, loaded.tokenizer, loaded.head_is_new)
            return
        from plr.adapters import adapters

        rows = embedding_rows(loaded)
        folder = served_adapter(target, self.store, offline=self.runtime.offline)
        target = as_served(target, self.store)
        clean, self._key = self._key, None
        fitted = fit(loaded, target.adapter, folder)
        if embedding_rows(fitted) != rows:
            clean = None  # the base has another vocabulary from here on: the next cell gets it anew
        base: Any = loaded.model
        modules: dict[str, nn.Module] = dict(base.named_modules())
        put_on = attach(fitted, target, folder, "cell", self._probe(fitted, target))
        try:
            yield Attached(put_on.model, fitted.tokenizer, loaded.head_is_new, put_on.change, put_on.partial)
        finally:
            method = adapters.get(target.adapter.adapter.method)
            loaded.model = cast("PreTrainedModel", method.unload(put_on.model, "cell"))
            # A head that came with the adapter must go too: every module is again the one it was, parents first.
            for name, module in modules.items():
                if name and loaded.model.get_submodule(name) is not module:
                    replace_module(loaded.model, name, module)
            self._key = clean

    def _probe(self, loaded: Loaded, target: Restore) -> Probe | None:
        """Run the base alone on the texts of a task, once for all adapters of that task; None where an adapter has its own."""
        if isinstance(target.adapter, GivenAdapter):
            return None
        key = canonical_json(target.adapter.task.identity())
        if key not in self._probes:
            self._probes[key] = probe(loaded.model, loaded.tokenizer, probe_texts(target))
        return self._probes[key]
