"""The embedded base: a small Llama of our own, its corpus and its tasks' rows, so that everything runs offline."""

from __future__ import annotations

from pathlib import Path

__all__ = ["tiny_path"]


def tiny_path() -> Path:
    """Return the folder of `embedded:tiny`, a Hugging Face checkpoint with its tokenizer."""
    return Path(__file__).resolve().parent / "tiny"
