"""The multi-head networks of the benchmarks in plain PyTorch, written without this library."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

HEADS = 3


class Residual(nn.Module):
    """A pre-activation block of a Wide-ResNet."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels_in), nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        same = channels_in == channels and stride == 1
        self.shortcut = None if same else nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → (B, out, H', W')."""
        h = relu(self.norm1(x))
        skip = x if self.shortcut is None else self.shortcut(h)
        return self.conv2(relu(self.norm2(self.conv1(h)))) + skip


class WideResNet(nn.Module):
    """A Wide-ResNet cut after ``split`` blocks, with ``HEADS`` heads."""

    def __init__(self, depth: int, width: int, classes: int, split: int) -> None:
        super().__init__()
        plan = []
        channels = 16
        for stage in range(3):
            for i in range((depth - 4) // 6):
                plan.append((channels, 16 * width * 2**stage, 2 if stage and not i else 1))
                channels = plan[-1][1]
        stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.backbone = nn.Sequential(stem, *(Residual(*block) for block in plan[:split]))
        self.heads = nn.ModuleList(
            nn.Sequential(
                *(Residual(*block) for block in plan[split:]),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(channels, classes),
            )
            for _ in range(HEADS)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → (M, B, classes)."""
        shared = self.backbone(x)
        return torch.stack([head(shared) for head in self.heads])


class Perceptron(nn.Module):
    """A multi-layer perceptron with ``HEADS`` heads from the second layer on: little work for each weight."""

    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(size, size), nn.ReLU())
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, classes)) for _ in range(HEADS)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, size) → (M, B, classes)."""
        shared = self.backbone(x)
        return torch.stack([head(shared) for head in self.heads])
