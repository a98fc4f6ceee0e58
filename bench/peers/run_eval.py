"""Ours and lm-eval's `hf` backend in turn on one model and the same prompts, and what their answers have in common."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from clock import Clock, options, preload
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import nn

from plr.lm import generate
from plr.lm.prepacked import prepacked
from plr.lm.tokens import encode_prompt
from plr.tasks import find_task
from plr.tasks.data.rows import load_split, resolve_task

NEAR = {"float32": 5e-3, "bfloat16": 0.5, "float16": 0.1}  # logits that lie no farther apart are a near tie
STEP, PREFILL = 64, 1024  # rows of the products of a decode step and of a prefill
Tokens = list[int]


class Runner:
    """Answers all prompts when it runs, and keeps the last answers."""

    texts: list[str]
    ids: list[Tokens]

    def run(self) -> None:
        raise NotImplementedError


class Ours(Runner):
    def __init__(self, model: Any, tokenizer: Any, prompts: list[str], stop: Sequence[str], o: dict[str, Any]) -> None:
        self.call = lambda: generate(
            model, tokenizer, prompts, max_new_tokens=o["max_new_tokens"], stop=stop, slots=o["slots"]
        )

    def run(self) -> None:
        answers = self.call()
        self.texts, self.ids = [a.text for a in answers], [list(a.ids) for a in answers]


class Theirs(Runner):
    def __init__(
        self, model: Any, tokenizer: Any, prompts: list[str], stop: Sequence[str], o: dict[str, Any], batch: int
    ) -> None:
        encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
        bare = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
        made: Any = HFLM  # registered by a decorator that hides its arguments
        self.lm = made(
            pretrained=model, tokenizer=tokenizer, batch_size=batch, device="cpu", add_bos_token=encoded != bare
        )
        self.lm._model_generate = self._kept(self.lm._model_generate)
        self.written: dict[tuple[int, ...], Tokens] = {}  # by prompt; texts alone do not show where two answers part
        self.prompts = [tuple(ids) for ids in encoded]
        until = {"until": list(stop), "max_gen_toks": o["max_new_tokens"], "do_sample": False}
        self.requests = [Instance("generate_until", {}, (prompt, dict(until)), i) for i, prompt in enumerate(prompts)]

    def _kept(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        def keeping(context: Any, attention_mask: Any, **others: Any) -> Any:
            whole = generate(context=context, attention_mask=attention_mask, **others)
            for row, mask, new in zip(context, attention_mask.bool(), whole.tolist(), strict=True):
                self.written[tuple(row[mask].tolist())] = new[len(row) :]
            return whole

        return keeping

    def run(self) -> None:
        self.written.clear()
        self.texts = self.lm.generate_until(self.requests, disable_tqdm=True)
        self.ids = [self.written[prompt] for prompt in self.prompts]


def texts_of(o: dict[str, Any]) -> tuple[list[str], tuple[str, ...]]:
    """The prompts, each after the same examples in lm-eval's form, and the stop strings."""
    spec = resolve_task(o["task"], data=o["data"])
    task = find_task(o["task"])
    o["max_new_tokens"] = o["max_new_tokens"] or task.max_new_tokens
    rows = load_split(spec, "test").examples[: o["docs"]]
    shots = load_split(spec, "train").examples[: o["shots"]] if o["shots"] else []
    before = "".join(f"{row.prompt}{row.target}\n\n" for row in shots)
    return [before + row.prompt for row in rows], tuple(task.stop)


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


@torch.inference_mode()
def linear_seconds(model: Any, rows: int, head: bool) -> float:
    """Of all linear layers on `rows` rows, the output layer with `head`; the best of three, laid out beforehand or not."""
    last = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and (head or m is not last)]
    inputs = {n: torch.randn(rows, n, dtype=model.dtype) for n in {m.in_features for m in layers}}

    def once() -> None:
        for layer in layers:
            layer(inputs[layer.in_features])

    best = min(timed(once)[0] for _ in range(3))
    with prepacked(model):
        return min(best, *(timed(once)[0] for _ in range(3)))


@torch.inference_mode()
def compare(model: Any, near: float, ours: Ours, theirs: Theirs) -> dict[str, Any]:
    """How many answers are equal, differ after a near tie, or differ otherwise."""
    found: dict[str, Any] = {"equal": 0, "near_ties": 0, "different": 0, "gaps": [], "examples": []}
    for i, prompt in enumerate(theirs.prompts):
        if ours.texts[i] == theirs.texts[i]:
            found["equal"] += 1
            continue
        a, b = ours.ids[i], theirs.ids[i]
        at = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
        gap = None
        if at is not None:
            logits = model(input_ids=torch.tensor([[*prompt, *a[:at]]])).logits[0, -1].float()
            gap = float(logits.max() - torch.minimum(logits[a[at]], logits[b[at]]))
            found["gaps"].append(gap)
        tie = gap is not None and gap <= near
        found["near_ties" if tie else "different"] += 1
        if not tie:
            found["examples"].append({"doc": i, "gap": gap, "ours": ours.texts[i], "theirs": theirs.texts[i]})
    return found


def shared(rows: list[tuple[int, ...]]) -> int:
    """How many first tokens all have in common, never a row's last."""
    low, high, most = min(rows), max(rows), min(map(len, rows)) - 1
    return next((i for i in range(most) if low[i] != high[i]), most) if len(rows) > 1 else 0


def main(o: dict[str, Any]) -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    preload(o["model"])
    clock = Clock()
    model = transformers.AutoModelForCausalLM.from_pretrained(o["model"], dtype=getattr(torch, o["dtype"])).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(o["model"])
    prompts, stop = texts_of(o)
    brief = {**o, "max_new_tokens": 4}
    Ours(model, tokenizer, prompts[:2], stop, brief).run()  # what is made on first use
    Theirs(model, tokenizer, prompts[:2], stop, brief, 2).run()
    step, prefill = linear_seconds(model, STEP, True) / STEP, linear_seconds(model, PREFILL, False) / PREFILL
    ours = Ours(model, tokenizer, prompts, stop, o)
    peers = {str(batch): Theirs(model, tokenizer, prompts, stop, o, batch) for batch in o["peer_batches"]}
    runs: dict[str, Runner] = {"ours": ours, **peers}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    order, best = list(runs), ""
    for number in range(o["rounds"]):
        for name in order:
            times[name].append(timed(runs[name].run))
            print(name, "round", number, times[name][-1], flush=True)
        if number == 0:  # the fastest batch size goes on
            best = min(peers, key=lambda name: times[name][0][0])
            order = ["ours", best]
        order.reverse()
    near = NEAR[o["dtype"]]
    answers = {name: compare(model, near, ours, peer) for name, peer in peers.items()}
    rows = peers[best].prompts
    common = shared(rows)
    computed = common + sum(len(row) - common for row in rows)
    generated = sum(map(len, ours.ids))
    clock.report(
        wall={name: [wall for wall, _ in found] for name, found in times.items()},
        cpu={name: [cpu for _, cpu in found] for name, found in times.items()},
        docs=len(prompts),
        shots=o["shots"],
        answers=answers[best],
        answers_by_batch=answers,
        max_new_tokens=o["max_new_tokens"],
        stop=stop,
        tokens={
            "generated": generated,
            "prompt_mean": sum(map(len, rows)) / len(rows),
            "shared": common,
            "computed": computed,
        },
        floor={
            "seconds": computed * prefill + generated * step,
            "rows": STEP,
            "rate": 1 / step,
            "prefill_rate": 1 / prefill,
        },
    )


if __name__ == "__main__":
    main(options())
