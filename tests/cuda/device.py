"""A simulated CUDA device on a CPU build of torch: what runs on it gives real values, and fails where a GPU would.

    with simulated_cuda() as device:
        model = make().to("cuda")
        model(batch.to("cuda")).sum().backward()
        assert device.launches.total() < 300 and not device.synchronisations

A tensor there says cuda:0 and holds a tensor of the CPU. Operations are computed on what is held, and raise where
tensors of two devices meet in a way that CUDA does not take. Seen besides: where the host waits for the device, as
torch.cuda.set_sync_debug_mode would see it, how many kernels are launched, copies to the host that are read before
they have arrived (they hold garbage until then), and random numbers, which are the device's own. Processes may meet:
what says nccl is gloo.

Not simulated: how fast or in what order anything runs, memory, how a GPU rounds, and kernels of its own: an operation
that has none on a CPU needs one in tests/cuda/stand_ins.py. Import this module before torch, or as a plugin of pytest
(-p tests.cuda.device).
"""

from tests.cuda import library

LIBRARY = library.load()

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.cuda.rules import is_copy_on_its_way_to_the_host, launches, leaves, refuse_other_devices, wait_of
from tests.cuda.stand_ins import STAND_INS

aten = torch.ops.aten
ROOT = Path(__file__).resolve().parents[2]
DEVICES = LIBRARY.simulated_device_count()
NAME, MEMORY, PROCESSORS = "Simulated CUDA device", 80 * 2**30, 108
GARBAGE = 113  # what integers are until their copy has arrived; floats are NaN


class SimulatedTensor(Tensor):
    """A tensor that says it is on a CUDA device; `inner` holds its values, and shares memory as it does."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> "SimulatedTensor":
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        with torch.inference_mode(inner.is_inference()):  # a view has the kind of what it views
            made = Tensor._make_wrapper_subclass(cls, inner.shape, **layout, device=device, requires_grad=False)
        made.inner = inner
        return made

    def __init__(self, inner: Tensor, device: torch.device) -> None:
        pass

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _active().dispatch(operation, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first.")
        return self.detach().cpu().numpy()

    # Who saves a model asks which tensors share memory.
    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def __deepcopy__(self, memo: dict) -> Tensor:
        made = self.detach().clone().requires_grad_(self.requires_grad)
        memo[id(self)] = nn.Parameter(made, self.requires_grad) if isinstance(self, nn.Parameter) else made
        return memo[id(self)]

    def __reduce_ex__(self, protocol: int) -> tuple:
        """As a file of torch has a tensor of a GPU: where there is none, it loads with a map_location only."""
        function, (storage, *rest) = self.detach().cpu().__reduce_ex__(protocol)
        storage._fake_device = self.device
        return function, (storage, *rest)

    def __repr__(self) -> str:
        return f"SimulatedTensor({self.inner}, device='{self.device}')"


class _Mode(TorchDispatchMode):
    """Sees what a thread does: a tensor can be made on the device out of nothing."""

    def __init__(self, device: "SimulatedDevice") -> None:
        super().__init__()
        self.device = device
        self._lifted: list[bool] = []

    def __enter__(self) -> "_Mode":
        self._lifted.append(torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device="cuda") copies where the mode sees it
        return super().__enter__()

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        torch._C._set_only_lift_cpu_tensors(self._lifted.pop())

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return self.device.dispatch(operation, args, kwargs or {}, self)


class SimulatedDevice:
    """What was seen since it began, or since `clear`.

    `launches` and `collectives` count operations by name; every operation that is no view counts as a launch.
    `synchronisations` has a line for each wait of the host: which operation, and where the project called it.
    """

    def __init__(self, capability: tuple[int, int]) -> None:
        self.capability = capability
        self.generators = tuple(torch.Generator() for _ in range(DEVICES))
        self.clear()
        self._copies: list[tuple[Tensor, Tensor]] = []  # to the host, on their way
        self._arrived = 0  # of all that began
        self._of_collectives: dict[int, torch.UntypedStorage] = {}

    def clear(self) -> None:
        self.launches: Counter[str] = Counter()
        self.collectives: Counter[str] = Counter()
        self.synchronisations: list[str] = []

    def wait(self, reason: str, copies: int | None = None) -> None:
        """The host waits for the device, and has the first `copies` that it began, or all."""
        self.synchronisations.append(f"{reason} at {_caller()}")
        begun = self._arrived + len(self._copies)
        while self._copies and self._arrived < (begun if copies is None else copies):
            target, values = self._copies.pop(0)
            target.copy_(values)
            self._arrived += 1

    @property
    def copies_begun(self) -> int:
        return self._arrived + len(self._copies)

    def dispatch(self, operation, args: tuple, kwargs: dict, mode: _Mode | None = None) -> Any:
        """Runs an operation on what its tensors hold."""
        if self._of_collectives:
            args, kwargs = _mapped(self._own, args), _mapped(self._own, kwargs)
        flat = leaves((args, kwargs))
        simulated = [value for value in flat if isinstance(value, SimulatedTensor)]
        asked = [value for value in flat if isinstance(value, torch.device)]
        if not simulated and not any(device.type == "cuda" for device in asked):
            return operation(*args, **kwargs)
        if operation._can_decompose():  # under torch.inference_mode, where autograd has not taken it apart
            with mode or _Mode(self):
                return operation.decompose(*args, **kwargs)
        devices = {tensor.device for tensor in simulated}
        if operation.namespace == "c10d":
            return self._collective(operation, args, kwargs, simulated)
        refuse_other_devices(operation, args, kwargs)
        if launches(operation):
            self.launches[operation._opname] += 1
        if reason := wait_of(operation, args, kwargs):
            self.wait(reason)
        target = _with_index(asked[-1]) if asked else next(iter(devices))
        if operation is aten.copy_.default:
            target = args[0].device

        inner_args, inner_kwargs = _mapped(_held, args), _mapped(_held, kwargs)
        if inner_kwargs.get("pin_memory"):
            inner_kwargs["pin_memory"] = False
        function = STAND_INS.get(operation.name().split(".")[0], operation)
        with self._random_numbers(operation, flat, target):
            if is_copy_on_its_way_to_the_host(operation, args, kwargs):
                return self._begin_copy(operation, args, inner_args, inner_kwargs)
            made = function(*inner_args, **inner_kwargs)
        if target.type != "cuda":
            return args[0] if operation is aten.copy_.default else made
        own = {id(tensor.inner): tensor for tensor in simulated}
        if operation is aten._to_copy.default and made is inner_args[0]:
            made = made.clone()
        return _mapped(lambda value: _wrapped(value, own, target), made)

    def _own(self, value: Any) -> Any:
        """What a collective has made is the device's, also where torch itself took it from gloo."""
        plain = type(value) is Tensor and value.device.type == "cpu"
        if plain and value.untyped_storage().data_ptr() in self._of_collectives:
            return SimulatedTensor(value, torch.device("cuda", LIBRARY.simulated_current_device()))
        return value

    def _collective(self, operation, args: tuple, kwargs: dict, simulated: list[SimulatedTensor]) -> Any:
        """Runs it by gloo, to its end; a GPU's runs in its stream, for which no host waits."""
        if any(isinstance(value, Tensor) and value.device.type == "cpu" for value in leaves((args, kwargs))):
            raise RuntimeError(f"No backend type associated with device type cpu: {operation} over nccl")
        self.collectives[operation._opname] += 1
        for tensor in simulated:
            storage = tensor.inner.untyped_storage()
            if storage.nbytes():
                self._of_collectives[storage.data_ptr()] = storage
        made = operation(*_mapped(_held, args), **_mapped(_held, kwargs))
        for value in leaves(made):
            if isinstance(value, torch.ScriptObject):
                dist.Work.unbox(value).wait()
        own = {id(tensor.inner): tensor for tensor in simulated}
        return _mapped(lambda value: _wrapped(value, own, simulated[0].device), made)

    @contextmanager
    def _random_numbers(self, operation, flat: list, target: torch.device) -> Iterator[None]:
        """Has the operation draw from the device's own generator."""
        if target.type != "cuda" or torch.Tag.nondeterministic_seeded not in operation.tags:
            yield
            return
        if any(isinstance(value, torch.Generator) and value not in self.generators for value in flat):
            raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu' (in {operation})")
        generator, state = self.generators[target.index], torch.get_rng_state()
        torch.set_rng_state(generator.get_state())
        try:
            yield
        finally:
            generator.set_state(torch.get_rng_state())
            torch.set_rng_state(state)

    def _begin_copy(self, operation, args: tuple, inner_args: tuple, inner_kwargs: dict) -> Tensor:
        if operation is aten.copy_.default:
            target, values = args[0], inner_args[1].to(args[0].dtype, copy=True)
        else:
            values = operation(*inner_args, **inner_kwargs).clone()
            target = torch.empty_like(values)
        target.fill_(torch.nan if target.is_floating_point() else GARBAGE)
        self._copies.append((target, values))
        return target


def _mapped(function: Callable, value: Any) -> Any:
    """The same nest of tuples, lists and dictionaries, with `function` of each leaf."""
    if isinstance(value, tuple | list):
        return type(value)([_mapped(function, one) for one in value])
    if isinstance(value, dict):
        return {name: _mapped(function, one) for name, one in value.items()}
    return function(value)


def _held(value: Any) -> Any:
    if isinstance(value, SimulatedTensor):
        return value.inner
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return value


def _wrapped(value: Any, own: dict[int, SimulatedTensor], device: torch.device) -> Any:
    if not isinstance(value, Tensor):
        return value
    if id(value) not in own:
        return SimulatedTensor(value, device)
    if own[id(value)].shape != value.shape:
        raise NotImplementedError("a tensor on the simulated device was resized in place")
    return own[id(value)]


def _with_index(device: torch.device) -> torch.device:
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", LIBRARY.simulated_current_device())
    return device


def _caller() -> str:
    """The innermost place in the project, but for this file."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(f"{ROOT}/") and "/site-packages/" not in file and file != __file__:
            return f"{Path(file).relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "no place in the project"


_current: SimulatedDevice | None = None


def _active() -> SimulatedDevice:
    if _current is None:
        raise RuntimeError("a tensor of the simulated device was used outside of simulated_cuda()")
    return _current


class Event:
    """As torch.cuda.Event: after its `synchronize`, what was begun before its `record` is there."""

    def __init__(self, enable_timing: bool = False, **_: bool) -> None:
        self._copies = 0

    def record(self, stream: object = None) -> None:
        self._copies = _active().copies_begun

    def synchronize(self) -> None:
        _active().wait("event.synchronize", self._copies)

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: "Event") -> float:
        return 1.0


def _pin_memory(tensor: Tensor, device: object = None) -> Tensor:
    if tensor.device.type != "cpu":
        raise RuntimeError(f"cannot pin '{tensor.type()}': only dense CPU tensors can be pinned")
    return tensor.clone()


def _init_process_group(
    backend: str | None = None, *args: Any, device_id: torch.device | None = None, **options: Any
):
    return _joined("gloo" if backend == "nccl" else backend, *args, **options)


_joined, _run_thread = dist.init_process_group, threading.Thread.run


@contextmanager
def simulated_cuda(capability: tuple[int, int] = (8, 0), gpus: int = 1) -> Iterator[SimulatedDevice]:
    """A machine with so many simulated GPUs (at most two) of this compute capability, for what runs inside."""
    global _current
    if _current is not None:
        raise RuntimeError("simulated_cuda() inside simulated_cuda()")
    device = SimulatedDevice(capability)

    def index_of(of: Any = None) -> int:
        given = torch.device(of) if isinstance(of, str) else of
        index = given.index if isinstance(given, torch.device) else given
        return LIBRARY.simulated_current_device() if index is None else index

    def exchange(index: int) -> int:
        before = LIBRARY.simulated_current_device()
        if index >= 0:
            LIBRARY.simulated_set_device(index)
        return before

    def run_thread(thread: threading.Thread) -> None:
        with _Mode(device):
            _run_thread(thread)

    properties = SimpleNamespace(
        name=NAME,
        major=capability[0],
        minor=capability[1],
        total_memory=MEMORY,
        multi_processor_count=PROCESSORS,
    )
    patches = {
        torch.cuda: {
            "_initialized": True,
            "_lazy_init": lambda: None,
            "_exchange_device": exchange,
            "_maybe_exchange_device": exchange,
            "default_generators": device.generators,
            "is_available": lambda: True,
            "device_count": lambda: gpus,
            "current_device": LIBRARY.simulated_current_device,
            "set_device": lambda of: LIBRARY.simulated_set_device(index_of(of)),
            "get_device_name": lambda of=None: NAME,
            "get_device_capability": lambda of=None: capability,
            "get_device_properties": lambda of=None: properties,
            "is_bf16_supported": lambda including_emulation=True: including_emulation or capability >= (8, 0),
            "mem_get_info": lambda of=None: (MEMORY // 2, MEMORY),
            "memory_allocated": lambda of=None: 0,
            "max_memory_allocated": lambda of=None: 0,
            "max_memory_reserved": lambda of=None: 0,
            "reset_peak_memory_stats": lambda of=None: None,
            "empty_cache": lambda: None,
            "synchronize": lambda of=None: device.wait("torch.cuda.synchronize"),
            "Event": Event,
        },
        torch.backends.cuda: {"is_flash_attention_available": lambda: True},
        torch.cuda.random: {
            "device_count": lambda: gpus,
            "current_device": LIBRARY.simulated_current_device,
        },
        Tensor: {"pin_memory": _pin_memory},
        dist: {"init_process_group": _init_process_group},
        threading.Thread: {"run": run_thread},
    }
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    with ExitStack() as stack:
        for owner, own in patches.items():
            stack.enter_context(mock.patch.multiple(owner, **own))
        torch.__future__.set_swap_module_params_on_conversion(True)  # a module's parameters stay the same objects
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swaps)
        stack.callback(LIBRARY.simulated_set_device, 0)
        _current = device
        try:
            with _Mode(device):
                yield device
        finally:
            _current = None
