"""Other engines that serve what plr made, and what they cannot serve.

`plr.serving.vllm` is imported where it is used: it loads torch.
"""

from plr.serving.check import check_engine
from plr.serving.fits import why_not_vllm

__all__ = ["check_engine", "why_not_vllm"]
