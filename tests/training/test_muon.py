"""Muon beside torch's own."""

from __future__ import annotations

import torch

from llmkit.training.muon import Muon, orthogonal

SHAPES = [(16, 16), (16, 16), (40, 16), (16, 40), (16, 40)]


def test_steps_equal_those_of_torchs_muon() -> None:
    def trained(make) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        matrices = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]
        optimizer = make(matrices)
        for _ in range(5):
            for matrix in matrices:
                matrix.grad = torch.randn(matrix.shape, generator=generator)
            optimizer.step()
        return [matrix.detach() for matrix in matrices]

    ours = trained(lambda p: Muon(p, lr=0.02, weight_decay=0.1))
    torchs = trained(
        lambda p: torch.optim.Muon(p, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    )
    for one, other in zip(ours, torchs, strict=True):
        # bf16 products in another order: about 0.4% of a step of 0.02.
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3)


def test_singular_values_come_near_one_whatever_the_matrix() -> None:
    generator = torch.Generator().manual_seed(1)
    for shape in ((4, 30, 30), (3, 20, 50), (2, 50, 20)):
        matrices = torch.randn(shape, generator=generator) * 1e-3
        values = torch.linalg.svdvals(orthogonal(matrices).float())
        assert values.max() < 1.35
        assert values.median() > 0.6


def test_matrices_stepped_together_move_as_each_would_alone() -> None:
    def moved(count: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(2)
        matrices = [torch.nn.Parameter(torch.zeros(8, 8)) for _ in range(count)]
        for matrix in matrices:
            matrix.grad = torch.randn(8, 8, generator=generator)
        Muon(matrices, lr=1.0).step()
        return matrices[0].detach()

    torch.testing.assert_close(moved(1), moved(4), rtol=0, atol=2e-2)
