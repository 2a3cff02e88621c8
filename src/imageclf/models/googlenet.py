"""GoogLeNet (Szegedy 2014), cut for small images."""

from torch import nn


def googlenet(image_shape: tuple[int, int, int], num_classes: int, *, dropout: float) -> nn.Module:
    """GoogLeNet from torchvision, its stem (7x7 in steps of 2, then a pool) replaced by one 3x3 in steps of 1.

    Torchvision's is the paper's with batch norm, and with 3x3 for the 5x5 windows: a known slip of its
    (pytorch/vision issue 906). The auxiliary heads are left out: they carried the gradient to the early layers, which
    batch norm does here. The inception blocks see maps of 16, 8 and 4 pixels a side for 32x32, where the paper's see
    28, 14 and 7 for 224x224. A pool that would leave less than 2 pixels a side is left out, so that batch norm has
    something to average even in a batch of one image. `dropout` acts on the head's input.

    Weights start as torch's own: with torchvision's much smaller ones it took longer to leave chance (seen on digits).
    """
    from torchvision.models.googlenet import BasicConv2d, GoogLeNet  # takes seconds: only for those who ask

    net = GoogLeNet(num_classes, aux_logits=False, init_weights=False, dropout=dropout)
    net.conv1 = BasicConv2d(image_shape[0], 64, kernel_size=3, padding=1)
    net.set_submodule("maxpool1", nn.Identity())
    side = min(image_shape[1:])
    for pool in ("maxpool2", "maxpool3", "maxpool4"):
        if side < 4:
            net.set_submodule(pool, nn.Identity())
        side //= 2
    return net
