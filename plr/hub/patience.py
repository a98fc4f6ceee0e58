"""Limits of waiting for the hub, and the error at the end of it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from plr.errors import ConfigError

__all__ = ["Patience", "RequestFailed"]


class RequestFailed(Exception):
    """A request that stays without a usable answer.

    `reached` says whether the host has answered anything, `certificate` whether its certificate was refused, `hint` what
    would help.
    """

    def __init__(
        self, message: str, *, reached: bool = True, certificate: bool = False, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.reached, self.certificate, self.hint = reached, certificate, hint


@dataclass(frozen=True)
class Patience:
    """Limits of waiting, by cause; times in seconds."""

    silence: float = 20.0
    """Seconds without a byte; half of it for a connection. 10 s at most for that, and for a hub that has never answered."""
    tries: int = 5
    """Tries in a row without progress."""
    pause: float = 1.0
    """Seconds before the second try; doubled each time."""
    longest_pause: float = 60.0
    """Whoever asks for a longer one (`Retry-After`) is not waited for."""
    slowest: float = 1024.0
    """Bytes a second, over `window` seconds."""
    window: float = 60.0

    @classmethod
    def of_environment(cls) -> Patience:
        """Return the defaults, or `PLR_HUB_TIMEOUT` (seconds of silence) and `PLR_HUB_TRIES`.

        Raises:
            ConfigError: one of them is no positive number.
        """
        silence, tries = _number("PLR_HUB_TIMEOUT", cls.silence), _number("PLR_HUB_TRIES", cls.tries)
        return cls(silence=silence, tries=max(1, int(tries)), window=min(cls.window, 3 * silence))


def _number(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else float(default)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"{name} is {text!r}", expected="a positive number")
    return value
