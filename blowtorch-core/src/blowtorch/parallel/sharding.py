"""Models whose weights, gradients and optimizer states are divided among the processes, by torch's FSDP2.

Before a block of the model computes, its weights are brought together from all processes, and let go after it; its
gradients are added up over all processes as soon as they are there, and each process keeps its piece of the sum.
"""

import contextlib
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from blowtorch.errors import OptionError, ScriptError, nearest
from blowtorch.parallel.pieces import cut_out, divide_like, is_divided, offsets_of, own_piece, whole
from blowtorch.parallel.world import World

_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_DDP = ("find_unused_parameters", "static_graph", "bucket_cap_mb")  # what torch's DistributedDataParallel is told
_BUCKET_MB = 25  # as torch's DistributedDataParallel has it
_RANDOM = ("normal_", "uniform_", "bernoulli_", "exponential_", "random_", "log_normal_", "cauchy_", "geometric_")
_RANDOM_LIKE = ("randn_like", "rand_like", "randint_like")


@dataclass(frozen=True)
class Sharding:
    """How a model is divided.

    Attributes:
        wrap: which modules are brought together at a time: `blocks` for those that stand in a list or a sequence with
            others of their class, or the names of classes.
        reshard_after_forward: let the weights of a block go after its forward, and bring them together again for its
            backward; else they are kept meanwhile, which takes memory and saves time.
        precision: in which weights are brought together and computed with: `bf16`, `fp16` or, as they are, `fp32`.
            Gradients are added up in fp32.
        replicas: into how many groups of processes they are divided, each of which has the whole model.
        activation_checkpointing: compute the blocks again in the backward, instead of keeping what they computed.
    """

    wrap: str | Sequence[str] = "blocks"
    reshard_after_forward: bool = True
    precision: str = "fp32"
    replicas: int = 1
    activation_checkpointing: bool = False


def read_parallel(option: Any) -> Sharding | None:
    """Return how the option `parallel` divides the model; None where each process has all of it.

    Raises:
        OptionError: it says something that there is not.
    """
    expected = "option parallel: expected 'auto', 'ddp', 'fsdp', or one of the latter with options, as {'fsdp': {…}}"
    name, settings = option, None
    if isinstance(option, Mapping) and len(option) == 1:
        ((name, settings),) = option.items()
    if name not in ("auto", "ddp", "fsdp") or not isinstance(settings, Mapping | None) or (name == "auto" and settings):
        raise OptionError(f"{expected}, got {option!r}.{nearest(str(name), ('auto', 'ddp', 'fsdp'))}")
    settings = dict(settings or {})
    known = _DDP if name == "ddp" else [field.name for field in dataclasses.fields(Sharding)]
    for key in settings:
        if key not in known:
            raise OptionError(f"option parallel: {name} has no option {key!r}.{nearest(str(key), known)}")
    if name != "fsdp":
        size = settings.get("bucket_cap_mb", _BUCKET_MB)
        if isinstance(size, bool) or not isinstance(size, int | float) or not 0 < size < math.inf:
            raise OptionError(f"option parallel: ddp: expected a number above 0 as bucket_cap_mb, got {size!r}")
        return None
    sharding = Sharding(**settings)
    _check(sharding)
    return sharding


def bucket_bytes(option: Any) -> int:
    """Return how many bytes of gradients are sent at a time, by an option `parallel` that has been read."""
    settings = (option.get("ddp") if isinstance(option, Mapping) else None) or {}
    megabytes: float = settings.get("bucket_cap_mb", _BUCKET_MB)
    return math.ceil(megabytes * 2**20)


def _check(sharding: Sharding) -> None:
    where, wrap = "option parallel: fsdp:", sharding.wrap
    if wrap != "blocks" and (isinstance(wrap, str) or not all(isinstance(name, str) for name in wrap)):
        raise OptionError(f"{where} expected 'blocks' or a list of names of classes as wrap, got {wrap!r}")
    if sharding.precision not in _PRECISIONS:
        raise OptionError(f"{where} expected one of {', '.join(_PRECISIONS)} as precision, got {sharding.precision!r}")
    if not isinstance(sharding.replicas, int) or sharding.replicas < 1:
        raise OptionError(f"{where} expected a number from 1 up as replicas, got {sharding.replicas!r}")
    for name in ("reshard_after_forward", "activation_checkpointing"):
        if not isinstance(getattr(sharding, name), bool):
            raise OptionError(f"{where} expected true or false as {name}, got {getattr(sharding, name)!r}")


def is_sharded(model: nn.Module) -> bool:
    """Return whether the parameters of a model are divided among processes."""
    return any(map(is_divided, model.parameters()))


def explained(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return a step that does the same, and says what to do where torch fails because weights are in pieces."""

    def explaining(**arguments: Any) -> Any:
        try:
            return step(**arguments)
        except RuntimeError as error:
            if "torch.Tensor and DTensor" in str(error):
                error.add_note(_IN_PIECES)
            raise

    return explaining


_IN_PIECES = """\
The weights of the model are divided among the processes (option parallel: fsdp), and whole only while it is called as
model(...). Call it so; or have a method of its own bring them together too, by
    torch.distributed.fsdp.register_fsdp_forward_method(state.model, "name of the method")
in a function with @run.on("run_start"); or train with parallel="ddp"."""


def divide_in_all(model: nn.Module, sharding: Sharding, world: World, device: torch.device) -> None:
    """Divide the weights of a model, which is on its device and the same in all processes; it stays divided.

    Raises:
        OptionError: in all of them, if the processes do not make so many groups, the model has no such class or sparse
            gradients, or torch has no FSDP2.
    """
    try:
        _divide(model, sharding, world, device)
    except OptionError as error:
        world.refuse(error)


def _divide(model: nn.Module, sharding: Sharding, world: World, device: torch.device) -> None:
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    except ImportError as error:
        raise OptionError(f"parallel='fsdp' needs torch 2.6 or newer, and this is {torch.__version__}") from error
    shape = (sharding.replicas, world.size // sharding.replicas)
    if math.prod(shape) != world.size:
        raise OptionError(
            f"option parallel: fsdp: {world.size} processes make no {sharding.replicas} groups of the same size; set "
            f"replicas to a divisor of {world.size}"
        )
    names = ("replicas", "pieces")
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
    mesh = mesh["pieces"] if sharding.replicas == 1 else mesh
    precision = _PRECISIONS[sharding.precision]
    policy = MixedPrecisionPolicy(None if precision is torch.float32 else precision, torch.float32)
    _refuse_indivisible(model)
    roots = _find_roots(model)
    blocks = [block for block in find_blocks(model, sharding.wrap) if block not in roots]
    if sharding.activation_checkpointing:
        for block in blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    for module in (*blocks, *roots):
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=sharding.reshard_after_forward)
    sum_gradients(model)


def sum_gradients(model: nn.Module) -> None:
    """Have a divided model add gradients up and not average them: losses are weighed by their samples.

    Raises:
        ScriptError: the script has divided it in another way, of which nobody knows here who needs which samples.
    """
    from torch.distributed.fsdp import FSDPModule

    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not parts:
        raise ScriptError(
            "the script has divided the model among processes by other means than fully_shard, such as tensor "
            "parallelism, so it is not known which samples a process needs; give the model whole, with parallel='fsdp'"
        )
    for part in parts:
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def _find_roots(model: nn.Module) -> list[nn.Module]:
    """Return the model, or if nobody can call it, such as an `nn.ModuleDict`, what it consists of."""
    if type(model).forward is not nn.Module.forward or "forward" in vars(model):
        return [model]
    if any(True for _ in model.parameters(recurse=False)):
        raise OptionError(
            f"option parallel: fsdp: {type(model).__name__} has parameters and no forward, before which they could be "
            f"brought together; give it one, and call the model"
        )
    return [root for child in model.children() for root in _find_roots(child)]


def _refuse_indivisible(model: nn.Module) -> None:
    scalar = next((name for name, parameter in model.named_parameters() if not parameter.ndim), None)
    if scalar is not None:
        raise OptionError(
            f"option parallel: fsdp: {scalar!r} is a parameter without dimensions, which torch cannot divide; give it "
            f"the shape (1,), or train with parallel='ddp'"
        )
    name = next((name for name, module in model.named_modules() if getattr(module, "sparse", None) is True), None)
    if name is not None:
        raise OptionError(
            f"option parallel: fsdp: {name!r} has sparse gradients, which torch cannot divide; make it with "
            f"sparse=False, or train with parallel='ddp'"
        )


def find_blocks(model: nn.Module, wrap: str | Sequence[str]) -> list[nn.Module]:
    """Return the modules that are brought together at a time, none of which lies in another one.

    One that shares a parameter with a module outside of it is not among them.

    Raises:
        OptionError: the model has no module of a class that `wrap` names.
    """
    blocks = _find_repeated(model) if isinstance(wrap, str) else _find_of_classes(model, wrap)
    users: Counter[int] = Counter()
    for module in model.modules():
        users.update({id(parameter) for parameter in module.parameters(recurse=False)})
    inside = [
        Counter(id(own) for module in block.modules() for own in module.parameters(recurse=False)) for block in blocks
    ]
    return [
        block
        for block, own in zip(blocks, inside, strict=True)
        if all(users[parameter] == count for parameter, count in own.items())
    ]


def _find_repeated(module: nn.Module) -> list[nn.Module]:
    """Return the outermost modules that stand in a list or a sequence with others of their class."""
    blocks = []
    is_list = isinstance(module, nn.ModuleList | nn.Sequential | nn.ModuleDict)
    kinds = Counter(type(child) for child in module.children())
    for child in module.children():
        has_weights = any(True for _ in child.parameters())
        if is_list and has_weights and kinds[type(child)] > 1 and not isinstance(child, nn.ModuleList | nn.ModuleDict):
            blocks.append(child)
        else:
            blocks += _find_repeated(child)
    return blocks


def _find_of_classes(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    known = sorted({type(module).__name__ for module in model.modules() if module is not model})
    for name in names:
        if name not in known:
            raise OptionError(
                f"option parallel: fsdp: wrap names {name!r}, and the model has no module of such a class."
                f"{nearest(name, known)} There are {', '.join(known)}"
            )

    def find(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            if type(child).__name__ in names:
                yield child
            else:
                yield from find(child)

    return list(dict.fromkeys(find(model)))


def exchange_in_backward(model: nn.Module, is_wanted: bool) -> None:
    """Have the next backward add up the gradients of a divided model over all processes, or keep its own until then."""
    for module in model.modules():
        if hasattr(module, "set_requires_gradient_sync"):  # the script may have divided some of its modules alone
            module.set_requires_gradient_sync(is_wanted, recurse=False)  # type: ignore[operator]


def let_go(model: nn.Module) -> None:
    """Let each process of a divided model have its pieces alone; one that was only judged may still be together."""
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()  # type: ignore[operator]


@contextlib.contextmanager
def drawing_alike(world: World) -> Iterator[None]:
    """Have what is drawn for a divided tensor be the same as for a whole one: each process draws it all.

    Torch would draw in each process for its piece alone, so that another number of them had other weights.

    Raises:
        ScriptError: in all of them, for a random function of which nobody knows here how it draws.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class DrawnWhole(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
        ) -> Any:
            name, kwargs = func.overloadpacket.__name__, kwargs or {}
            if name == "_local_scalar_dense" and is_divided(args[0]):  # a loop that draws until all numbers suit
                return func(whole(args[0]))
            if torch.Tag.nondeterministic_seeded not in func.tags or not any(map(is_divided, args)):
                return func(*args, **kwargs)
            divided = args[0]
            if not is_divided(divided) or name not in (*_RANDOM, *_RANDOM_LIKE):
                world.refuse(
                    ScriptError(
                        f"the function with @run.init draws by torch's {name!r} for a model that is divided among "
                        f"processes, which would draw for each piece; take a function of nn.init or a method such as "
                        f"normal_, uniform_ or bernoulli_, which draw the numbers of one process"
                    )
                )
            local = own_piece(divided)
            drawn = func(torch.empty(divided.shape, dtype=divided.dtype, device=local.device), *args[1:], **kwargs)
            if name in _RANDOM_LIKE:
                return divide_like(divided, partial(cut_out, drawn), drawn.dtype)
            local.copy_(cut_out(drawn, offsets_of(divided), local.shape))
            return divided

    with DrawnWhole():  # type: ignore[no-untyped-call]
        yield
