"""What GPTQ must cost on this machine, measured now with the same threads. A process of its own.

(a) one forward of the blocks over the calibration tokens, in the dtype that ours takes; (b) half a matrix product `X^T X` for
each distinct input (the Hessian is symmetric; q, k, v share one, gate and up another); (c) one Cholesky factorization of each,
and `n^3/3` operations for the inverse of the factor; (d) the column updates, `out in^2` operations a layer, at the speed of a
matrix product of that shape. Each is the best of several tries, so that other work on the machine raises it little. Loading,
packing and writing are left out: they are no part of the algorithm.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from bench.peers.clock import MARK, options
from bench.quality import BATCH_TOKENS, block_linears
from plr.bases.quantize import forward_dtype

__all__ = ["floor"]

LEAST = 0.2  # seconds that a product is repeated for


def fastest(work: Callable[[], Any]) -> float:
    """Seconds: the best of at least three runs, after one to warm up, within at least `LEAST` seconds."""
    work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < LEAST:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


class _End(Exception):
    """Ends a forward after the blocks."""


@torch.inference_mode()
def floor(model: Any, rows: Tensor, forward_dtype: torch.dtype | None = None) -> dict[str, float]:
    """Seconds of each part, and `total`; the forward under autocast to `forward_dtype`."""
    linears = block_linears(model)
    inputs: dict[str, int] = {}  # the first layer of each distinct input -> its features
    last: list[Any] = [None]

    def note(name: str) -> Any:
        def before(_: Any, args: tuple[Tensor, ...]) -> None:
            if args[0] is not last[0]:
                inputs[name] = args[0].shape[-1]
                last[0] = args[0]

        return before

    handles = [m.register_forward_pre_hook(note(name)) for name, m in linears.items()]
    blocks = max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
    groups = rows.split(max(1, BATCH_TOKENS // rows.shape[1]))

    def stop(*_: Any) -> None:
        raise _End

    blocks[-1].register_forward_hook(stop)

    def forward(batch: Tensor) -> None:
        with suppress(_End), torch.autocast("cpu", forward_dtype, enabled=forward_dtype is not None):
            model(batch, use_cache=False)

    forward(groups[0])
    for handle in handles:
        handle.remove()
    per_batch = groups[0].numel()
    once = fastest(lambda: forward(groups[0]))
    seconds = {"forward": once * rows.numel() / per_batch, "hessians": 0.0, "factors": 0.0, "columns": 0.0}
    for n, count in Counter(inputs.values()).items():
        X, H = torch.randn(per_batch, n), torch.empty(n, n)
        product = fastest(lambda X=X, H=H: torch.mm(X.t(), X, out=H))
        seconds["hessians"] += count * product / 2 * rows.numel() / per_batch
        H = X.t() @ X + per_batch * torch.eye(n)
        rate = 2 * n**2 * per_batch / product  # operations a second
        seconds["factors"] += count * (fastest(lambda H=H: torch.linalg.cholesky_ex(H)) + n**3 / 3 / rate)
    for (out, n), count in Counter((m.out_features, m.in_features) for m in linears.values()).items():
        E, U, Y = torch.randn(out, n), torch.randn(n, n), torch.empty(out, n)
        seconds["columns"] += count * fastest(lambda E=E, U=U, Y=Y: torch.mm(E, U, out=Y)) / 2
    seconds["total"] = sum(seconds.values())
    return seconds


def main(o: dict[str, Any]) -> dict[str, float]:
    dtype = "auto" if o["dtype"] == "native" else getattr(torch, o["dtype"])
    model = transformers.AutoModelForCausalLM.from_pretrained(o["model"], dtype=dtype).eval()
    rows = torch.tensor(json.loads(Path(o["rows"]).read_text(encoding="utf-8")))
    return floor(model, rows, forward_dtype(model, o["forward_dtype"]))


if __name__ == "__main__":
    print("\n" + MARK + json.dumps(main(options())))
