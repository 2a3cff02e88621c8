"""Transfer of learned weights to a net with a new head, its last layer, and a training of the head alone."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from imageclf.core.errors import UserError


def head_name(net: nn.Module) -> str:
    """Return the name of the net's last linear layer."""
    return [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear)][-1]


def freeze(net: nn.Module, *, frozen: bool) -> None:
    """Let only the head compute gradients; without `frozen`, let all layers compute them."""
    net.requires_grad_(not frozen)
    net.get_submodule(head_name(net)).requires_grad_()


def train_mode(net: nn.Module, *, frozen: bool) -> None:
    """Set the net to train mode; if it is `frozen`, batch norm uses its statistics and does not change them."""
    net.train()
    for layer in net.modules() if frozen else ():
        if isinstance(layer, _BatchNorm):
            layer.eval()


@dataclass(frozen=True)
class Transfer:
    """The result of `transfer`, as names of tensors: those taken, those left out by reason, those of the net only."""

    taken: list[str]
    left_out: dict[str, list[str]]
    new: list[str]

    def sentences(self) -> str:
        """Return a line with the count of the tensors that were taken, and a line for each kind of others."""
        total = len(self.taken) + sum(map(len, self.left_out.values()))
        lines = [f"took {len(self.taken)} of {total} tensors of the learned weights"]
        lines += [f"not taken, {reason}: {', '.join(names)}" for reason, names in self.left_out.items() if names]
        return "\n".join([*lines, f"new in the net: {', '.join(self.new)}"])


def transfer(net: nn.Module, weights: Mapping[str, Tensor], name: str) -> Transfer:
    """Copy to `net` the weights that have the name and the shape of one of its tensors, except those of its head.

    A convolution of three input channels is summed over them for a net of gray images, which gives the same maps for
    the same normalization. Raises `UserError` if none fits the net, whose `name` is for the message.
    """
    head, own = head_name(net), net.state_dict()
    taken: dict[str, Tensor] = {}
    left_out: dict[str, list[str]] = {"the head is new": [], "of another shape": [], "not in the net": []}
    for key, tensor in weights.items():
        fitted = _fitted(tensor, own[key]) if key in own else None
        if key.rpartition(".")[0] == head:
            left_out["the head is new"].append(key)
        elif fitted is not None:
            taken[key] = fitted
        else:
            left_out["of another shape" if key in own else "not in the net"].append(key)
    if not any(tensor.ndim > 1 for tensor in taken.values()):
        theirs, ours = (", ".join(list(names)[:2]) for names in (weights, own))
        raise UserError(
            f"pretrained: no tensor fits model {name}: the weights begin with {theirs}, the net with {ours}"
        )
    net.load_state_dict(taken, strict=False)
    return Transfer(list(taken), left_out, [key for key in own if key not in taken])


def _fitted(tensor: Tensor, target: Tensor) -> Tensor | None:
    """Return the tensor in the target's shape; None if it does not fit."""
    if target.ndim == tensor.ndim == 4 and (tensor.shape[1], target.shape[1]) == (3, 1):
        tensor = tensor.sum(dim=1, keepdim=True)
    return tensor if tensor.shape == target.shape else None
