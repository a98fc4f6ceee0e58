"""Matrix products in float32 on a CPU, by whichever of torch's two libraries is the faster there.

torch gives float32 products to MKL, which keeps to AVX2 on processors that are not Intel's; oneDNN, which torch brings for
bfloat16, uses what the processor has. On an AMD EPYC with AVX-512 it took 0.44 of MKL's time for 256 rows and more, 0.5 for 64;
held to AVX2 it took 0.85 to 0.95 of it. Both sum in float32, in another order.
"""

from __future__ import annotations

import logging
import platform
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from plr.gptq.typed import pointwise, unviewed

__all__ = ["LEAST_ROWS", "linear", "takes"]

log = logging.getLogger(__name__)

LEAST_ROWS = 64
"""Rows of a product; with fewer the call costs more than it saves."""
LEAST = 64 * 64
"""Weights of a product."""


def takes(x: Tensor, W: Tensor) -> bool:
    """Tell whether oneDNN is to multiply `x [.., in]` by `W [out, in]`."""
    return (
        x.device.type == "cpu" == W.device.type
        and x.dtype == torch.float32 == W.dtype
        and W.numel() >= LEAST
        and x.numel() >= LEAST_ROWS * W.shape[1]
        and (W.is_contiguous() or W.t().is_contiguous())  # a part of a matrix takes oneDNN a thousand times as long
        and multiplies()
    )


def linear(x: Tensor, W: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply `x [.., in] -> x W^T + bias [.., out]`, both of any strides; not differentiable by itself."""
    if not takes(x, W):
        return F.linear(x, W, bias)
    rows = pointwise()(x.reshape(-1, x.shape[-1]), W, bias, "none", [], "")
    return unviewed(rows, [*x.shape[:-1], W.shape[0]])


@cache
def multiplies() -> bool:
    """Try, once a process, whether this torch has oneDNN's product on this CPU, and that it is one in float32."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    a = torch.linspace(-1, 1, 64 * 64).reshape(64, 64)
    try:
        product = pointwise()(a, a.t(), None, "none", [], "")
    except (RuntimeError, AttributeError) as refusal:  # AttributeError: a torch that was built without it
        log.info("products in float32 stay with BLAS: %s", str(refusal).partition("\n")[0])
        return False
    exact = a.double() @ a.double()
    return bool((product.double() - exact).abs().max() <= 1e-5 * exact.abs().max())
