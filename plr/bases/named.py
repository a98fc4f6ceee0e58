"""The name of a base by which others can resolve it: of the hub, of a folder or file of the user's, never a place in a store."""

from __future__ import annotations

from plr.core.specs import GivenBase, ModelRef, Quantize, Source

__all__ = ["name_of", "public_name"]


def public_name(base: Source | Quantize | GivenBase) -> tuple[str, str | None]:
    """Name the model that a saved adapter goes on, and its commit on the hub.

    A base that plr quantized lies in a store, where nobody else looks: the model it was made from is named. A checkpoint that
    was given is named itself.
    """
    return name_of(base.checkpoint if isinstance(base, GivenBase) else base.model)


def name_of(model: ModelRef) -> tuple[str, str | None]:
    """Name a model, and its commit if it is of the hub.

    >>> name_of(ModelRef(kind="hub", name="org/name", revision="abc"))
    ('org/name', 'abc')
    >>> name_of(ModelRef(kind="embedded", name="tiny", revision="1"))
    ('embedded:tiny', None)
    """
    if model.kind == "hub":
        return model.name, model.revision
    return model.path or f"{model.kind}:{model.name}", None
