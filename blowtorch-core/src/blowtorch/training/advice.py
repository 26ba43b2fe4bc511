"""What would make a run faster on its GPU, and changes bits: so it is said, and left to the script."""

from collections.abc import Iterator

import torch
from torch.nn.parameter import is_lazy

from blowtorch.folder.provenance import matmul_precision
from blowtorch.state import RunState

_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)  # which all versions of torch can fuse on CUDA
_HANDFUL = 8  # so few parameters take few launches either way


def advise(state: RunState) -> Iterator[str]:
    """Yield a sentence for each setting of torch that would make this run faster on CUDA."""
    if state.device.type != "cuda":
        return
    if _computes_slowly(state):
        yield (
            "this GPU multiplies matrices of float32 several times faster with a little less precision: "
            "torch.set_float32_matmul_precision('high') in the script, or run.precision=bf16"
        )
    for optimizer in state.optimizers.values():
        count = sum(len(group["params"]) for group in optimizer.param_groups)
        if type(optimizer) in _FUSED and count > _HANDFUL and all(map(_is_unfused, optimizer.param_groups)):
            yield f"{type(optimizer).__name__}(..., fused=True) would step its {count} parameters with fewer launches"


def _computes_slowly(state: RunState) -> bool:
    """Return whether matrices are multiplied in full precision on a GPU that has a faster way."""
    known = [parameter for parameter in state.model.parameters() if not is_lazy(parameter)]
    has_matrices = any(parameter.dtype is torch.float32 and parameter.ndim > 1 for parameter in known)
    return (
        has_matrices
        and state.options.precision == "fp32"
        and matmul_precision() == "highest"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(state.device) >= (8, 0)
    )


def _is_unfused(group: dict[str, object]) -> bool:
    """Return whether the script has left it to torch how a group of parameters is stepped."""
    return group.get("fused") is None and group.get("foreach") is None and not group.get("capturable")
