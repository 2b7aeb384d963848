"""Small networks as others write them, one for each kind of block, to be converted."""

import torch
import torch.nn.functional as F
from torch import nn

WIDTH = 48


def conv(inputs, outputs, size=3, stride=1, groups=1):
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


class PostActivation(nn.Module):
    """conv-bn-relu-conv-bn-(+)-relu."""

    def __init__(self, inputs=WIDTH, outputs=WIDTH, stride=1, norm=nn.BatchNorm2d, act=nn.ReLU):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, stride=stride), norm(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs), norm(outputs)
        self.act = act(inplace=True)
        changes = stride > 1 or inputs != outputs
        self.down = nn.Sequential(conv(inputs, outputs, 1, stride), norm(outputs)) if changes else None

    def forward(self, x):
        out = self.act(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.down is None else self.down(x)
        return self.act(out)


class PreActivation(nn.Module):
    """bn-relu-conv-bn-relu-conv-(+), the transition's shortcut on the activation."""

    def __init__(self, inputs=WIDTH, outputs=WIDTH, stride=1):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, stride=stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs)
        changes = stride > 1 or inputs != outputs
        self.down = conv(inputs, outputs, 1, stride) if changes else None

    def forward(self, x):
        h = F.relu(self.bn1(x))
        shortcut = x if self.down is None else self.down(h)
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(h))))


class SqueezeExcite(nn.Module):
    """A gate of two 1x1 convolutions and a sigmoid."""

    def __init__(self, channels, gate=nn.Sigmoid):
        super().__init__()
        self.fc1, self.fc2, self.gate = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 1), gate()

    def forward(self, x):
        return x * self.gate(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class Inverted(nn.Module):
    """Expansion, depthwise convolution, Squeeze-Excite, projection."""

    def __init__(self, channels=WIDTH, gate=nn.Sigmoid):
        super().__init__()
        wide = 2 * channels
        self.expand, self.bn1 = conv(channels, wide, 1), nn.BatchNorm2d(wide)
        self.depthwise, self.bn2 = conv(wide, wide, groups=wide), nn.BatchNorm2d(wide)
        self.se = SqueezeExcite(wide, gate)
        self.project, self.bn3 = conv(wide, channels, 1), nn.BatchNorm2d(channels)

    def forward(self, x):
        h = F.silu(self.bn1(self.expand(x)))
        h = self.se(F.silu(self.bn2(self.depthwise(h))))
        return x + self.bn3(self.project(h))


class Dense(nn.Module):
    """Normalization of a concatenation."""

    def __init__(self, inputs=WIDTH, growth=16):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, 64, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(64), conv(64, growth)

    def forward(self, x):
        return torch.cat([x, self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))], 1)


class Split(nn.Module):
    """As Res2Net: parts of one convolution's output, each added to the next one."""

    def __init__(self, channels=WIDTH):
        super().__init__()
        part = channels // 3
        self.conv1, self.bn1 = conv(channels, channels, 1), nn.BatchNorm2d(channels)
        self.convs = nn.ModuleList([conv(part, part) for _ in range(2)])
        self.bns = nn.ModuleList([nn.BatchNorm2d(part) for _ in range(2)])
        self.conv3, self.bn3 = conv(channels, channels, 1), nn.BatchNorm2d(channels)

    def forward(self, x):
        parts = torch.chunk(F.relu(self.bn1(self.conv1(x))), 3, 1)
        a = F.relu(self.bns[0](self.convs[0](parts[0])))
        b = F.relu(self.bns[1](self.convs[1](a + parts[1])))
        return F.relu(x + self.bn3(self.conv3(torch.cat([a, b, parts[2]], 1))))


class LayerScale(nn.Module):
    """A branch that ends with small factors of its own."""

    def __init__(self, channels=WIDTH):
        super().__init__()
        self.conv, self.bn = conv(channels, channels), nn.BatchNorm2d(channels)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 1e-6))

    def forward(self, x):
        return x + self.scale * F.relu(self.bn(self.conv(x)))


class Net(nn.Module):
    """A stem, blocks, and a classifier."""

    def __init__(self, *blocks, width=WIDTH, norm=nn.BatchNorm2d):
        super().__init__()
        self.stem, self.stem_bn = conv(3, WIDTH), norm(WIDTH)
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(width, 10)

    def forward(self, x):
        return self.fc(self.blocks(self.stem_bn(self.stem(x))).mean((2, 3)))


def collect(model, seed=0):
    """Statistics and factors of BatchNorm as of a trained network, away from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0.0, 0.3, generator=generator)
                module.running_var.uniform_(0.5, 2.0, generator=generator)
                module.num_batches_tracked.fill_(100)
                if module.affine:
                    module.weight.uniform_(0.5, 1.5, generator=generator)
                    module.bias.normal_(0.0, 0.2, generator=generator)
    return model
