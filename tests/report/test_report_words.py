"""Sentences follow from the numbers, and claim nothing that they do not show."""

from __future__ import annotations

from plr.report.cells import Line, ResultSet
from plr.report.verdicts import deployment, gain_verdicts
from plr.report.words import deploy_words, headline, line_words, sample_words, stop_words
from plr.report.words import gain_words as words_of_gains
from plr.study.cells import Measured


def bits(right: int, n: int = 400) -> str:
    return "1" * right + "0" * (n - right)


def only(cells):
    results = ResultSet(cells)
    return results, results.lines()[0]


def deploy(results: ResultSet, line: Line) -> tuple[tuple[int, int] | None, str]:
    verdict = deployment(results, line)
    return verdict.place, deploy_words(verdict)


def gain_words(results: ResultSet, line: Line) -> str:
    return words_of_gains(gain_verdicts(results, line))


def test_deploy_prefers_fewer_bits_when_the_loss_is_not_detected(cell):
    cells = [cell(16, 16, bits(300)), cell(4, 16, bits(299)), cell(4, 4, bits(200))]
    place, text = deploy(*only(cells))
    assert place == (4, 16)
    assert text.startswith(
        "Train on 4 bits and deploy on 16: 74.75 %, not detectably below the best cell k = 16, l = 16 (75.00 %)"
    )
    assert "-0.25 points, 95 % interval -0.75 to 0.00" in text


def test_deploy_keeps_the_best_when_fewer_bits_lose(cell):
    place, text = deploy(*only([cell(16, 16, bits(300)), cell(4, 4, bits(270)), cell(4, 16, bits(280))]))
    assert place == (16, 16)
    assert "no cell with fewer bits is shown to stay within 5 points" in text


def test_deploy_does_not_take_a_small_sample_for_equality(cell):
    # 6 against 5 of 8: no difference is detectable, and none is ruled out
    assert deploy(*only([cell(16, 16, "11111100"), cell(4, 4, "11111000")]))[0] == (16, 16)


def test_deploy_breaks_ties_towards_fewer_bits(cell):
    place, text = deploy(*only([cell(16, 16, bits(9)), cell(4, 4, bits(9)), cell(4, 16, bits(9))]))
    assert place == (4, 4)
    assert "the one with the fewest bits" in text


def test_deploy_at_the_floor_names_no_cell(cell):
    place, text = deploy(*only([cell(16, 16, bits(1)), cell(4, 4, bits(0))]))
    assert place is None
    assert "at the floor" in text
    assert "answer loss" in text


def test_deploy_by_loss_takes_the_lowest(cell):
    cells = [cell(k, k, losses=loss, primary="answer_loss") for k, loss in ((16, [0.2, 0.4]), (4, [0.1, 0.3]))]
    assert deploy(*only(cells))[0] == (4, 4)


def test_gain_words_name_gains_losses_and_what_is_not_detectable(cell):
    cells = [
        cell(8, 8, bits(300)), cell(8, 16, bits(301)),
        cell(4, 4, bits(200)), cell(4, 16, bits(260)),
        cell(3, 3, bits(200)), cell(3, 16, bits(140)),
    ]  # fmt: skip
    assert gain_words(*only(cells)) == (
        "Restoring to 16 bits gains at k = 4 (+15.00 points); loses at k = 3 (-15.00 points); "
        "no difference is detectable at k = 8."
    )


def test_gain_words_when_nothing_is_significant(cell):
    cells = [cell(4, 4, "1100"), cell(4, 16, "1110")]
    assert gain_words(*only(cells)) == "No difference is detectable at k = 4."


def test_gain_that_only_an_uncorrected_test_finds_is_not_claimed(cell):
    # 7 of 7 discordant: p = 0.0156 alone, 0.0625 among four
    cells = [cell(k, ell, bits(100 if k == ell or k != 4 else 107)) for k in (8, 4, 3, 2) for ell in (k, 16)]
    assert gain_words(*only(cells)) == (
        "At k = 4 the difference is +1.75 points (+0.50 to +3.25), not significant after correction for 4 tests (p 0.062); "
        "no difference is detectable at k = 8, 3, 2."
    )
    assert [(v.outcome, v.suggestive) for v in gain_verdicts(*only(cells))] == [
        (0, False),
        (0, True),
        (0, False),
        (0, False),
    ]
    assert gain_words(*only(cells[2:4])).startswith("Restoring to 16 bits gains at k = 4 (+1.75 points)")


def test_gain_of_a_loss_is_its_fall(cell):
    cells = [
        cell(4, 4, losses=[0.5] * 40, primary="answer_loss"),
        cell(4, 16, losses=[0.4] * 40, primary="answer_loss"),
    ]
    assert gain_words(*only(cells)) == "Restoring to 16 bits gains at k = 4 (-0.1000 nats/token)."


def test_several_seeds_need_the_widened_interval(cell):
    cells = [c for seed in (0, 1) for c in (cell(4, 4, bits(200), seed=seed), cell(4, 16, bits(260), seed=seed))]
    assert gain_words(*only(cells)) == "Restoring to 16 bits gains at k = 4 (+15.00 points)."


def test_headline_counts_comparisons_of_several_lines(cell):
    cells = [
        c for task, after in (("a", 260), ("b", 140), ("c", 200))
        for c in (cell(4, 4, bits(200), task=task), cell(4, 16, bits(after), task=task))
    ]  # fmt: skip
    assert headline(ResultSet(cells)) == (
        "Restoring to 16 bits gains in 1 and loses in 1 of 3 comparisons; in 1 no difference is detectable."
    )
    assert [name for name, _ in line_words(ResultSet(cells))] == ["a", "b", "c"]


def test_headline_when_nothing_is_significant(cell):
    cells = [c for task in "ab" for c in (cell(4, 4, "10", task=task), cell(4, 16, "11", task=task))]
    assert headline(ResultSet(cells)) == "Restoring to 16 bits makes no detectable difference in any of 2 comparisons."


def test_headline_counts_intervals_that_correction_takes_back(cell):
    # 7 of 7 discordant in one task of four: p = 0.0156 alone, 0.0625 among four
    cells = [
        c for task, after in (("a", 107), ("b", 100), ("c", 100), ("d", 100))
        for c in (cell(4, 4, bits(100), task=task), cell(4, 16, bits(after), task=task))
    ]  # fmt: skip
    assert headline(ResultSet(cells)) == (
        "Restoring to 16 bits makes no detectable difference in any of 4 comparisons after correction, though the "
        "interval of 1 leaves out 0."
    )


def test_gains_and_what_correction_takes_back_are_one_sentence(cell):
    cells = [
        c
        for k, after in ((8, 160), (4, 107), (3, 100), (2, 100))
        for c in (cell(k, k, bits(100)), cell(k, 16, bits(after)))
    ]
    cells.append(cell(16, 16, bits(100)))  # its four contrasts are in the family too
    first, second, third = gain_words(*only(cells)).split("; ")
    assert first == "Restoring to 16 bits gains at k = 8 (+15.00 points)"
    assert second == (
        "at k = 4 the difference is +1.75 points (+0.50 to +3.25), not significant after correction for 8 tests (p 0.094)"
    )
    assert third == "no difference is detectable at k = 3, 2."


def test_headline_of_one_line_is_what_to_deploy(cell):
    results = ResultSet([cell(16, 16, bits(300)), cell(4, 4, bits(100))])
    assert headline(results) == deploy_words(deployment(results, results.lines()[0]))


def test_headline_when_all_failed(cell):
    assert headline(ResultSet([cell(4, 4, error="gone")])).startswith("No cell with an adapter has a score")


def test_stop_is_named_where_strict_falls_below_first_answer(cell):
    cells = [
        cell(3, 3, bits(96), strict=bits(96), ended=bits(400)),
        cell(3, 16, bits(96), strict=bits(16), ended=bits(100)),
    ]
    text, why = stop_words(ResultSet(cells))
    assert (
        "strict match is below first-answer match in 1 of 2 cells, most at k = 3, l = 16: 4.00 % against 24.00 %"
        in text
    )
    assert "(25.00 % of the answers ended)" in text
    assert why.endswith("that difference is the stop, not the skill.")
    assert "k = 3 by 0.00 points first-answer, -20.00 strict" in text


def test_stop_is_not_blamed_when_the_two_agree(cell):
    (text,) = stop_words(ResultSet([cell(4, 4, bits(96), strict=bits(95))]))
    assert "do not differ detectably in any of 1 cells" in text


def test_stop_is_silent_without_both_metrics(cell):
    assert stop_words(ResultSet([cell(4, 4, bits(96))])) == []


def test_unscored_documents_are_counted(cell):
    one, two = cell(4, 4, "1100"), cell(4, 16, "1100")
    assert sample_words(ResultSet([one, two])) == []
    one.samples["exact_match,first-answer"]["d0"] = None
    (text,) = sample_words(ResultSet([one, two]))
    assert text.startswith("math: 1 of 4 documents are unscored")


def test_values_without_samples_still_give_a_sentence(cell):
    cells = [cell(k, 16, extra={"exact_match,first-answer": Measured(v, None, 50)}) for k, v in ((16, 0.5), (4, 0.4))]
    assert deploy(*only(cells))[0] == (16, 16)


def test_deploy_refuses_a_small_loss_that_is_detected(cell):
    # -2.50 points, -4.00 to -1.00: within the margin, and real
    assert deploy(*only([cell(16, 16, bits(300)), cell(4, 4, bits(290))]))[0] == (16, 16)


def test_gain_of_several_seeds_is_corrected_for_the_number_of_gains(cell):
    # 4 of 400 gained: a bootstrap draw holds none of them with probability e^-4 = 0.018: out at 2.5 %, in at 0.6 %
    pairs = [(k, ell) for k in (8, 4, 3, 2) for ell in (k, 16)]
    cells = [cell(*place, bits(104 if place == (4, 16) else 100), seed=seed) for place in pairs for seed in (0, 1)]
    assert gain_words(*only(cells)) == (
        "At k = 4 the difference is +1.00 points (+0.25 to +2.00), not significant after correction for 4 tests; "
        "no difference is detectable at k = 8, 3, 2."
    )
    assert gain_words(*only([c for c in cells if c.train_bits == 4])).startswith("Restoring to 16 bits gains at k = 4")
