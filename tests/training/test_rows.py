"""A training step over rows that stand one behind the other has the losses and gradients of the padded, plain one."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from architectures import DECODERS, architecture
from letters import Letters
from tiny_models import tiny_model
from torch import Tensor, nn
from torch.nn import functional as F

from plr.adapters import adapters
from plr.bases.load import Loaded, load_source
from plr.bases.resolve import resolve_model
from plr.gptq import quantize_model
from plr.lm.row_attention import RowAttention, why_not_rows
from plr.lm.support import evaluating, prompt_learning
from plr.tasks import Example
from plr.training import products as fast
from plr.training.loss import ELEMENTS, summed_cross_entropy
from plr.training.objectives import IGNORE, AnswerCollator, AnswerObjective
from plr.training.products import Quick

TEXTS = [("ab" * 9, "cd" * 3), ("ab" * 9, "ef" * 3), ("hi" * 7, "k"), ("lmno", "pqrst" * 4), ("u", "v")]
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def objective(model: nn.Module) -> AnswerObjective:
    rows = [Example(f"train-{i}", {}, prompt, target) for i, (prompt, target) in enumerate(TEXTS)]
    made = AnswerObjective(Loaded(model, Letters()), rows, rows[:1], 64)  # type: ignore[arg-type]
    made.bind(model)
    return made


def noisy(model: nn.Module) -> nn.Module:
    """The trained parameters moved off their first values: an adapter begins at nothing."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.05 * torch.randn(p.shape, generator=generator)
    return model


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def plainly(model: nn.Module, work: AnswerObjective) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of a padded batch by torch's and PEFT's own code alone."""
    batch = AnswerCollator(0, position_ids=True, right=prompt_learning(model) > 0)(work.rows)
    labels = batch.pop("labels")
    batch.pop("shift_labels")
    logits = model(**batch, use_cache=False).logits[:, -labels.shape[1] - 1 : -1].float()
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")
    loss.backward()
    return loss.item(), gradients(model)


def step(model: nn.Module, work: AnswerObjective) -> tuple[float, dict[str, Tensor]]:
    batch = work.collate(work.rows)
    labels = batch.pop("labels")
    batch.pop("shift_labels")
    with work.serving():
        loss = work.loss(model, batch, labels)[0]
        loss.backward()
    return loss.item(), gradients(model)


def assert_same(model: nn.Module, work: AnswerObjective, tolerance: float = 1e-5) -> None:
    (loss, found), (wanted, plain) = step(model, work), plainly(model, work)
    assert loss == pytest.approx(wanted, rel=tolerance)
    assert found.keys() == plain.keys()
    assert plain
    for name, gradient in plain.items():
        scale = gradient.abs().max().clamp(min=1e-3)
        assert ((found[name] - gradient).abs().max() / scale) <= tolerance * 10, name


@pytest.fixture(autouse=True)
def small_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers of these models are smaller than what is worth it."""
    monkeypatch.setattr("plr.gptq.products.LEAST", 1)
    monkeypatch.setattr("plr.gptq.products.LEAST_ROWS", 1)


CONFIGS: dict[str, dict[str, Any]] = {
    "adalora": {"init_r": 6, "target_r": 4},
    "bitfit": {"add_biases": True, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
}
"""What a method needs on 128 columns."""


def blocks(bits: int) -> nn.Module:
    """The first two blocks of the embedded base."""
    model: Any = load_source(resolve_model("embedded:tiny"), dtype=torch.float32, device="cpu").model
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2
    if bits < 16:
        quantize_model(model, [], bits=bits, group_size=-1, method="rtn")
    return model


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("name", adapters.names())
def test_every_method(name: str, bits: int) -> None:
    method = adapters.get(name)
    if bits < 16 and not method.properties.quantized:
        pytest.skip(f"{name} trains the weights themselves")
    config = method.resolve(CONFIGS.get(name, {}))
    model = noisy(method.attach(blocks(bits), config, seed=0, kind="generation", steps=5)).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    work = objective(model)
    assert (work.attention is None) == (prompt_learning(model) > 0)
    assert_same(model, work)


ONE_BEHIND_THE_OTHER = {
    "llama", "qwen2", "qwen3", "gemma", "phi3", "gpt_neox", "olmo", "olmo2", "starcoder2", "cohere", "granite", "smollm3",
}  # fmt: skip
"""At the least."""


@pytest.mark.parametrize("name", DECODERS)
def test_every_architecture(name: str) -> None:
    targets = (
        ["q_proj"] if name == "llama4_text" else "all-linear"
    )  # its router, a linear layer too, returns two things
    try:
        config = peft.LoraConfig(**LORA | {"target_modules": targets})
        model = noisy(peft.get_peft_model(architecture(name).float(), config)).eval()  # no dropout
    except ValueError:
        pytest.skip("PEFT finds no linear layer in it")
    work = objective(model)
    assert name not in ONE_BEHIND_THE_OTHER or work.attention is not None, why_not_rows(model, 40)
    loss = step(model, work)[0]
    one_by_one = 0.0
    for i in range(len(work.rows)):
        alone = AnswerCollator(0, position_ids=True)([work.rows[i]])
        labels = alone.pop("labels")
        alone.pop("shift_labels")
        known = {key: value for key, value in alone.items() if key != "position_ids"}
        with evaluating(model):
            logits = model(**known, use_cache=False).logits[:, -labels.shape[1] - 1 : -1]
            one_by_one += F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="sum").item()
    if work.attention is not None:
        assert loss == pytest.approx(one_by_one, rel=1e-4)


@pytest.mark.parametrize("name", ["mistral", "gemma3_text"])
def test_a_window_that_closes_over_a_row_is_padded(name: str) -> None:
    model = architecture(name)
    assert why_not_rows(model, 8) is None
    assert "SlidingWindow" in str(why_not_rows(model, 9))


def test_a_forward_that_is_computed_anew_for_the_backward() -> None:
    model = noisy(peft.get_peft_model(tiny_model("llama", vocab_size=32), peft.LoraConfig(**LORA))).train()
    work = objective(model)
    wanted = step(model, work)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = step(model, work)
    assert again[0] == pytest.approx(wanted[0], rel=1e-6)
    for name, gradient in wanted[1].items():
        torch.testing.assert_close(again[1][name], gradient, rtol=1e-5, atol=1e-6)


def test_a_model_that_looks_past_its_row_is_padded(caplog: pytest.LogCaptureFixture) -> None:
    """A mean over all tokens of a row would be one over all rows."""
    model = peft.get_peft_model(tiny_model("llama", vocab_size=32), peft.LoraConfig(**LORA))
    layer = model.get_base_model().model.layers[0]

    def mixing(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return output + output.mean(1, keepdim=True)

    layer.mlp.register_forward_hook(mixing)
    with caplog.at_level("INFO"):
        work = objective(model)
    assert work.attention is None
    assert "rows are padded to batches: their loss is" in caplog.text
    assert isinstance(work.collator, AnswerCollator)


def test_a_layer_that_attends_elsewhere_is_found() -> None:
    model = tiny_model("llama", vocab_size=32)
    attention = RowAttention(model)
    model.model.layers[1].self_attn.config = tiny_model("llama", vocab_size=32).config
    with attention.serving(), evaluating(model):
        attention.plan([3, 2])
        model(input_ids=torch.tensor([[4, 5, 6, 7, 8]]), position_ids=torch.tensor([[0, 1, 2, 0, 1]]), use_cache=False)
        with pytest.raises(Exception, match="1 of its 2 layers"):
            attention.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [1, 7, 2**20])
def test_cross_entropy(dtype: torch.dtype, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ELEMENTS, "cpu", block)
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(11, 5, generator=generator)).to(dtype).requires_grad_()
    targets = torch.randint(5, (11,), generator=generator)
    loss = summed_cross_entropy(logits, targets)
    (2 * loss).backward()
    found, logits.grad = logits.grad, None
    wanted = F.cross_entropy(logits.float(), targets, reduction="sum")
    (2 * wanted).backward()
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(found, logits.grad)


def test_a_layer_whose_weight_is_trained() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 16)
    x = torch.randn(3, 5, 24, requires_grad=True)

    def run() -> list[Tensor]:
        layer.zero_grad()
        x.grad = None
        layer(x).square().sum().backward()
        return [x.grad, layer.weight.grad, layer.bias.grad]  # type: ignore[list-item]

    wanted = run()
    with Quick(layer).serving():
        assert "forward" in layer.__dict__
        found = run()
    assert "forward" not in layer.__dict__
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


OWN_WAY: dict[str, dict[str, Any]] = {
    "dropout": {"lora_dropout": 0.5},
    "dora": {"use_dora": True},
    "bias": {"lora_bias": True},
}


@pytest.mark.parametrize("case", [None, *OWN_WAY, "hook", "merged", "disabled"])
def test_which_layers_take_the_short_way(case: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    product = fast._LoraProduct.apply
    monkeypatch.setattr(fast._LoraProduct, "apply", lambda *args: (calls.append(1), product(*args))[1])
    model: Any = peft.get_peft_model(
        tiny_model("llama", vocab_size=32),
        peft.LoraConfig(r=4, target_modules=["q_proj"], **OWN_WAY.get(case or "", {})),
    )
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    if case == "hook":
        layer.base_layer.register_forward_hook(lambda *_: None)
    if case == "merged":
        layer.merge()
    if case == "disabled":
        layer.enable_adapters(False)
    with Quick(model).serving():
        layer(torch.randn(2, 3, 32))
    assert bool(calls) is (case is None)


def test_evaluation_goes_the_plain_way() -> None:
    model: Any = noisy(peft.get_peft_model(tiny_model("llama", vocab_size=32), peft.LoraConfig(**LORA)))
    ids = torch.tensor([[4, 5, 6]])
    with evaluating(model):
        wanted = model(input_ids=ids).logits
        with Quick(model).serving():
            assert torch.equal(model(input_ids=ids).logits, wanted)
