"""The residual networks are the published ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fl_core.architectures import centred
from fl_core.errors import InputError
from fl_core.models import initial_parameters
from fl_core.residual import BasicBlock, HeConv2d, PreActivationBlock, ResNet, WideResNet

CIFAR = (3, 32, 32)


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (lambda norm: ResNet(CIFAR, 10, depth=8, norm=norm), 78_042),
        # He et al.'s parameter-free shortcuts (269,722), and two 1x1 convolutions with their norms
        (lambda norm: ResNet(CIFAR, 10, depth=20, norm=norm), 269_722 + 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64),
        (lambda norm: ResNet(CIFAR, 10, depth=20, width=64, norm=norm), 4_327_754),
        (lambda norm: ResNet(CIFAR, 10, depth=18, width=64, norm=norm), 11_173_962),
        (lambda norm: WideResNet(CIFAR, 10, norm=norm), 2_748_890),
        (lambda norm: WideResNet(CIFAR, 10, depth=28, widen=2, norm=norm), 1_467_610),
        (lambda norm: WideResNet(CIFAR, 10, depth=28, widen=10, norm=norm), 36_479_194),
    ],
)
def test_a_network_has_the_published_parameters(build: Callable[[str], nn.Module], parameters: int, norm: str):
    with torch.device("meta"):  # sizes without memory
        assert sum(value.numel() for value in build(norm).parameters()) == parameters


def test_resnet_18_computes_what_torchvision_s_does_with_a_3x3_stem():
    models = pytest.importorskip("torchvision").models
    theirs = models.resnet18(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    mine = ResNet(CIFAR, 10, depth=18, width=64, norm="batch")
    pairs = list(zip(mine.parameters(), theirs.parameters(), strict=True))
    with torch.no_grad():
        for own, other in pairs:
            other.copy_(own)
    pixels, labels = torch.rand(3, 3, 16, 16), torch.tensor([0, 1, 2])
    scores, expected = mine(pixels), theirs(2 * pixels - 1)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
    F.cross_entropy(scores, labels).backward()
    F.cross_entropy(expected, labels).backward()
    for own, other in pairs:
        assert (own.grad - other.grad).norm() <= 1e-3 * other.grad.norm()


@pytest.mark.parametrize(("depth", "stages", "blocks"), [(8, 3, 1), (18, 4, 2), (20, 3, 3), (32, 3, 5)])
def test_depth_counts_the_layers_with_weights_on_the_longest_path(depth: int, stages: int, blocks: int):
    model = ResNet((1, 9, 9), 2, depth=depth, width=4)
    assert len(model.blocks) == stages * blocks
    assert 2 + sum(isinstance(layer, HeConv2d) for block in model.blocks for layer in block.children()) == depth
    widths = [block.conv2.out_channels for block in model.blocks]
    assert widths == [4 * 2**stage for stage in range(stages) for _ in range(blocks)]
    halvings = [place for place, block in enumerate(model.blocks) if block.conv1.stride == (2, 2)]
    assert halvings == [blocks * stage for stage in range(1, stages)]


@pytest.mark.parametrize(("depth", "widen", "blocks"), [(10, 1, 1), (16, 4, 2), (28, 2, 4)])
def test_a_wide_resnet_widens_its_stages_and_not_its_stem(depth: int, widen: int, blocks: int):
    with torch.device("meta"):
        model = WideResNet((1, 9, 9), 2, depth=depth, widen=widen)
    assert model.stem.out_channels == 16
    widths = [block.conv2.out_channels for block in model.blocks]
    assert widths == [16 * widen * 2**stage for stage in range(3) for _ in range(blocks)]
    halvings = [place for place, block in enumerate(model.blocks) if block.conv1.stride == (2, 2)]
    assert halvings == [blocks, 2 * blocks]


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_a_silent_branch_leaves_the_input_before_and_its_positive_part_after_activation(norm: str):
    hidden = torch.randn(4, 8, 6, 6)
    after, before = BasicBlock(8, 8, 1, norm, 1.0), PreActivationBlock(8, 8, 1, norm, 1.0)
    for block in (after, before):
        nn.init.zeros_(block.conv2.weight)
    torch.testing.assert_close(after(hidden), hidden.relu())
    torch.testing.assert_close(before(hidden), hidden)


def test_a_wide_block_projects_what_is_already_active():
    """Zagoruyko & Komodakis: the 1x1 convolution sees the ReLU's output, so it tells no negative input from zero."""
    block = PreActivationBlock(4, 8, 2, "none", 1.0)
    nn.init.zeros_(block.conv2.weight)
    hidden = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(block(hidden), F.conv2d(hidden.relu(), block.shortcut.weight, stride=2))
    assert block(-hidden.abs()).abs().max() == 0


def test_a_wide_block_norms_and_activates_before_each_convolution():
    block = PreActivationBlock(8, 8, 1, "group", 1.0)
    hidden = torch.randn(2, 8, 6, 6)
    inner = F.conv2d(F.relu(F.group_norm(hidden, 2)), block.conv1.weight, padding=1)
    branch = F.conv2d(F.relu(F.group_norm(inner, 2)), block.conv2.weight, padding=1)
    torch.testing.assert_close(block(hidden), hidden + branch)


def test_a_wide_resnet_norms_and_activates_once_more_before_the_mean():
    model = WideResNet((1, 8, 8), 2, depth=10, widen=1)
    pixels = torch.rand(2, 1, 8, 8)
    last = model.blocks(model.stem(2 * pixels - 1))
    torch.testing.assert_close(model(pixels), model.head(F.group_norm(last, 16).relu().mean((2, 3))))


@pytest.mark.parametrize(("layer", "channels_in"), [("conv1", 64), ("conv2", 128)])
def test_convolutions_start_with_he_s_variance_over_the_fan_out(layer: str, channels_in: int):
    """73,728 weights or more: their variance is off by more than 3% with odds of 1e-8 (z = 5.8)."""
    weights = initial_parameters(ResNet((3, 9, 9), 2, depth=8, width=64), 0)[f"blocks.1.{layer}.weight"]
    assert weights.shape == (128, channels_in, 3, 3)
    assert weights.var().item() == pytest.approx(2 / (9 * 128), rel=0.03)


def growth(model: ResNet | WideResNet) -> float:
    """By how much the blocks grow a picture's mean square before anything is learned."""
    with torch.no_grad():
        start = F.relu(model.stem(centred(torch.rand(8, 1, 8, 8))))
        return float(model.blocks(start).square().mean() / start.square().mean())


@pytest.mark.parametrize(
    "build",
    [
        lambda: ResNet((1, 8, 8), 2, depth=110, width=4, norm="none"),
        lambda: WideResNet((1, 8, 8), 2, depth=100, widen=1, norm="none"),
    ],
)
def test_without_a_norm_depth_does_not_blow_up_the_signal(build: Callable[[], ResNet | WideResNet]):
    model = build()
    assert 0.01 < growth(model) < 10
    for block in model.blocks:  # as it would be without the smaller start
        block.conv2.gain = 1.0
        block.conv2.reset_parameters()
    assert growth(model) > 1e4


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_convolutions_have_biases_only_where_no_norm_brings_one(norm: str):
    for model in (ResNet(CIFAR, 2, depth=8, norm=norm), WideResNet(CIFAR, 2, depth=10, widen=1, norm=norm)):
        convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
        assert all((layer.bias is not None) == (norm == "none") for layer in convolutions)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ResNet(CIFAR, 2, depth=10), r"model\.depth is 10; it must be 18, or 6n\+2"),
        (lambda: ResNet(CIFAR, 2, depth=2), r"model\.depth is 2; it must be a whole number at least 8"),
        (lambda: ResNet(CIFAR, 2, width=3), r"model\.width is 3"),
        (lambda: ResNet(CIFAR, 2, norm="Group"), r"model\.norm is 'Group'.*did you mean 'group'"),
        (lambda: ResNet((1, 4, 9), 2), r"images are 4x9; a ResNet-20 needs at least 5x5 pixels"),
        (lambda: ResNet((1, 8, 8), 2, depth=18), r"images are 8x8; a ResNet-18 needs at least 9x9 pixels"),
        (lambda: WideResNet(CIFAR, 2, depth=18), r"model\.depth is 18; it must be 6n\+4"),
        (lambda: WideResNet(CIFAR, 2, widen=0), r"model\.widen is 0"),
        (lambda: WideResNet(CIFAR, 2, norm="layer"), r"model\.norm is 'layer'; allowed: batch, group, none"),
        (lambda: WideResNet((1, 4, 4), 2), r"images are 4x4; a WRN-16-4 needs at least 5x5 pixels"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(build: Callable[[], nn.Module], message: str):
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize(("build", "least"), [(lambda s: ResNet(s, 2, 8, 4), 5), (lambda s: ResNet(s, 2, 18, 4), 9)])
def test_the_smallest_picture_leaves_the_last_stage_two_pixels(build: Callable[..., ResNet], least: int):
    model = build((1, least, least))
    assert model.blocks(model.stem(torch.rand(1, 1, least, least))).shape[2:] == (2, 2)
