"""A stand-in for two GPUs: the core runs on the CPU as it would on `cuda:0` and `cuda:1`, which compute later.

Who waits for too little computes with wrong values here: what is asked of a device is done late, by `queues`; memory
holds rubbish until something is written to it, and is given out again as soon as nothing refers to its tensor, to the
stream on which it was taken; and copies read and write pinned memory of the host when they are done. Other memory of
the host they read when they are asked for, and the host waits then.

To Python, a tensor of such a device is one of `cuda`. To the part of torch in C++ it is one of `meta`, since that looks
for no kernels that torch was not built with. Where torch is asked for the name, the device is replaced on the way.
"""

import contextlib
import functools
import weakref
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._C import DisableTorchFunctionSubclass
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.core.queues import NUM_DEVICES, Queues

_CPU = torch.device("cpu")
_RUBBISH = 255  # in each byte, which makes NaN or -1
_COPIED_FROM_THE_HOST = (torch.tensor, torch.as_tensor)
_CAST = (torch.nn.functional.linear, Tensor.matmul, torch.matmul)  # what autocast has computed in another precision


class Block:
    """Memory that is in use; when nothing refers to it any more, it is given out again."""


class OnDevice(Tensor):
    """A tensor of a device; `memory` is what the device has in its place by now."""

    memory: Tensor
    block: Block
    place: torch.device
    gpus: "Gpus"

    @staticmethod
    def __new__(cls, memory: Tensor, block: Block, place: torch.device, gpus: "Gpus") -> "OnDevice":
        layout = {"strides": memory.stride(), "storage_offset": memory.storage_offset()}
        made = Tensor._make_wrapper_subclass(cls, memory.shape, dtype=memory.dtype, device="meta", **layout)
        made.memory, made.block, made.place, made.gpus = memory, block, place, gpus
        return made  # type: ignore[no-any-return]

    def __init__(self, *_: Any) -> None:
        super().__init__()

    device = property(lambda self: self.place)  # type: ignore[assignment]
    is_cuda = property(lambda self: self.gpus.kind == "cuda")  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]

    @property  # type: ignore[override]
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, other: "OnDevice") -> None:
        Tensor.data.__set__(self, other)  # type: ignore[attr-defined]
        self.memory, self.block, self.place = other.memory, other.block, other.place

    def data_ptr(self) -> int:
        return self.memory.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"<{self.dtype} of {tuple(self.shape)} on {self.place}>"

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpus = next(leaf.gpus for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, OnDevice))
        return gpus.compute(function, args, dict(kwargs or {}))


class Gpus(TorchFunctionMode):
    """Devices on which the code inside of `with` runs, where `torch.cuda` is theirs.

    Args:
        slow: `copies` or `computations`.
        kind: `cuda`; or another, for which torch has neither pinned memory nor streams.

    Attributes:
        host_waits: how often the host has waited for a device, by what it wanted.
        used_bytes: memory of both devices that is in use.
        most_bytes: the most that was, of which they have no more than `limit_bytes`.
    """

    limit_bytes = 2**40

    def __init__(self, slow: str = "copies", kind: str = "cuda") -> None:
        super().__init__()
        self.kind = kind
        self._queues = Queues(slow, kind)
        self.host_waits = self._queues.host_waits
        self.used_bytes = self.most_bytes = 0
        self._free: dict[tuple[Any, int], list[Tensor]] = {}
        self._pinned: dict[int, Tensor] = {}  # by their addresses; they are kept, so that no address is given out again
        self._patches = contextlib.ExitStack()

    def __enter__(self) -> "Gpus":
        for target, names in self._replaced().items() if self.kind == "cuda" else ():
            for name, value in names.items():
                self._patches.enter_context(mock.patch.object(target, name, value))
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._patches.close()

    def _replaced(self) -> dict[Any, dict[str, Any]]:
        queues = self._queues
        shared = {
            "current_stream": queues.current_stream,
            "device_count": lambda: NUM_DEVICES,
            "is_available": lambda: True,
            "synchronize": queues.synchronize,
        }
        cuda = shared | {
            "Event": queues.new_event,
            "Stream": queues.new_stream,
            "current_device": queues.current_device,
            "default_stream": queues.default_stream,
            "device": queues.device,
            "empty_cache": lambda: None,
            "get_device_capability": lambda device=None: (7, 0),  # so old that nothing is advised
            "get_device_name": lambda device=None: "stand-in",
            "is_bf16_supported": lambda *args, **options: True,
            "stream": queues.stream,
        }
        accelerator = shared | {
            "current_accelerator": lambda *args, **options: torch.device("cuda"),
            "current_device_index": queues.current_device,
            "set_device_index": lambda index: None,  # asked by the thread of a loader that pins
        }
        tensor = {
            "is_pinned": lambda tensor, device=None: self.has_pinned(tensor),
            "pin_memory": lambda tensor, device=None: tensor if self.has_pinned(tensor) else self._pin(tensor),
        }
        return {torch.cuda: cuda, torch.accelerator: accelerator, Tensor: tensor}

    # Memory.

    def has_pinned(self, tensor: Tensor) -> bool:
        """Return whether a tensor lies in pinned memory of the host."""
        is_plain = not isinstance(tensor, OnDevice) and tensor.layout is torch.strided
        return is_plain and tensor.untyped_storage().data_ptr() in self._pinned

    def _pin(self, tensor: Tensor) -> Tensor:
        return self._new_pinned(tensor).copy_(tensor)

    def _new_pinned(self, like: Tensor) -> Tensor:
        pinned = torch.empty_like(_memory_of(like))
        torch.empty(0, dtype=torch.uint8).set_(pinned.untyped_storage()).fill_(_RUBBISH)
        self._pinned[pinned.untyped_storage().data_ptr()] = pinned
        return pinned

    def _allocate(self, like: Tensor, device: torch.device) -> OnDevice:
        """Return a tensor like another one, in memory which the current stream may have used before."""
        reach = 1 + sum((size - 1) * step for size, step in zip(like.shape, like.stride(), strict=True))
        num_bytes = like.element_size() * (reach if like.numel() else 0)
        if self.used_bytes + num_bytes > self.limit_bytes:
            raise torch.cuda.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {num_bytes} bytes.")
        self.used_bytes += num_bytes
        self.most_bytes = max(self.most_bytes, self.used_bytes)
        free = self._free.setdefault((self._queues.current_stream(device), num_bytes), [])
        memory = free.pop() if free else torch.full((num_bytes,), _RUBBISH, dtype=torch.uint8)
        block = Block()
        weakref.finalize(block, self._give_back, free, memory)
        return OnDevice(memory.view(like.dtype).as_strided(like.shape, like.stride()), block, device, self)

    def _give_back(self, free: list[Tensor], memory: Tensor) -> None:
        self.used_bytes -= len(memory)
        free.append(memory)

    # What torch is asked for by the name of a device.

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is Tensor.to:
            return self._to(*args, **kwargs)
        if function is Tensor.cuda:
            return self._to(args[0], self._queues.place(*args[1:]), **kwargs)
        if kwargs.get("pin_memory"):
            assert self.kind == "cuda", "no other device has pinned memory"
            return self._new_pinned(function(*args, **{**kwargs, "pin_memory": False}))
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == self.kind:
            return self._make(function, args, kwargs)
        if function in _CAST and torch.is_autocast_enabled("cuda"):
            kind = torch.get_autocast_dtype("cuda")
            args = [arg.to(kind) if arg is not None and arg.is_floating_point() else arg for arg in args]
        return function(*args, **kwargs)

    def _make(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        """Make a tensor on a device, as `zeros` and `zeros_like` do."""
        device = self._queues.place(kwargs["device"])
        made = function(*tree_map(_memory_of, args), **{**kwargs, "device": _CPU})
        if function in _COPIED_FROM_THE_HOST:
            self._queues.wait(function.__name__, device)
        return self._filled(made.detach(), device).requires_grad_(made.requires_grad)

    def _filled(self, values: Tensor, device: torch.device) -> OnDevice:
        """Return a tensor that a kernel has filled."""
        made = self._allocate(values, device)
        self._ask(device, made.memory.copy_, values)
        return made

    def _to(self, tensor: Tensor, *places: Any, non_blocking: bool = False, **options: Any) -> Tensor:
        """Move a tensor to another device, or leave that to torch where it stays on its own."""
        dtype, device = options.pop("dtype", None), options.pop("device", None)
        for place in places:
            if isinstance(place, torch.dtype):
                dtype = place
            elif isinstance(place, Tensor):
                dtype, device = place.dtype, place.device
            elif isinstance(place, bool):
                non_blocking = place
            elif place is not None:
                device = place
        device = tensor.device if device is None or torch.device(device).type == "meta" else torch.device(device)
        device = self._queues.place(device) if device.type == self.kind else device  # C++ has called its own one meta
        if device == tensor.device:
            return tensor.to(dtype or tensor.dtype, **options)
        if device == _CPU:
            return tensor.to(_CPU, dtype=dtype, non_blocking=non_blocking, **options)
        if dtype is not None:
            tensor = tensor.to(dtype)
        with torch.no_grad():
            moved = self._allocate(torch.empty_like(_memory_of(tensor)), device)
            self._copy(moved, tensor, non_blocking)
        return moved

    # What a device is asked for.

    def _ask(self, device: torch.device, function: Callable[..., Any], *args: Any) -> None:
        self._queues.current_stream(device).ask(functools.partial(function, *args))

    def _copy(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> None:
        """Copy between two devices, or between one and the host."""
        if isinstance(target, OnDevice) and isinstance(source, OnDevice):
            here, there = (self._queues.current_stream(tensor.device) for tensor in (target, source))
            here.wait_stream(there)
            self._ask(target.device, target.memory.copy_, source.memory)
            there.wait_stream(here)
        elif isinstance(target, OnDevice) and not self.has_pinned(source):
            self._queues.wait("a copy from memory that is not pinned", target.device)
            self._ask(target.device, target.memory.copy_, source.detach().clone())  # the driver has one of its own
        else:
            on_host, device = (source, target.device) if isinstance(target, OnDevice) else (target, source.device)
            self._ask(device, Tensor.copy_, _memory_of(target.detach()), _memory_of(source.detach()))
            if not (non_blocking and self.has_pinned(on_host)):
                self._queues.wait("a copy that blocks", device)

    def compute(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Ask for what an operation of torch does, and return its results, of which only the shapes are known yet."""
        if str(function) == "aten.copy_.default" and args[0].device != args[1].device:
            self._copy(args[0], args[1], *args[2:], **kwargs)
            return args[0]
        if str(function) == "aten._to_copy.default" and kwargs.get("device") == _CPU:
            is_late = bool(kwargs.get("non_blocking"))
            target = self._new_pinned(args[0]) if is_late else torch.empty_like(args[0].memory)
            self._copy(target, args[0], is_late)
            return target.to(kwargs.get("dtype") or target.dtype)
        if kwargs.get("device") == _CPU:  # of `empty_like` and its kind
            return function(*tree_map(_memory_of, args), **kwargs)
        if "device" in kwargs:
            kwargs["device"] = _CPU
        returns = function._schema.returns
        block, device = _used((args, kwargs))
        memories = tree_map(_as_given, (args, kwargs))
        if returns and all(each.alias_info is not None and not each.alias_info.is_write for each in returns):
            views = function(*memories[0], **memories[1])  # for which a device has nothing to do
            return tree_map(lambda view: OnDevice(view, block, device, self), views)
        try:
            shapes = tree_map(_shape_of, (args, kwargs))
            results = function(*shapes[0], **{**shapes[1], **({"device": "meta"} if "device" in kwargs else {})})
        except (NotImplementedError, RuntimeError):  # what it returns depends on values, so the host waits for them
            self._queues.wait(str(function), device)
            results = function(*memories[0], **memories[1])
            return tree_map(lambda each: self._filled(each, device) if isinstance(each, Tensor) else each, results)
        if returns and returns[0].alias_info is not None:
            self._ask(device, _carry_out, function, memories, [])
            return _changed(function._schema, args, kwargs)
        made = tree_map(lambda each: self._allocate(each, device) if isinstance(each, Tensor) else each, results)
        targets = [each.memory for each in tree_leaves(made) if isinstance(each, OnDevice)]
        self._ask(device, _carry_out, function, memories, targets)
        return made


def _used(arguments: Any) -> tuple[Block, torch.device]:
    """Return the memory of the first tensor of a device, and the device of all."""
    tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    on_device = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    places = {tensor.device for tensor in tensors if isinstance(tensor, OnDevice) or tensor.ndim}
    if len(places) != 1:
        raise RuntimeError(f"Expected all tensors to be on the same device, got {places}")
    return on_device[0].block, on_device[0].place


def _memory_of(leaf: Any) -> Any:
    return leaf.memory if isinstance(leaf, OnDevice) else leaf


def _as_given(leaf: Any) -> Any:
    """Return what a kernel is given: memory of the device, and a number of the host as it is now."""
    return leaf.clone() if isinstance(leaf, Tensor) and not isinstance(leaf, OnDevice) else _memory_of(leaf)


def _shape_of(leaf: Any) -> Any:
    if isinstance(leaf, OnDevice):
        return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="meta")
    return leaf


def _changed(schema: Any, args: Any, kwargs: Any) -> Any:
    """Return the argument that an operation changes in place, and returns."""
    for index, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            return args[index] if index < len(args) else kwargs[argument.name]
    raise NotImplementedError(f"{schema} returns something else than what it changes")


def _carry_out(function: Any, arguments: Any, targets: list[Tensor]) -> None:
    """Do what an operation does, and write its results where they belong, if it has not done that itself."""
    with torch.no_grad():
        results = function(*arguments[0], **arguments[1])
        made = [result for result in tree_leaves(results) if isinstance(result, Tensor)]
        for target, result in zip(targets, made if targets else [], strict=True):
            target.copy_(result)
