"""adapters: the methods that can be trained, and what each of them is."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from plr.cli.options import Json
from plr.cli.root import app
from plr.core.fingerprint import JsonObject

if TYPE_CHECKING:
    from plr.adapters import AdapterMethod

__all__: list[str] = []

FAMILIES = ("reparameterization", "selective", "additive", "prompt", "full")
Name = Annotated[
    str | None, typer.Argument(help="One method: its whole default configuration; all of them if left out.")
]


@app.command()
def adapters(name: Name = None, as_json: Json = False) -> None:
    """List the adapter methods: what each trains, whether it merges, at which bit widths, at which learning rate.

    Example: [bold]plr adapters dora[/bold]
    """
    from plr.adapters import adapters as registry
    from plr.cli.show import emit

    if name is not None:
        facts = {"name": name, **_facts(registry.get(name))}
        emit(facts) if as_json else _print_one(facts)
        return
    methods = [{"name": known, **_facts(registry.get(known), config=False)} for known in registry.names()]
    methods.sort(key=lambda facts: (FAMILIES.index(facts["family"]), facts["name"] != "lora", facts["name"]))
    others = _others(set(registry.names()))
    emit({"methods": methods, "others_of_peft": others}) if as_json else _print_all(methods, others)


def _facts(method: AdapterMethod, *, config: bool = True) -> JsonObject:
    from plr.adapters import Properties

    resolved = {"config": method.resolve({})} if config else {}
    unsaid = Properties(summary=type(method).__name__, family="additive")  # of a package that says nothing of itself
    return {**asdict(getattr(method, "properties", unsaid)), **resolved}


def _others(listed: set[str]) -> list[str]:
    """Methods that PEFT has beside those listed."""
    from plr.adapters.known import REFUSED, peft_names

    return [name for name in peft_names() if name not in {*listed, *REFUSED, "adaption_prompt"}]


def _print_all(methods: list[JsonObject], others: list[str]) -> None:
    from rich.table import Table

    from plr.cli.show import console

    table = Table("method", "trains", "merges", "bits", "tasks", "rate", box=None, header_style="bold", pad_edge=False)
    family = None
    for facts in methods:
        if facts["family"] != family:
            family = facts["family"]
            table.add_row(f"[dim]{family}[/dim]")
        table.add_row(
            f"  {facts['name']}",
            facts["summary"],
            "yes" if facts["merges"] else "no",
            "16 to 2" if facts["quantized"] else "16",
            "both" if len(facts["kinds"]) == 2 else facts["kinds"][0],
            f"x {facts['learning_rate']:g}",
        )
    console().print(table, highlight=False)
    console().print(
        "\ntasks: generation and classification. rate: the learning rate a preset gives, as a multiple of LoRA's.\n"
        f"By PEFT's own name and with PEFT's own defaults: {', '.join(others)}",
        highlight=False,
    )


def _print_one(facts: JsonObject) -> None:
    import json

    from rich.markup import escape

    from plr.cli.show import console

    out = console()
    out.print(f"[bold]{facts['name']}[/bold]  {facts['summary']}", highlight=False)
    lines = {
        "family": facts["family"],
        "merges": "into a 16-bit base" if facts["merges"] else "no: served beside its base",
        "trains on": "bases at 16, 8, 4, 3 and 2 bits" if facts["quantized"] else "bases at 16 bits",
        "tasks": " and ".join(facts["kinds"]),
        "rate": f"{facts['learning_rate']:g} times LoRA's, where a preset sets the learning rate",
        "source": facts["source"] or "not named",
    }
    for label, value in lines.items():
        out.print(f"  {label:10} {escape(value)}", highlight=False)
    for i, (key, value) in enumerate(facts["config"].items()):
        out.print(f"  {'config' if i == 0 else '':10} {key}: {escape(json.dumps(value))}", highlight=False)
    out.print(f"  {'try':10} plr train --bits 4 --adapter {facts['name']}", highlight=False)
