"""Stand-ins for an accelerator such as Apple's, which has one random stream and no numbers of double width."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def stand_in_for_mps(monkeypatch):
    """Have torch find an accelerator of Apple's, and return the generator that stands for its random stream."""
    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: torch.device("mps"))
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda *_: generator.get_state())
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state, *_: generator.set_state(state))
    monkeypatch.setattr(torch.mps, "manual_seed", generator.manual_seed)
    return generator


class WithoutDoubles(TorchDispatchMode):
    """Inside, whatever makes a tensor of double width fails, in the words of torch."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        made = function(*arguments, **(keywords or {}))
        if any(isinstance(leaf, torch.Tensor) and leaf.dtype is torch.float64 for leaf in tree_leaves(made)):
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        return made
