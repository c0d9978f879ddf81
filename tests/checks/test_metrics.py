"""Each metric against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from checks.intervals import wilson
from checks.metrics.drawdown import drawdown, kl_divergence, perplexity_ratio
from checks.metrics.efficiency import EditCost, efficiency
from checks.metrics.failures import MODES, FailedProbe, classify, failure_scores
from checks.metrics.fluency import fluency, n_gram_entropy
from checks.metrics.generalization import generalization_rate
from checks.metrics.locality import SLICES, locality
from checks.metrics.obsolete import obsolete
from checks.metrics.outcome import ProbeOutcome, mean_score
from checks.metrics.portability import portability
from checks.metrics.retention import retention
from checks.metrics.success import edit_success, success_rate, token_accuracy
from tests.checks.support import outcome, prediction, probe, standing
from warehouse.records import Score

# Two edits: "a" holds on its prompt and on 1 of 4 paraphrases, "b" fails on its prompt and holds on 2 of 2.
TWO_EDITS = [
    outcome("success", "a", True, token_accuracy=1.0),
    outcome("success", "b", False, token_accuracy=0.5),
    *(outcome("rephrase", "a", hit) for hit in (True, False, False, False)),
    *(outcome("rephrase", "b", True) for _ in range(2)),
]


def by_slice(scores: list[Score]) -> dict[str, Score]:
    return {score.slice: score for score in scores}


def test_success_rate_is_the_share_of_own_prompts_with_the_wilson_interval() -> None:
    found = success_rate(TWO_EDITS)
    assert (found.metric, found.value, found.n) == ("SR", 0.5, 2)
    assert (found.low, found.high) == tuple(wilson(1, 2))


def test_generalization_weighs_edits_and_not_paraphrases() -> None:
    found = generalization_rate(TWO_EDITS)
    assert (found.metric, found.n) == ("GR", 2)
    assert found.value == pytest.approx((1 / 4 + 2 / 2) / 2)  # 0.625; over paraphrases it would be 3/6


def test_edit_success_is_half_the_sum_of_equation_12() -> None:
    found = edit_success(TWO_EDITS)
    assert found.value == pytest.approx(((1 + 1 / 4) / 2 + (0 + 1) / 2) / 2)
    assert found.n == 2


def test_edit_success_leaves_out_an_edit_without_paraphrases() -> None:
    assert edit_success([*TWO_EDITS, outcome("success", "c", True)]) == edit_success(TWO_EDITS)


def test_token_accuracy_has_its_own_name_and_never_counts_as_success() -> None:
    found = by_slice(token_accuracy(TWO_EDITS))
    assert found["success"].metric == "token_accuracy"
    assert found["success"].value == pytest.approx(0.75)
    assert found["rephrase"].value == pytest.approx(0.625)


def test_retention_reads_the_same_rates_under_their_retain_codes() -> None:
    found = {score.metric: score.value for score in retention(TWO_EDITS)}
    assert found == pytest.approx({"SRR": 0.5, "GRR": 0.625, "ESR": 0.5625})


def test_a_retain_set_may_call_its_own_prompts_retain() -> None:
    renamed = [outcome("retain", "a", True), outcome("rephrase", "a", False)]
    assert [score.value for score in retention(renamed)] == [1.0, 0.0, 0.5]


def test_a_retain_probe_does_not_count_for_the_success_rate() -> None:
    assert success_rate([outcome("retain", "a", True)]).value is None


def test_locality_counts_only_what_the_base_model_answers_rightly() -> None:
    outcomes = [
        outcome("neighbourhood", "a", True, before=True),
        outcome("neighbourhood", "a", False, before=True),
        outcome("neighbourhood", "a", True, before=False),
        outcome("neighbourhood", "a", False, before=False),
    ]
    found = by_slice(locality(outcomes))["neighbourhood"]
    assert (found.value, found.n) == (0.5, 2)


def test_locality_keeps_its_slices_apart() -> None:
    found = by_slice(locality([outcome(kind, "a", kind != "unrelated", before=True) for kind in SLICES]))
    assert {name: score.value for name, score in found.items()} == {
        "neighbourhood": 1.0, "relation_specificity": 1.0, "forgetfulness": 1.0, "unrelated": 0.0,
    }  # fmt: skip


def test_portability_stands_beside_its_base_rate_and_the_paired_gain() -> None:
    outcomes = [
        outcome("one_hop", "a", True, before=False),
        outcome("one_hop", "a", True, before=True),
        outcome("one_hop", "b", False, before=True),
        outcome("one_hop", "b", True, before=True),
    ]
    found = by_slice(portability(outcomes))
    assert found["one_hop"].value == 0.75
    assert found["one_hop:before"].value == 0.75
    assert found["one_hop:gain"].value == pytest.approx((0.5 - 0.5) / 2)
    assert found["one_hop:gain"].n == 2


def test_portability_without_the_base_model_has_no_base_rate() -> None:
    found = by_slice(portability([outcome("alias", "a", True)]))
    assert (found["alias"].value, found["alias:before"].value, found["alias:gain"].value) == (1.0, None, None)


def test_obsolete_is_the_share_of_old_answers_still_given() -> None:
    found = obsolete([outcome("obsolete", "a", True), *(outcome("obsolete", "b", False) for _ in range(3))])
    assert (found.metric, found.value, found.n) == ("obsolete", 0.25, 4)


def test_drawdown_is_one_minus_the_ratio_of_right_answers() -> None:
    # f_0: 8 of 10 right; f_N: 6 of those 8, and 1 of the other 2.
    lost = [standing("drawdown", i, after=i < 6, before=True) for i in range(8)]
    outcomes = [*lost, standing("drawdown", 8, True, False), standing("drawdown", 9, False, False)]
    found = by_slice(drawdown(outcomes))
    assert found[""].value == pytest.approx(1 - 7 / 8)
    assert found["known"].value == pytest.approx(1 - 6 / 8)
    assert (found[""].n, found["known"].n) == (10, 8)


def test_drawdown_is_negative_when_the_model_improves() -> None:
    outcomes = [standing("drawdown", i, after=True, before=i < 4) for i in range(5)]
    assert by_slice(drawdown(outcomes))[""].value == pytest.approx(-0.25)


def test_drawdown_interval_holds_the_value_and_is_read_from_the_right_ends() -> None:
    found = by_slice(drawdown([standing("drawdown", i, after=i % 10 > 0, before=True) for i in range(1_000)]))["known"]
    assert found.low is not None and found.high is not None
    assert found.low < 0.1 < found.high
    # The standard error of 10% over 1,000 is 0.0095.
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.0095, rel=0.15)


def test_drawdown_of_twenty_untouched_probes_does_not_prove_that_nothing_is_lost() -> None:
    found = by_slice(drawdown([standing("drawdown", i, True, True) for i in range(20)]))["known"]
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(0.1611, abs=5e-5)


def test_drawdown_over_a_set_that_the_base_model_knows_nothing_of_is_not_measured() -> None:
    found = by_slice(drawdown([standing("drawdown", 0, True, False)]))
    assert (found[""].value, found[""].n) == (None, 1)
    assert (found["known"].value, found["known"].n) == (None, 0)


def test_perplexity_ratio_is_over_all_tokens() -> None:
    # Losses grow by 1 nat over 2 tokens and by 0 over 6: exp(1 / 8).
    found = perplexity_ratio([(-4.0, 2), (-12.0, 6)], [(-5.0, 2), (-12.0, 6)])
    assert found.value == pytest.approx(math.exp(1 / 8))
    assert found.n == 2


def test_perplexity_ratio_of_a_ruined_model_is_a_large_number_and_not_infinity() -> None:
    found = perplexity_ratio([(-2.0, 1)], [(-5_000.0, 1)])
    assert found.value is not None and 1e300 < found.value < math.inf


def test_perplexity_ratio_of_nan_is_not_measured() -> None:
    found = perplexity_ratio([(-2.0, 1), (-2.0, 1)], [(math.nan, 1), (-2.0, 1)])
    assert (found.value, found.n) == (None, 2)


def test_perplexity_ratio_refuses_texts_that_were_cut_differently() -> None:
    with pytest.raises(ValueError, match="same texts"):
        perplexity_ratio([(-2.0, 3)], [(-2.0, 4)])


def test_kl_is_in_nats_and_from_the_base_model_to_the_edited_one() -> None:
    before, after = np.log([[0.5, 0.5], [0.5, 0.5]]), np.log([[0.75, 0.25], [0.5, 0.5]])
    one_prompt = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert kl_divergence(before, after).value == pytest.approx(one_prompt / 2)


def test_kl_gives_no_weight_to_a_token_that_the_base_model_never_says() -> None:
    with np.errstate(divide="ignore"):
        before, after = np.log([[1.0, 0.0]]), np.log([[0.5, 0.5]])
    assert kl_divergence(before, after).value == pytest.approx(math.log(2))


def test_kl_to_a_model_that_gives_no_probability_is_not_measured() -> None:
    with np.errstate(divide="ignore"):
        before, after = np.log([[0.5, 0.5]]), np.log([[1.0, 0.0]])
    assert kl_divergence(before, after).value is None


def test_kl_joins_its_pieces_when_prompts_do_not_divide() -> None:
    before = np.log(np.full((130, 2), 0.5))
    after = before.copy()
    after[129] = np.log([0.75, 0.25])
    one_prompt = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    found = kl_divergence(before, after)
    assert (found.value, found.n) == (pytest.approx(one_prompt / 130), 130)


def test_kl_refuses_two_vocabularies() -> None:
    with pytest.raises(ValueError, match="shape"):
        kl_divergence(np.zeros((1, 2)), np.zeros((1, 3)))


def test_n_gram_entropy_weighs_bigrams_one_third_and_trigrams_two_thirds() -> None:
    # a b a b a: bi-grams ab ab ba ba -> 1 bit; tri-grams aba aba bab -> H(2/3) = 0.9183 bits.
    trigrams = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert n_gram_entropy("a b a b a") == pytest.approx(1 / 3 * 1.0 + 2 / 3 * trigrams)


@pytest.mark.parametrize("text", ["", "word", "the the the the the the"])
def test_n_gram_entropy_of_a_loop_or_of_nothing_is_zero(text: str) -> None:
    assert n_gram_entropy(text) == 0.0


def test_fluency_change_is_paired_by_prompt() -> None:
    found = by_slice(fluency(["a b c d", "a a a a"], ["a a a a", "a a a a"]))
    whole = 1 / 3 * math.log2(3) + 2 / 3 * math.log2(2)
    assert found[""].value == 0.0
    assert found["before"].value == pytest.approx(whole / 2)
    assert found["change"].value == pytest.approx(-whole / 2)


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("London. He was a baker", "unchanged_old_answer"),
        ("London City is", "unchanged_old_answer"),
        ("the the the the", "repetition_or_meaningless"),
        ("big old big old big old town", "repetition_or_meaningless"),
        ("... , ,", "repetition_or_meaningless"),
        ("Par\ufffd\ufffd", "repetition_or_meaningless"),
        ("Paris London", "partial_replacement"),
        ("Paris City.", "missing_tokens"),
        ("Upon Seine", "missing_tokens"),
        ("", "missing_tokens"),
        ("a song about bread", "irrelevant"),
        ("Paris Upon Seine Abroad", "irrelevant"),
    ],
)
def test_a_failure_is_classed_by_what_the_model_wrote(text: str, mode: str) -> None:
    assert classify(FailedProbe(["Paris City Upon Seine"], ["London"], text)) == mode


def test_the_start_of_the_new_answer_with_the_end_of_the_old_is_a_partial_replacement() -> None:
    assert classify(FailedProbe(["Toulouse Business School"], ["Harvard University"], "Toulouse University.")) == (
        "partial_replacement"
    )


def test_a_word_that_both_answers_share_does_not_make_a_partial_replacement() -> None:
    failed = FailedProbe(["Toulouse University Press"], ["Harvard University"], "Toulouse University.")
    assert classify(failed) == "missing_tokens"


def test_failures_are_counts_that_add_up_with_zeros_kept() -> None:
    failed = [FailedProbe(["Paris"], ["London"], text) for text in ("London", "London", "a song")]
    scores = failure_scores(failed)
    counts = {score.slice: score.value for score in scores}
    assert set(counts) == set(MODES)
    assert (counts["unchanged_old_answer"], counts["irrelevant"], counts["missing_tokens"]) == (2.0, 1.0, 0.0)
    assert {score.n for score in scores} == {3}


def test_efficiency_gives_rates_per_edit() -> None:
    found = by_slice(efficiency(EditCost(num_edits=4, seconds=2.0, patch_bytes=256, peak_memory_bytes=1024)))
    assert (found["seconds_per_edit"].value, found["edits_per_second"].value, found["patch_bytes"].value) == (
        0.5,
        2,
        256,
    )


def test_efficiency_leaves_out_what_was_not_counted() -> None:
    found = by_slice(efficiency(EditCost(num_edits=4, seconds=2.0, patch_bytes=256, forward_passes=40)))
    assert found["forward_passes"].value == 40
    assert "backward_passes" not in found


def test_efficiency_of_no_edits_has_no_rate() -> None:
    assert by_slice(efficiency(EditCost(num_edits=0, seconds=2.0, patch_bytes=0)))["seconds_per_edit"].value is None


def test_every_metric_without_probes_has_no_value_and_no_count() -> None:
    scores = [
        success_rate([]), generalization_rate([]), edit_success([]), *token_accuracy([]), *retention([]),
        *locality([]), *portability([]), obsolete([]), *drawdown([]), perplexity_ratio([], []),
        kl_divergence([], []), *fluency([], []),
    ]  # fmt: skip
    assert {(score.value, score.low, score.high, score.n) for score in scores} == {(None, None, None, 0)}


def test_a_mean_over_numbers_with_one_nan_is_not_measured() -> None:
    assert mean_score("KL", "", [0.1, math.nan], 0).value is None


def test_outcomes_of_one_shared_probe_under_two_single_edits_are_two_clusters() -> None:
    shared = probe("drawdown", "a standing question", "yes")
    asked = [ProbeOutcome(shared, prediction(shared.probe_id, True), edit=edit) for edit in ("a", "b")]
    assert [outcome.cluster for outcome in asked] == ["a", "b"]
