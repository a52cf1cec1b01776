"""A ResNet in plain torch.nn with torchvision's names, written from He et al. 2016, as the oracle of ours."""

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, inputs, width, stride, bottleneck):
        super().__init__()
        if bottleneck:
            shapes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1)]
        else:
            shapes = [(inputs, width, 3, stride), (width, width, 3, 1)]
        self.count, outputs = len(shapes), shapes[-1][1]
        for i, (before, after, side, step) in enumerate(shapes, 1):
            setattr(self, f"conv{i}", nn.Conv2d(before, after, side, step, side // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(after))
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = y if i == self.count else torch.relu(y)
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Returns the five maps; `gate(level, map)` replaces each before it goes on. Every array is made irregular."""

    def __init__(self, blocks, stem=64, bottleneck=False, channels=3):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, stem, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = stem
        for layer, count in enumerate(blocks, 1):
            width, stack = stem * 2 ** (layer - 1), []
            for i in range(count):
                stack.append(Block(inputs, width, 2 if layer > 1 and i == 0 else 1, bottleneck))
                inputs = width * (4 if bottleneck else 1)
            setattr(self, f"layer{layer}", nn.Sequential(*stack))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1, 0.2)
                nn.init.normal_(module.bias, 0, 0.2)
                nn.init.normal_(module.running_mean, 0, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 1.5)

    def forward(self, x, gate=lambda level, x: x):
        x = gate(0, torch.relu(self.bn1(self.conv1(x))))
        taps = [x]
        x = self.maxpool(x)
        for level in range(1, 5):
            x = gate(level, getattr(self, f"layer{level}")(x))
            taps.append(x)
        return taps
