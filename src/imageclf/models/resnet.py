"""ResNet (He 2015), cut for small images."""

from torch import nn


def resnet(name: str, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """The net `name` from torchvision, its stem (7x7 in steps of 2, then a pool) replaced by one 3x3 in steps of 1.

    So the maps of 32x32 images are 32, 16, 8 and 4 pixels a side (the paper's of 224x224: 56, 28, 14 and 7). It is
    the paper's ImageNet net on small images, not the thinner one (16 to 64 channels) that the paper has for CIFAR.
    A stage that would leave less than 2 pixels a side keeps its map's size, so that batch norm has something to
    average even in a batch of one image.
    """
    from torchvision.models import ResNet, get_model  # takes seconds: only for those who ask

    net = get_model(name, weights=None, num_classes=num_classes)
    assert isinstance(net, ResNet)
    net.conv1 = nn.Conv2d(image_shape[0], 64, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's own
    net.set_submodule("maxpool", nn.Identity())
    side = min(image_shape[1:])
    for stage in (net.layer2, net.layer3, net.layer4):
        if side >= 4:
            side = (side + 1) // 2
        else:
            for module in stage.modules():
                if isinstance(module, nn.Conv2d):
                    module.stride = (1, 1)
    return net
