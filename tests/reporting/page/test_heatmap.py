"""Maps of experts: shares as they are, and losses by how far they are from the best."""

from __future__ import annotations

from llmkit.reporting.page.heatmap import expert_maps

RESULT = {
    "experts": [
        {"domain": d, "expert": e, "share": share, "bits_per_byte_alone": bits}
        for d, e, share, bits in (
            ("code", "code", 0.9, 1.0), ("code", "poems", 0.1, 3.0),
            ("poems", "code", 0.25, 2.5), ("poems", "poems", 0.75, 2.0),
        )
    ],
    "routing": [
        {"domain": "code", "bits_per_byte": 1.05, "best_expert": "code", "regret": 0.05},
        {"domain": "poems", "bits_per_byte": 1.9, "best_expert": "poems", "regret": -0.1},
    ],
}  # fmt: skip


def test_shares_are_shaded_by_themselves() -> None:
    shares, _ = expert_maps(RESULT)
    assert (shares["domains"], shares["columns"]) == (["code", "poems"], ["code", "poems"])
    assert [[cell["shade"] for cell in row] for row in shares["rows"]] == [[0.9, 0.1], [0.25, 0.75]]
    assert shares["text"].startswith("code uses the expert of code most;")


def test_losses_are_shaded_by_how_far_they_are_above_the_best_expert() -> None:
    _, alone = expert_maps(RESULT)
    assert [[cell["shade"] for cell in row] for row in alone["rows"]] == [[0, 1], [0.25, 0]]
    assert [[cell["best"] for cell in row] for row in alone["rows"]] == [
        [True, False], [False, True],
    ]  # fmt: skip
    assert alone["extra"] == ["1.050 (+0.050)", "1.900 (-0.100)"]


def test_a_result_without_experts_has_no_maps() -> None:
    assert expert_maps({"perplexity": 3.0}) == []
