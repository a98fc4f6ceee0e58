"""Models that answer, against evaluations and transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from given import save_adapter
from transformers import AutoModelForCausalLM, AutoTokenizer

from plr import Lab
from plr.core.specs import Restore
from plr.core.store import Artifact
from plr.embedded import tiny_path
from plr.errors import UsageError
from plr.evaluation.samples import read_samples
from plr.evaluation.speaker import Sampling

QUICK = ["train.epochs=1", "train.train_limit=32", "quantize.samples=8"]
PROMPT = "Ann has 4 pens."


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("home"), dtype="float32", device="cpu", offline=True)


@pytest.fixture(scope="module")
def trained(lab: Lab) -> Artifact:
    return lab.train(bits=4, task="tiny_math", overrides=QUICK)


@pytest.mark.parametrize("bits", [None, 16])
def test_the_answer_to_a_row_is_the_one_on_record(lab: Lab, trained: Artifact, bits: int | None) -> None:
    target = trained if bits is None else lab.restore(trained, bits=bits)
    result = lab.evaluate(target, limit=6)
    for record in read_samples(result.path)[:3]:
        asked = lab.row(str(target.path), "tiny_math", number=record["doc_id"])
        assert asked.prompt == record["arguments"]["gen_args_0"]["arg_0"]
        assert asked.row.target == record["target"]
        with lab.speaker(lab.target(str(target.path))) as one:
            answer = one.answer(asked.prompt, max_new_tokens=asked.cell.step.max_new_tokens, stop=asked.cell.stops)
        assert answer.text == record["resps"][0][0]
        scores = asked.scores(answer)
        assert {name: score for name, (score, _) in scores.items()} == {name: record[name] for name in scores}


def test_a_source_writes_what_transformers_writes(lab: Lab) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_path())
    inputs = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
    wanted = tokenizer.decode(
        model.generate(**inputs, do_sample=False, max_new_tokens=12)[0][inputs["input_ids"].shape[1] :],
        skip_special_tokens=True,
    )
    with lab.speaker(lab.target("embedded:tiny")) as one:
        assert one.answer(PROMPT, max_new_tokens=12).text == wanted
        pieces: list[str] = []
        streamed = one.answer(PROMPT, max_new_tokens=12, on_text=pieces.append)
        assert "".join(pieces) == streamed.text == wanted
        assert not one.has_template
        with pytest.raises(UsageError, match=r"has no chat template"):
            one.chat_prompt([{"role": "user", "content": "hello"}])


def test_drawn_answers_follow_the_seed(lab: Lab) -> None:
    with lab.speaker(lab.target("embedded:tiny")) as one:
        state = torch.random.get_rng_state()
        texts = [one.answer(PROMPT, max_new_tokens=12, sampling=Sampling(1.5, 1.0, seed)).text for seed in (1, 1, 2, 3)]
        assert torch.equal(state, torch.random.get_rng_state())
    assert texts[0] == texts[1]
    assert len({*texts}) > 1
    for wrong in ({"temperature": -1.0}, {"top_p": 0.0}):
        with pytest.raises(UsageError):
            Sampling(**wrong)


def test_an_adapter_of_another_tool_and_a_checkpoint_answer(lab: Lab, trained: Artifact, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "theirs")
    target = lab.target(str(adapter))
    assert isinstance(target, Restore)
    assert target.base.bits == 16
    with lab.speaker(target) as one, lab.speaker(lab.target("embedded:tiny")) as bare:
        assert one.answer(PROMPT, max_new_tokens=8).tokens > 0
        assert one.model is not bare.model
    merged = lab.restore(trained, bits=16, merge=True)
    with lab.speaker(lab.target(str(merged.path))) as one:
        assert one.answer(PROMPT, max_new_tokens=4).tokens > 0


def test_rows_that_are_not_there(lab: Lab, trained: Artifact) -> None:
    with pytest.raises(UsageError, match=r"tiny_math has no row 99999 in test"):
        lab.row(str(trained.path), "tiny_math", number=99999)


def test_a_plain_model_is_scored_as_the_cell_of_a_study(lab: Lab, tmp_path: Path) -> None:
    from plr.study import Study, study_config
    from plr.study.resolve import Resolver

    config = {
        "name": "s",
        "preset": "tiny",
        "adapters": [],
        "baselines": True,
        "restore_bits": [16],
        "tasks": ["tiny_math"],
    }
    config |= {"evaluate": {"limit": 5, "max_new_tokens": 4}}
    cell = Study(study_config(config), resolver=Resolver(offline=True), runtime=lab.runtime()).cells[0]
    assert lab.result("embedded:tiny", "tiny_math", limit=5, max_new_tokens=4).fingerprint == cell.step.fingerprint
