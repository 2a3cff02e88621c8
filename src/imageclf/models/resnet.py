"""ResNet (He 2015), adapted to small images."""

from torch import nn


def resnet(name: str, image_shape: tuple[int, int, int], num_classes: int, *, large_stem: bool = False) -> nn.Module:
    """Return torchvision's net `name`, with a stem for small images unless it is to have the `large_stem` of the paper.

    The small stem is one 3x3 convolution of stride 1, instead of a 7x7 convolution of stride 2 and a pool. The maps
    have sides of 32, 16, 8 and 4 for 32x32 images (the paper: 56, 28, 14 and 7 for 224x224). This is the paper's
    ImageNet net on small images, not its narrower net (16 to 64 channels) for CIFAR. A stage that would leave a map
    smaller than 2x2 gets stride 1, so that batch norm can average even a batch of one image.
    """
    from torchvision.models import ResNet, get_model  # slow to import

    net = get_model(name, weights=None, num_classes=num_classes)
    assert isinstance(net, ResNet)
    side = min(image_shape[1:])
    if large_stem:
        net.conv1 = nn.Conv2d(image_shape[0], 64, kernel_size=7, stride=2, padding=3, bias=False)
        side = (side + 3) // 4
    else:
        net.conv1 = nn.Conv2d(image_shape[0], 64, kernel_size=3, padding=1, bias=False)
        net.set_submodule("maxpool", nn.Identity())
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")  # as in torchvision
    for stage in (net.layer2, net.layer3, net.layer4):
        if side >= 4:
            side = (side + 1) // 2
        else:
            for module in stage.modules():
                if isinstance(module, nn.Conv2d):
                    module.stride = (1, 1)
    return net
