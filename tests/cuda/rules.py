"""What CUDA takes, where it makes the host wait and what it launches, by the operations that torch dispatches.

Waits are those that torch.cuda.set_sync_debug_mode warns of.
"""

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXING = {  # whose indices may lie on the CPU
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index_put.default,
}
TAKES_NUMBERS = {  # a tensor of the CPU for one, beside operations on each element
    *("fill", "fill_", "masked_fill", "masked_fill_", "where", "index_put", "index_put_", "_index_put_impl_"),
}
LAUNCHES_NOTHING = {  # beside views
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "_reshape_alias"),
    *("_local_scalar_dense", "is_pinned", "record_stream"),
}
WAITS = {  # for a size or a value that is on the device
    *("_local_scalar_dense", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive"),
    *("bincount", "histc", "equal"),
}


def leaves(value: Any) -> list:
    """What a nest of tuples, lists and dictionaries holds."""
    if isinstance(value, tuple | list):
        return [leaf for one in value for leaf in leaves(one)]
    return leaves([*value.values()]) if isinstance(value, dict) else [value]


def on(kind: str, value: Any) -> bool:
    """Whether a value is a tensor on a device of this kind."""
    return isinstance(value, Tensor) and value.device.type == kind


def launches(operation: OpOverload) -> bool:
    return not operation.is_view and operation._opname not in LAUNCHES_NOTHING


def refuse_other_devices(operation: OpOverload, args: tuple, kwargs: dict) -> None:
    """Raises where a tensor takes part that the kernel cannot reach: on the CPU, or on another GPU."""
    values = leaves((args, kwargs))
    devices, others = {value.device for value in values if on("cuda", value)}, [v for v in values if on("cpu", v)]
    if operation in COPIES or len(devices) + bool(others) < 2:
        return
    allowed = set()
    if operation in INDEXING and on("cuda", args[0]):
        allowed |= {id(index) for index in args[1]}
    name = operation._opname
    if torch.Tag.pointwise in operation.tags or name.startswith("_foreach_") or name in TAKES_NUMBERS:
        allowed |= {id(tensor) for tensor in others if tensor.ndim == 0}  # which the launch takes along
    for position, argument in enumerate(operation._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written = kwargs.get(argument.name, args[position] if position < len(args) else None)
            allowed -= {id(tensor) for tensor in leaves(written)}
    refused = [tensor for tensor in others if id(tensor) not in allowed]
    if refused or len(devices) > 1:
        found = " and ".join(sorted({str(tensor.device) for tensor in refused} | set(map(str, devices))))
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in refused)
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {found}! (in {operation}"
            f"{', of the CPU: ' if refused else ''}{shapes})"
        )


def wait_of(operation: OpOverload, args: tuple, kwargs: dict) -> str | None:
    """Why the host waits for the device in this operation, or None."""
    name = operation._opname
    if name in WAITS:
        return name
    if operation is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
        return f"{name} without output_size"
    if operation in INDEXING:
        return _wait_of_index(name, *args)
    if operation not in COPIES:
        return None
    source, target, non_blocking = _copy(operation, args, kwargs)
    if non_blocking or source == target:
        return None
    return f"copy to {'the host' if source == 'cuda' else 'the device'}"


def _wait_of_index(name: str, own: Tensor, indices: list, values: Tensor | None = None, adds=False, *_) -> str | None:
    masks = [index for index in indices if index is not None and index.dtype in (torch.bool, torch.uint8)]
    if len(masks) == len(indices) == 1 and on("cuda", masks[0]) and on("cpu", values) and not adds:
        return None  # a number where a mask says so: masked_fill
    if masks:
        return f"{name} by a mask"
    if any(on("cpu", index) for index in indices):
        return f"{name} by indices of the CPU"
    return f"{name} of a number" if on("cpu", values) else None


def is_copy_on_its_way_to_the_host(operation: OpOverload, args: tuple, kwargs: dict) -> bool:
    """Whether this is a copy that is not there yet when the operation returns."""
    return operation in COPIES and _copy(operation, args, kwargs) == ("cuda", "cpu", True)


def _copy(operation: OpOverload, args: tuple, kwargs: dict) -> tuple[str, str, bool]:
    """From which kind of device to which, and whether it is non_blocking."""
    if operation is aten.copy_.default:
        target, source, *rest = args
        return source.device.type, target.device.type, bool(rest[0] if rest else kwargs.get("non_blocking"))
    source = args[0].device.type
    asked = kwargs.get("device")
    return source, torch.device(asked).type if asked is not None else source, bool(kwargs.get("non_blocking"))
