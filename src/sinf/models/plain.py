"""A network as data: ``config.json`` names layers and steps, ``model.safetensors`` holds the tensors.

This file stands alone: it needs torch and safetensors, and lies in every folder that ``sinf prune`` writes.

    from load import load

    model = load("folder")  # an nn.Module in eval mode, (B, C, H, W) -> (B, classes)

Weights are in the order of channels_last and take no gradients, as when they were timed. Importing a ``load.py`` that
somebody else gave you runs that file; ``sinf.from_pretrained("folder")`` uses its own and runs nothing that lies there.

No code is read from data: a layer is one of ``LAYERS``, a step calls one of ``FUNCTIONS`` or ``METHODS``. Nothing is
allocated because data says so: text is bounded before it is parsed, hashes are checked, layers are made on the meta
device and run there, and only then are tensors read, those of the file.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

FORMAT, METHOD = 8, "static"  # of every folder of a model, and of those that hold a plain one
WEIGHTS = "model.safetensors"
REMEDY = "copy the folder again, or write it again with sinf prune"

MAX_BYTES, MAX_ITEMS, MAX_DEPTH = 8 << 20, 300_000, 32  # of config.json
MAX_CHANNELS, MAX_SIDE, MAX_NUMBER = 16, 2048, 2**64
MAX_VALUES, MAX_LIVE = 1 << 28, 1 << 29  # for one image: numbers of a step, of all that are needed at once
# What traced networks of torchvision, timm and sinf use, and their kin; none reads or writes files.
_LAYERS = """Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d Linear Identity MultiheadAttention BatchNorm1d
    BatchNorm2d BatchNorm3d InstanceNorm1d InstanceNorm2d LayerNorm GroupNorm RMSNorm LocalResponseNorm ReLU ReLU6
    LeakyReLU PReLU ELU SELU CELU GELU SiLU Mish Sigmoid Tanh Hardsigmoid Hardswish Hardtanh Softplus Softsign GLU
    Softmax LogSoftmax MaxPool1d MaxPool2d AvgPool1d AvgPool2d LPPool2d AdaptiveAvgPool1d AdaptiveAvgPool2d
    AdaptiveMaxPool1d AdaptiveMaxPool2d Dropout Dropout1d Dropout2d AlphaDropout FeatureAlphaDropout Flatten Unflatten
    Unfold Fold PixelShuffle PixelUnshuffle ChannelShuffle Upsample ZeroPad1d ZeroPad2d ConstantPad1d ConstantPad2d
    ReflectionPad1d ReflectionPad2d ReplicationPad1d ReplicationPad2d"""
_BOTH = """abs add addcdiv addcmul amax amin argmax bmm ceil chunk clamp cos cumsum div erf exp flatten flip floor
    gather index_select log log1p log_softmax logsumexp masked_fill matmul max maximum mean min minimum mm movedim mul
    narrow neg norm permute pow reciprocal relu repeat_interleave reshape roll round rsqrt select sigmoid sin softmax
    split split_with_sizes sqrt square squeeze std sub sum swapaxes t tanh tile transpose true_divide unbind unflatten
    unsqueeze var where"""
_METHODS = """add_ bool clamp_ clone contiguous detach dim div_ expand expand_as float half bfloat16 int long mul_
    ndimension numel relu_ repeat reshape_as sigmoid_ size sub_ tanh_ to type_as unfold view view_as"""
_OPERATORS = """add sub mul truediv floordiv mod pow neg pos abs matmul getitem invert eq ne lt le gt ge and_ or_ xor
    iadd isub imul itruediv"""
_TORCH = """_assert adaptive_avg_pool1d addmm avg_pool1d baddbmm batch_norm cat celu channel_shuffle concat conv1d
    conv2d conv3d conv_transpose1d conv_transpose2d dropout einsum full_like group_norm layer_norm max_pool1d max_pool2d
    ones_like pixel_shuffle pixel_unshuffle prelu relu_ rms_norm selu stack std_mean var_mean zeros_like"""
_FUNCTIONAL = """adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d alpha_dropout
    avg_pool1d avg_pool2d batch_norm celu conv1d conv2d conv3d conv_transpose1d conv_transpose2d cosine_similarity
    dropout dropout1d dropout2d elu feature_alpha_dropout fold gelu glu group_norm hardsigmoid hardswish hardtanh
    instance_norm interpolate layer_norm leaky_relu linear local_response_norm log_softmax logsigmoid lp_pool2d
    max_pool1d max_pool2d mish normalize pad pixel_shuffle pixel_unshuffle prelu relu relu6 rms_norm
    scaled_dot_product_attention selu sigmoid silu softmax softplus softsign tanh tanhshrink threshold unfold"""
LAYERS = frozenset(_LAYERS.split())
METHODS = frozenset(f"{_BOTH} {_METHODS}".split())
FUNCTIONS = {
    "torch": (torch, frozenset(f"{_BOTH} {_TORCH}".split())),
    "torch.nn.functional": (nn.functional, frozenset(_FUNCTIONAL.split())),
    "operator": (operator, frozenset(_OPERATORS.split())),
    "math": (math, frozenset(["ceil", "floor", "sqrt"])),
}
_ATTRIBUTES = ("shape", "ndim", "dtype", "device", "T", "mT")
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
_PATH = re.compile(r"[A-Za-z0-9_-]{1,100}(\.[A-Za-z0-9_-]{1,100}){0,31}")
_DEVICE = re.compile(r"(cpu|cuda|mps)(:\d{1,2})?")


def load(folder: str | Path) -> Plain:
    """The network in a folder, in eval mode; a ValueError where there is none, or a damaged one."""
    config, path = _read_config(folder), Path(folder) / WEIGHTS
    with _refusing(f"{path} must be as it was written"), _open(path) as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != config["sha256"][WEIGHTS]:
            raise ValueError("it is damaged or was changed")
        return fill(config["model"], path)


def _read_config(folder: str | Path) -> dict[str, Any]:
    """What config.json holds: bounded before it is parsed, and as it was written by its own digest; or a ValueError."""
    path = Path(folder) / "config.json"
    with _refusing(f"{path} must be JSON as sinf prune writes it"):
        with _open(path) as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES or sum(map(content.count, (b"[", b"{", b","))) > MAX_ITEMS:
            raise _refusal(f"{path} must be small", f"more than {MAX_BYTES >> 20} MB or {MAX_ITEMS} items")
        config = json.loads(content.decode())
        if (version := config.get("sinf_format", config.get("format"))) != FORMAT:
            raise _refusal(f"{path} must have the format {FORMAT}", version, "write it again with sinf prune")
        if (method := config.get("method")) != METHOD:
            raise _refusal(f"{path} must be of the method {METHOD}", method, "open it with sinf.from_pretrained")
        if config["digest"] != digest(config):
            raise _refusal(f"{path} must be as it was written", "a digest of another content")
    return config


def digest(config: dict[str, Any]) -> str:
    """sha256 of what a config holds besides its digest and the signature of that, written in one way."""
    content = {key: value for key, value in config.items() if key not in ("digest", "signature")}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def fill(model: dict[str, Any], path: Path) -> Plain:
    """The network that a config describes, with the tensors of a file, in eval mode; a ValueError where one does not
    fit the other."""
    from safetensors import safe_open

    with _refusing(f"{path} must hold the tensors of the config"):
        require_data(model)
        size = model["preprocessing"]["size"]
        require_size(size)
        network = checked(model["options"], size, model["classes"])
        own = network.state_dict()
        with safe_open(str(path), framework="pt") as tensors:
            shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
            wrong = sorted(n for n in own.keys() | shapes.keys() if n not in own or shapes.get(n) != own[n].shape)
            if wrong:
                raise _refusal(f"{path} must hold the tensors of the config", f"others, such as {wrong[0]}")
            network.to(memory_format=torch.channels_last).to_empty(device="cpu").eval().requires_grad_(False)
            # Copied: mapped tensors may begin at any address, which is slower to read, and change with their file.
            network.load_state_dict({name: tensors.get_tensor(name) for name in shapes})
        network(torch.zeros(1, *size))  # meta checks less
    return network


def require_size(size: Any) -> None:
    """Refuse what is no size ``(channels, height, width)`` of an image."""
    whole = isinstance(size, (list, tuple)) and len(size) == 3 and all(type(n) is int and n > 0 for n in size)
    if not whole or size[0] > MAX_CHANNELS or max(size) > MAX_SIDE:
        raise _refusal(f"an image has up to {MAX_CHANNELS} channels and sides of 1 .. {MAX_SIDE}", size)


def require_data(value: Any, depth: int = 0) -> None:
    """Refuse data that no description holds: deep nesting, long words, numbers that are not finite or huge."""
    rule = "a description must be plain data"
    if depth > MAX_DEPTH:
        raise _refusal(rule, f"more than {MAX_DEPTH} levels")
    if isinstance(value, (list, dict)):
        for item in value if isinstance(value, list) else (*value, *value.values()):
            require_data(item, depth + 1)
    elif isinstance(value, str) and len(value) > 2000:
        raise _refusal(rule, f"a word of {len(value)} letters")
    elif isinstance(value, float) and not math.isfinite(value):
        raise _refusal(rule, f"the number {value}")
    elif isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise _refusal(rule, "a huge number")
    elif value is not None and not isinstance(value, (str, float, int)):
        raise _refusal(rule, type(value).__name__)


def _open(path: Path) -> BufferedReader:
    if not path.is_file():  # reading a device might never end
        raise _refusal(f"{path.parent} must be a folder that sinf prune wrote", f"no {path.name} in it")
    return path.open("rb")


class _Refused(ValueError):
    """An error of this file: one line with the rule, the value that broke it, and the remedy."""


def _refusal(rule: str, got: object, remedy: str = REMEDY) -> _Refused:
    text = f"{type(got).__name__}: {got}" if isinstance(got, Exception) else str(got)
    rule, text = (" ".join(part[:1000].split())[:300] for part in (rule, text))
    return _Refused(f"{rule} (got {text}): {remedy}")


@contextmanager
def _refusing(rule: str) -> Iterator[None]:
    """Whatever is raised, by constructors of torch that are given anything for one, becomes one line."""
    try:
        yield
    except _Refused:
        raise
    except Exception as error:
        raise _refusal(rule, error) from error


class Plain(nn.Module):
    """``{"layers": {path: {"type", "args"}}, "tensors": {path: {"kind", "shape", "dtype"}}, "steps": [...]}``.

    A step is ``{"name", "do", "of", "args", "kwargs"}``: ``do`` is input, tensor, layer, function, method or output,
    ``of`` what it calls. Anything else raises a ValueError.
    """

    def __init__(self, network: dict[str, Any]) -> None:
        super().__init__()
        with _refusing("the description of the network must be whole"):
            require_data(network)
            if network.keys() != {"layers", "tensors", "steps"}:
                raise _refusal("a network is layers, tensors and steps", list(network))
            for path, layer in network["layers"].items():
                _place(self, path, _layer(layer))
            for path, tensor in network["tensors"].items():
                _place(self, path, _tensor(tensor))
            steps = [_step(step) for step in network["steps"]]
            self._steps = _with_last_uses(steps, {"layer": network["layers"], "tensor": network["tensors"]})

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x)

    def _run(self, x: Tensor, after: Callable[[Any], None] | None = None, device: Any = None) -> Tensor:
        """All steps; ``after`` is called with what each makes, ``device`` takes the place of those that are named."""
        values: dict[str, Any] = {}
        for name, do, of, args, kwargs, function, path, flat, done in self._steps:
            if flat and device is None:  # most steps; small networks spend as long here as in their arithmetic
                args = [values[a.step] if type(a) is _Value else a for a in args]
            else:
                args, kwargs = _replace((args, kwargs), lambda a: values[a.step] if type(a) is _Value else device or a)
            if do == "function":
                value = function(*args, **kwargs)
            elif do == "method":
                value = getattr(args[0], of)(*args[1:], **kwargs)
            elif do == "input":
                value = x
            elif do == "output":
                return args[0]
            else:
                owner: Any = self
                for part in path[:-1]:
                    owner = owner._modules[part]
                value = owner._modules[path[-1]](*args, **kwargs) if do == "layer" else getattr(owner, path[-1])
            values[name] = value
            if after is not None:
                after(value)
            for each in done:
                del values[each]
        raise ValueError("no output")  # see _with_last_uses


def checked(network: dict[str, Any], size: Iterable[int], classes: int | None = None) -> Plain:
    """The network on the meta device, where it ran on a batch of one and of two without taking memory: the answer is
    ``(B, classes)``, and every step makes at most ``MAX_VALUES`` numbers an image.

    A step that computes with the size of the batch may make more from larger batches.

    Raises:
        ValueError: something else is described; the message names the step.
    """
    require_size(size := list(size))
    counts: list[list[int]] = []
    meta = torch.device("meta")
    with meta, torch.no_grad():
        model = Plain(network).eval()
        for batch in (1, 2):
            counts.append(numbers := [])
            try:
                answer = model._run(torch.zeros(batch, *size), lambda value: numbers.append(_numbers(value)), meta)
            except Exception as error:  # as above
                name = model._steps[len(numbers)].name
                raise _refusal(f"step {name!r} must run on images of shape {(batch, *size)}", error) from error
            shape = tuple(answer.shape) if isinstance(answer, Tensor) else ()
            if len(shape) != 2 or shape[0] != batch or classes not in (None, shape[1]):
                raise _refusal(f"the answer must be (B, {classes or 'classes'})", f"{shape} for {batch} images")
    live, by_name = 0, dict(zip((step.name for step in model._steps), counts[0], strict=False))
    for step, one, two in zip(model._steps, *counts, strict=False):
        live += one
        if one > MAX_VALUES or live > MAX_LIVE or two > 2 * one:
            got = f"{one} of {live} at once, {two} for two images"
            raise _refusal(f"step {step.name!r} must not make more numbers than a network needs", got)
        live -= sum(by_name[name] for name in step.done)
    return model


def _numbers(value: Any) -> int:
    return sum(v.numel() for v in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(v, Tensor))


class _Step(NamedTuple):
    name: str
    do: str
    of: str
    args: list[Any]
    kwargs: dict[str, Any]
    function: Callable[..., Any]
    path: tuple[str, ...]  # the parts of ``of``
    flat: bool  # values of steps are arguments themselves, not within one, and none is a device
    done: tuple[str, ...] = ()  # values that no later step reads


class _Value(NamedTuple):
    step: str  # in arguments, what it made


def _step(step: dict[str, Any]) -> _Step:
    name, do, of = step["name"], step["do"], step.get("of", "")
    if step.keys() - _Step._fields or not all(isinstance(word, str) for word in (name, do, of)):
        raise _refusal("a step is its name, what it does and with what", step)
    if do not in ("input", "output", "layer", "tensor", "function", "method"):
        raise _refusal("a step must be input, tensor, layer, function, method or output", repr(do))
    if do == "method" and of not in METHODS:
        raise _refusal("no method of tensors that a network may call", repr(of))
    args, kwargs = _parse(step.get("args", [])), _parse(step.get("kwargs", {}))
    if not isinstance(args, list) or not isinstance(kwargs, dict) or "out" in kwargs:
        raise _refusal("arguments of a step are a list, and a record without out", step)
    if do in ("method", "output") and not args:
        raise _refusal(f"a step of the kind {do} needs an argument", step)
    within: list[Any] = []
    _replace(([arg for arg in args if type(arg) is not _Value], kwargs), within.append)
    called = function(of) if do == "function" else operator.pos
    return _Step(name, do, of, args, kwargs, called, tuple(of.split(".")), not within)


@cache
def function(name: str) -> Callable[..., Any]:
    """The function of this name, if it is one of ``FUNCTIONS``, or ``builtins.getattr`` of a shape."""
    home, _, own = name.rpartition(".")
    library, names = FUNCTIONS.get(home, (None, ()))
    if name == "builtins.getattr":
        return _attribute
    if own not in names or not hasattr(library, own):
        raise _refusal("no function of tensors that a network may call", repr(name))
    callable_ = getattr(library, own)
    return partial(_arithmetic, callable_) if home == "operator" and own not in ("getitem", "eq", "ne") else callable_


def _attribute(value: Any, name: str) -> Any:
    if name not in _ATTRIBUTES:
        raise _refusal("no attribute of tensors that a network may read", repr(name))
    return getattr(value, name)


def _arithmetic(compute: Callable[..., Any], *args: Any) -> Any:
    """Python's own arithmetic, for sizes and tensors alone: it makes huge numbers, lists and texts from small ones."""
    sequences = [arg for arg in args if isinstance(arg, (list, tuple))]
    adds = compute in (operator.add, operator.iadd) and sum(map(len, sequences)) <= 64
    huge = any(isinstance(arg, int) and abs(arg) > MAX_NUMBER for arg in args)
    power = compute is operator.pow and isinstance(args[-1], int) and abs(args[-1]) > 64
    if any(isinstance(arg, (str, dict)) for arg in args) or (sequences and not adds) or huge or power:
        raise _refusal(f"{compute.__name__} is for tensors and sizes", args)
    return compute(*args)


def _layer(layer: dict[str, Any]) -> nn.Module:
    kind, args = layer["type"], layer["args"]
    if not isinstance(kind, str) or kind not in LAYERS or not hasattr(nn, kind):
        raise _refusal("no layer that a network may have", repr(kind))
    made = getattr(nn, kind)
    if args.keys() - inspect.signature(made).parameters.keys() or args.keys() & {"device", "dtype"}:
        raise _refusal(f"{kind} has other arguments", args)
    return made(**{name: _parse(value) for name, value in args.items()})


def _tensor(tensor: dict[str, Any]) -> Tensor:
    shape, kind = tensor["shape"], tensor["kind"]
    if kind not in ("parameter", "buffer") or not isinstance(shape, list) or not all(type(n) is int for n in shape):
        raise _refusal("a tensor is a parameter or a buffer of some shape", tensor)
    value = torch.zeros(shape, dtype=_dtype(tensor["dtype"]))
    return nn.Parameter(value) if kind == "parameter" else value


def _place(root: nn.Module, path: str, value: nn.Module | Tensor) -> None:
    """Put a layer or tensor where its path says, in plain modules that are made on the way."""
    if not _PATH.fullmatch(path):
        raise _refusal("no path of a layer or tensor", repr(path))
    *above, name = path.split(".")
    for part in above:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    if isinstance(value, nn.Module):
        root.add_module(name, value)
    elif isinstance(value, nn.Parameter):
        root.register_parameter(name, value)
    else:
        root.register_buffer(name, value)


def _parse(value: Any) -> Any:
    """JSON to arguments: lists stay lists, and what JSON lacks is a dictionary with one special key."""
    if isinstance(value, list):
        return [_parse(item) for item in value]
    if isinstance(value, dict):
        special = value.keys() & _SPECIAL.keys()
        if special and len(value) > 1:
            raise _refusal("no argument", value)
        return _SPECIAL[special.pop()](*value.values()) if special else {n: _parse(v) for n, v in value.items()}
    return value


def _listed(items: list[Any]) -> list[Any]:
    if not isinstance(items, list):
        raise _refusal("a tuple or slice is a list", items)
    return _parse(items)


def _dtype(name: Any) -> torch.dtype:
    if name not in _DTYPES:
        raise _refusal("no type of tensors that a network may have", repr(name))
    return getattr(torch, name)


_SPECIAL: dict[str, Callable[[Any], Any]] = {
    "$step": lambda name: _Value(str(name)),
    "$tuple": lambda items: tuple(_listed(items)),
    "$slice": lambda items: slice(*_listed(items)),
    "$number": lambda name: {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[name],
    "$ellipsis": lambda _: ...,
    "$dtype": _dtype,
    "$device": lambda name: torch.device(_DEVICE.fullmatch(name).group()),  # type: ignore[union-attr]
}


def _replace(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """Arguments with what ``leaf`` makes of the values of steps and the devices in them."""
    if isinstance(value, (_Value, torch.device)):
        return leaf(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_replace(item, leaf) for item in value)
    if isinstance(value, dict):
        return {name: _replace(item, leaf) for name, item in value.items()}
    if isinstance(value, slice):
        return slice(*_replace([value.start, value.stop, value.step], leaf))
    return value


def _with_last_uses(steps: list[_Step], named: dict[str, Any]) -> list[_Step]:
    """Steps with the values that nobody reads after each; they read what is there, and their names are their own."""
    last: dict[str, str] = {}
    defined: set[str] = set()
    for step in steps:
        leaves: list[Any] = []
        _replace((step.args, step.kwargs), leaves.append)
        sources = {leaf.step for leaf in leaves if isinstance(leaf, _Value)}
        if not sources <= defined:
            raise _refusal(f"step {step.name[:100]!r} reads what is not there", sorted(sources - defined))
        if step.do in named and step.of not in named[step.do]:
            raise _refusal(f"no such {step.do} in the description", repr(step.of))
        if step.name in defined:
            raise _refusal("steps need names of their own", repr(step.name))
        last |= dict.fromkeys([*sources, step.name], step.name)
        defined.add(step.name)
    if [step.do for step in steps].count("output") != 1 or steps[-1].do != "output":
        raise _refusal("the last step, and no other, must be the output", f"{len(steps)} steps")
    done: dict[str, list[str]] = {}
    for name, step_name in last.items():
        done.setdefault(step_name, []).append(name)
    return [step._replace(done=tuple(done.get(step.name, ()))) for step in steps]
