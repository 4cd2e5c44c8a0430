"""Muon in float32: momentum, made orthogonal by a Newton-Schulz iteration (Jordan et al., 2024).

PyTorch's own Muon iterates in bfloat16, which a processor without bfloat16 arithmetic does many
times slower than the rest of the training step.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan's quintic iteration
NORM_EPS = 1e-7


def orthogonalized(matrices: Tensor, *, iterations: int = 5) -> Tensor:
    """Return matrices (count, rows, columns) with their singular values moved near 1."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + NORM_EPS)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon:
    """The optimizer of the weight matrices; ``lr`` may be changed between steps.

    Matrices of one shape are stacked and updated together. Nesterov momentum; the decay of the
    weights is decoupled and scaled by ``lr``. The step of a matrix taller than wide is scaled by
    the root of rows / columns, as in Jordan's original.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        iterations: int = 5,
    ) -> None:
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.iterations = iterations
        by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in parameters:
            by_shape[parameter.shape].append(parameter)
        self._groups = [
            (group, torch.zeros(len(group), *shape)) for shape, group in by_shape.items()
        ]

    def step(self) -> None:
        with torch.no_grad():
            for group, average in self._groups:
                self._update(group, average)

    def _update(self, group: list[Tensor], average: Tensor) -> None:
        gradient = torch.stack([parameter.grad for parameter in group])
        average.lerp_(gradient, 1 - self.momentum)
        direction = gradient.lerp(average, self.momentum)
        update = orthogonalized(direction, iterations=self.iterations)
        rows, columns = update.shape[-2:]
        rate = self.lr * max(1.0, rows / columns) ** 0.5
        for parameter, change in zip(group, update, strict=True):
            parameter.mul_(1 - self.lr * self.weight_decay).add_(change, alpha=-rate)
