"""GoogLeNet (Szegedy 2014), adapted to small images."""

from torch import nn


def googlenet(
    image_shape: tuple[int, int, int], num_classes: int, *, dropout: float, large_stem: bool = False
) -> nn.Module:
    """Return torchvision's GoogLeNet, with a stem for small images unless it is to have the `large_stem` of the paper.

    The small stem is one 3x3 convolution of stride 1, instead of a 7x7 convolution of stride 2 and a pool.
    Torchvision's version has batch norm, and 3x3 convolutions instead of the paper's 5x5 (pytorch/vision issue 906).
    The auxiliary heads are left out: they helped the gradient to reach the early layers, and batch norm does that here.
    The maps of the inception blocks have sides of 16, 8 and 4 for 32x32 images (the paper: 28, 14 and 7 for 224x224). A
    pool that would leave a map smaller than 2x2 is left out, so that batch norm can average even a batch of one image.
    `dropout` acts on the head's input.

    Weights are initialized as torch does by default: with torchvision's much smaller weights the net stayed longer at
    chance (seen on digits).
    """
    from torchvision.models.googlenet import BasicConv2d, GoogLeNet  # slow to import

    net = GoogLeNet(num_classes, aux_logits=False, init_weights=False, dropout=dropout)
    side = min(image_shape[1:])
    if large_stem:
        net.conv1 = BasicConv2d(image_shape[0], 64, kernel_size=7, stride=2, padding=3)
        side = (side + 3) // 4
    else:
        net.conv1 = BasicConv2d(image_shape[0], 64, kernel_size=3, padding=1)
        net.set_submodule("maxpool1", nn.Identity())
    for pool in ("maxpool2", "maxpool3", "maxpool4"):
        if side < 4:
            net.set_submodule(pool, nn.Identity())
        side //= 2
    return net
