"""`plr adapters`: the list, one method, JSON, and no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from typer.testing import CliRunner

from plr.adapters import AdapterMethod, adapters
from plr.adapters.known import REFUSED, peft_names
from plr.cli.root import app, main
from plr.registry import Registry


def run(*words: str) -> str:
    done = CliRunner().invoke(app, ["adapters", *words], env={"COLUMNS": "140", "TERM": "dumb"})
    assert done.exit_code == 0, done.output
    return done.stdout


def test_every_method_is_listed_under_its_family() -> None:
    out = run()
    rows = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert set(adapters.names()) <= rows.keys()
    assert out.index("reparameterization") < out.index("  dora") < out.index("selective") < out.index("  sparse")
    assert "yes" in rows["lora"].split("layer")[1]
    assert "16 to 2" in rows["lora"]
    assert "generation" in rows["llama_adapter"]
    assert " no " in rows["prompt_tuning"]


def test_the_other_methods_of_peft_are_named() -> None:
    named = {name.strip() for name in run().rpartition("PEFT's own defaults:")[2].split(",")}
    assert named == set(peft_names()) - set(adapters.names()) - REFUSED.keys() - {"adaption_prompt"}


def test_json_holds_every_property() -> None:
    value = json.loads(run("--json"))
    assert value["methods"][0]["name"] == "lora"
    assert {entry["name"] for entry in value["methods"]} == set(adapters.names())
    assert value["methods"][0].keys() == {
        *("name", "summary", "family", "merges", "learning_rate", "kinds", "quantized", "source")
    }
    assert "waveft" in value["others_of_peft"]
    assert not set(value["others_of_peft"]) & set(adapters.names())


@pytest.mark.parametrize("name", adapters.names())
def test_one_method_shows_its_whole_configuration(name: str) -> None:
    out, method = run(name), adapters.get(name)
    assert method.properties.source in out
    for key in method.resolve({}):
        assert f"{key}: " in out
    value = json.loads(run(name, "--json"))
    assert value["config"] == method.resolve({})
    assert value["learning_rate"] == method.properties.learning_rate


def test_a_method_of_peft_that_is_not_listed() -> None:
    value = json.loads(run("waveft", "--json"))
    assert (value["name"], value["config"]["n_frequency"]) == ("waveft", 2592)


def test_a_misspelled_method(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["plr", "adapters", "dorra"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "did you mean dora" in " ".join(capsys.readouterr().err.split())


def test_a_method_of_a_package_that_says_nothing_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        def resolve(self, config: Any) -> dict[str, Any]:
            return {}

    known = Registry.names(adapters)
    monkeypatch.setattr(adapters, "_items", {**adapters._items, "silent": Silent()})
    assert adapters.names() == sorted([*known, "silent"])
    assert "  silent" in run()
    assert not isinstance(adapters.get("silent"), AdapterMethod)


def test_listing_takes_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['plr', 'adapters']\n"
        "from plr.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
