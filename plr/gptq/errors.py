"""Errors of the GPTQ core: what was given, what was expected, what to do next.

GPTQError (ValueError)
|-- GroupSizeError   group_size does not divide in_features, or is no group size
|-- HessianError     a Hessian that cannot be factored, or that saw no data
|-- PackingError     codes or shapes the packed layout cannot hold
|-- FrozenWeightError  an attempt to write to the weight of a PackedLinear
|-- WalkError        a model or a calibration set the walk cannot quantize
`-- CheckpointError  a GPTQ checkpoint that cannot be written or read
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "FrozenWeightError",
    "GPTQError",
    "GroupSizeError",
    "HessianError",
    "PackingError",
    "WalkError",
]


class GPTQError(ValueError):
    """Any error of `plr.gptq`. The message reads: given; expected; next step."""

    def __init__(self, given: str, expected: str, next_step: str) -> None:
        self.given = given
        self.expected = expected
        self.next_step = next_step
        super().__init__(f"{given} Expected: {expected} Next: {next_step}")

    def __reduce__(self) -> tuple[type[GPTQError], tuple[str, str, str]]:
        return type(self), (self.given, self.expected, self.next_step)  # three arguments, not the joined message


class GroupSizeError(GPTQError):
    """`group_size` does not divide a layer's `in_features`."""


class HessianError(GPTQError):
    """The Hessian of a layer is not finite, not positive definite, or empty."""


class PackingError(GPTQError):
    """Codes out of range, or a shape that whole 32-bit words cannot hold."""


class FrozenWeightError(GPTQError):
    """The dense weight of a packed layer is a view of k-bit codes: writing to it would be lost."""


class WalkError(GPTQError):
    """The walk over the transformer blocks cannot go on."""


class CheckpointError(GPTQError):
    """A GPTQ checkpoint folder is incomplete, contradictory, or of an unknown format."""
