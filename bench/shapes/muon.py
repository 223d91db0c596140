"""Muon (Jordan et al., 2024): momentum whose matrices are made orthogonal before each step."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def orthogonalize(matrix: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """About U V^T of the singular value decomposition, by a quintic Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(rounds):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def apply(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    average: torch.Tensor,
    rate: float,
    momentum: float = 0.95,
) -> None:
    """One step on one weight, in place; `gradient` and its running `average` are matrices."""
    average.lerp_(gradient, 1 - momentum)
    update = orthogonalize(gradient.lerp(average, momentum))
    size = 0.2 * max(update.shape) ** 0.5
    parameter.sub_(update.view(parameter.shape), alpha=rate * size)


class Muon(torch.optim.Optimizer):
    """Muon for weights of two or more dimensions, each taken as a matrix of outputs by the rest.

    Steps are scaled to the root mean square that AdamW's have (Liu et al., 2025), so that both can
    share one learning rate.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float = 1e-3, momentum: float = 0.95
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = parameter.grad.reshape(parameter.shape[0], -1)
                state = self.state[parameter]
                if not state:
                    state["average"] = torch.zeros_like(gradient)
                apply(parameter, gradient, state["average"], group["lr"], group["momentum"])


def divide(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters for Muon (hidden matrices) and for AdamW (first and last layers, vectors)."""
    hidden: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        edge = any(word in name for word in ("conv_in", "conv_out", "quant_conv", "embed"))
        matrix = parameter.ndim >= 2 and not edge
        (hidden if matrix else others).append(parameter)
    return hidden, others
