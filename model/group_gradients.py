"""Inner products of the gradients of groups of samples, exactly, from the one backward pass of ordinary training.

Let every sample belong to one group and the loss be a sum over samples, L = Σ_g L_g. For a linear layer
y = x Wᵀ + b the backward pass visits, for every row t of its input, x_t and δ_t = ∂L/∂y_t, and

    ∂L_g/∂W = Σ_{t in g} δ_t x_tᵀ        since the rows of a group take part in the loss of no other.

Autograd sums over all t at once. Here the same products are summed group by group: the groups' sum is the weight's
ordinary gradient, and their inner products are what methods that compare groups ask for (iDRO, arXiv:2210.15212; CGD,
arXiv:2110.02619; Fish, arXiv:2104.09937). Nothing is approximated and no product is formed twice.

    watch = GroupGradients(encoder.encoder.layer[-3:], n_groups=50)
    with watch.rows(groups):                    # the group of each row of the forward calls inside, (B,)
        vectors = encoder(**inputs).last_hidden_state[:, 0]
    loss_of(vectors).backward()
    products = watch.collect()                  # (50, 50), and .grad of the watched parameters
    optimizer.step()

This module knows nothing of retrieval, of a model or of a trainer, and needs torch alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

# Of a block of group gradients; about four are alive at a time. A CPU wants them small, as its cache is, and a GPU
# large and few. Their size does not depend on how much of a GPU is free just now: the order of sums follows from it.
BLOCK_BYTES = 16 * 2**20
GPU_BLOCK_BYTES, GPU_MEMORY_SHARE = 512 * 2**20, 1 / 128
SIZE_CLASSES = 4  # of groups of like size, which a GPU multiplies padded


class GroupGradients:
    """Watches modules, and gives the inner products of the groups' gradients over all their parameters.

    `modules` may be layers of any depth. What holds trainable parameters in them must be nn.Linear, nn.LayerNorm
    (over the last dimension) or nn.Embedding; anything else is refused by name with a TypeError. The parameters leave
    autograd: requires_grad becomes False, and `collect` fills .grad, with autograd's gradient up to the order of
    floating point sums. Over several processes gradients are averaged, each group's and their sum, as
    DistributedDataParallel averages its own; wrap the model after making a `GroupGradients`, and it leaves the
    watched parameters alone. Its device and dtype must be final by then.

    Works with several backward passes before one `collect` (gradient accumulation: the inputs of all are kept),
    autocast, gradient scalers (`collect` before unscaling; the products carry the squared scale) and activation
    checkpointing with use_reentrant=False. In a compiled model, the watched modules run uncompiled.

    With `sketch_dim` D each group's gradient is projected to D numbers before processes exchange it, by random signs
    (from `seed`) and sums over every D-th entry: K · D numbers travel instead of K times the parameters. The products
    are then estimates without bias, whose standard deviation is about |a| |b| / √D (count sketch, Charikar et al.
    2002).
    """

    def __init__(
        self, modules: Iterable[nn.Module], n_groups: int, *, sketch_dim: int | None = None, seed: int = 0
    ) -> None:
        self.n_groups = n_groups
        self.sketch_dim = sketch_dim
        self._names = _watched_modules(modules)
        self._calls: dict[nn.Module, list[_Call]] = {module: [] for module in self._names}
        self._rows: dict[int, Tensor] = {}
        self._block_bytes = 0
        self._last_cast: tuple[Tensor, Tensor] | None = None
        self.parameters = [p for module in self._names for p in module.parameters(recurse=False) if p.requires_grad]
        generator = torch.Generator().manual_seed(seed)
        self._signs = {
            parameter: torch.randint(0, 2, (parameter.numel(),), generator=generator, dtype=torch.int8)
            .mul_(2)
            .sub_(1)
            .to(parameter.device)
            for parameter in (self.parameters if sketch_dim else ())
        }
        self._hooks = [module.register_forward_hook(self._record) for module in self._names]
        for parameter in self.parameters:
            parameter.requires_grad_(False)

    def release(self) -> None:
        """Stops watching: the parameters are autograd's again."""
        for hook in self._hooks:
            hook.remove()
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self._calls = {module: [] for module in self._names}

    @contextmanager
    def rows(self, *groups: Tensor) -> Iterator[None]:
        """Says which group each row of the forward calls inside belongs to.

        Each of `groups` is int64 (B,), where B is the first dimension of a watched module's input; there are several
        where modules see different rows, such as the tokens of packed sequences and, later on, one row a sequence.
        Rows of group -1 must have no part in the loss. Best given on the CPU: a GPU would have to be waited for.
        """
        if self._rows:
            raise RuntimeError("rows() inside rows()")
        if not groups:
            raise TypeError("rows() wants the groups of the rows")
        rows: dict[int, Tensor] = {}
        for one in groups:
            own = one.detach().cpu()
            if own.ndim != 1 or not ((own >= -1) & (own < self.n_groups)).all():
                raise ValueError(f"groups must be one-dimensional, from -1 to {self.n_groups - 1}")
            if not torch.equal(rows.setdefault(len(own), own), own):
                raise ValueError(f"two different groups of {len(own)} rows: they cannot be told apart")
        self._rows = rows
        try:
            yield
        finally:
            self._rows, self._last_cast = {}, None

    @torch.no_grad()
    def collect(self, groups: Sequence[Tensor] | None = None) -> Tensor:
        """The inner products of what was recorded since the last call; adds the gradients to .grad.

        Returns <g_i, g_j>, (K, K) in the parameters' dtype and on their device, 0 for a group that is absent. Every
        process must call it after its backward passes.

        `groups`, if given, are those that each process has rows of, int64 on the CPU, a tensor a process; all must be
        given the same. Otherwise several processes tell each other, and the host waits for a GPU meanwhile.
        ValueError where there is no such group, or where rows were recorded of one that this process is not said to
        have.
        """
        recorded = {
            module: [call for call in calls if call.deltas is not None] for module, calls in self._calls.items()
        }
        self._calls = {module: [] for module in self._names}
        device = self.parameters[0].device
        own = {id(call.groups): call.groups for calls in recorded.values() for call in calls}
        if groups is None:
            groups = _tell_each_other([*own.values()], self.n_groups, device)
        _check_groups(groups, [*own.values()], self.n_groups)
        exchange = _Exchange(groups, self.n_groups, self.sketch_dim, like=self.parameters[0])
        layouts = {key: _Layout(of_rows, exchange.here, self.parameters[0]) for key, of_rows in own.items()}
        start = 0  # of the block among all entries
        for pieces in self._blocks(recorded, exchange.most):
            sizes = [piece.size for piece in pieces]
            block = exchange.new_block(sum(sizes))
            for piece, part in zip(pieces, block[:, : sum(sizes)].split(sizes, dim=1), strict=True):
                part = part.view(len(block), piece.last - piece.first, *piece.parameter.shape[1:])
                for number, call in enumerate(recorded[piece.module]):
                    layout = layouts[id(call.groups)]
                    if number == 0 and not layout.covers:
                        part.zero_()
                    _add_gradients(part, piece, call, layout, fresh=number == 0)
            signs = torch.cat([piece.of(self._signs) for piece in pieces]) if self._signs else None
            mean = exchange.add(block, signs, start)[: sum(sizes)]
            for piece, gradient in zip(pieces, mean.split(sizes), strict=True):
                piece.add_to_grad(gradient)
            start += sum(sizes)
        return exchange.products()

    def _blocks(self, recorded: dict[nn.Module, list["_Call"]], groups: int) -> Iterator[list["_Piece"]]:
        """The watched parameters of modules that were called, in pieces that make blocks for so many groups.

        They are the same in all processes.
        """
        watched = {id(parameter) for parameter in self.parameters}
        self._block_bytes = self._block_bytes or _agreed_block_bytes(self.parameters[0].device)
        most = self._block_bytes // (self.parameters[0].element_size() * max(1, groups))  # entries
        pieces: list[_Piece] = []
        for module, calls in recorded.items():
            for parameter in module.parameters(recurse=False) if calls else ():
                if id(parameter) not in watched:
                    continue
                step = max(8, most // parameter[0].numel() // 8 * 8)  # in eights, as a GPU's loads are aligned
                for first in range(0, len(parameter), step):
                    piece = _Piece(module, parameter, first, min(first + step, len(parameter)))
                    if pieces and sum(one.size for one in pieces) + piece.size > most:
                        yield pieces
                        pieces = []
                    pieces.append(piece)
        if pieces:
            yield pieces

    @torch.compiler.disable
    def _record(self, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        """A forward hook: keeps the input now, and the output's gradient when the backward pass comes by."""
        if torch._C._current_graph_task_id() != -1:
            return  # a checkpointed layer, run again by the backward pass; its first run is recorded
        if not self._rows and not torch.is_grad_enabled():
            return  # an evaluation
        name = self._names[module]
        if not self._rows:
            raise RuntimeError(
                f"{name} is watched and was called outside rows(): say which groups its rows belong to, or call it "
                "under torch.no_grad()"
            )
        if not torch.is_grad_enabled():
            raise RuntimeError(
                f"{name} was called inside rows() without gradients; activation checkpointing must be asked for with "
                "use_reentrant=False"
            )
        (inputs,) = arguments
        if len(inputs) not in self._rows:
            told = " and ".join(map(str, self._rows))
            raise RuntimeError(f"{name} was called with {len(inputs)} rows, and rows() was told of {told}")
        call = _Call(self._as_multiplied(module, inputs), self._rows[len(inputs)])
        self._calls[module].append(call)
        if not output.requires_grad:  # nothing below wants a gradient
            output.requires_grad_()
        output.register_hook(call.add_deltas)

    def _as_multiplied(self, module: nn.Module, inputs: Tensor) -> Tensor:
        """The input in the type that autocast multiplies it in; cast once where modules share an input."""
        device_type = inputs.device.type
        if not (isinstance(module, nn.Linear) and torch.is_autocast_enabled(device_type)):
            return inputs.detach()
        if self._last_cast is None or self._last_cast[0] is not inputs:
            self._last_cast = inputs, inputs.detach().to(torch.get_autocast_dtype(device_type))
        return self._last_cast[1]


def _watched_modules(modules: Iterable[nn.Module]) -> dict[nn.Module, str]:
    """The modules that hold trainable parameters, with their names; TypeError for one that cannot be watched."""
    watched: dict[nn.Module, str] = {}
    owners: dict[nn.Parameter, str] = {}
    for number, root in enumerate(modules):
        for path, module in root.named_modules(prefix=str(number)):
            own = [p for p in module.parameters(recurse=False) if p.requires_grad]
            if not own or module in watched:
                continue
            name = f"{path} ({type(module).__name__})"
            if type(module).forward not in (nn.Linear.forward, nn.LayerNorm.forward, nn.Embedding.forward):
                raise TypeError(
                    f"{name} holds parameters and is no Linear, LayerNorm or Embedding: it cannot be watched"
                )
            if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1:
                raise TypeError(f"{name} normalizes over several dimensions: it cannot be watched")
            if isinstance(module, nn.Embedding) and (module.max_norm or module.scale_grad_by_freq or module.sparse):
                raise TypeError(f"{name} has max_norm, scale_grad_by_freq or sparse: it cannot be watched")
            for parameter in own:
                if parameter in owners:
                    raise TypeError(f"{name} shares a parameter with {owners[parameter]}: it cannot be watched")
                owners[parameter] = name
            watched[module] = name
    if not watched:
        raise TypeError("there is no trainable parameter to watch")
    return watched


class _Call:
    """One forward call: input (B, …, in), gradient of the output (B, …, out), and the groups of the B rows, (B,)."""

    def __init__(self, inputs: Tensor, groups: Tensor) -> None:
        self.groups = groups
        self.deltas: Tensor | None = None
        self._inputs, self._version = inputs, inputs._version

    @property
    def inputs(self) -> Tensor:
        """RuntimeError where they are no longer what the module was given."""
        if self._inputs._version != self._version:
            raise RuntimeError("a watched module's input was changed in place before the backward pass")
        return self._inputs

    def add_deltas(self, deltas: Tensor) -> None:
        self.deltas = deltas if self.deltas is None else self.deltas + deltas


@dataclass(frozen=True)
class _Piece:
    """Rows first … last - 1 of a module's parameter; of a vector, its entries."""

    module: nn.Module
    parameter: nn.Parameter
    first: int
    last: int

    @property
    def size(self) -> int:
        return (self.last - self.first) * self.parameter[0].numel()

    def of(self, signs: dict[nn.Parameter, Tensor]) -> Tensor:
        """Its part of what is kept of each entry of the parameters, (size,)."""
        return signs[self.parameter].view_as(self.parameter)[self.first : self.last].flatten()

    def add_to_grad(self, gradient: Tensor) -> None:
        """Adds its gradient, (size,), to the parameter's; a whole one becomes it where there is none."""
        gradient = gradient.view(self.last - self.first, *self.parameter.shape[1:])
        if self.parameter.grad is None and len(gradient) == len(self.parameter):
            self.parameter.grad = gradient
            return
        if self.parameter.grad is None:
            self.parameter.grad = torch.zeros_like(self.parameter)
        self.parameter.grad[self.first : self.last] += gradient


class _Layout:
    """How the rows of forward calls lie, of which `given` (B,) are the groups; `here` are those of this process.

    `places`, int64 ascending, are the groups that there are, by their numbers in `here`, and `counts` their rows.
    `covers`: there are all of `here`. Rows of no group are left out of everything.
    """

    def __init__(self, given: Tensor, here: Tensor, like: Tensor) -> None:
        self._like, self._device, self._here = like, like.device, len(here)
        outside, self._order = int((given < 0).sum()), given.argsort(stable=True)
        self._order = self._order[outside:]
        self._already = slice(outside, None) if not (given.diff() < 0).any() else None
        self._place = torch.searchsorted(here, given[self._order])
        self.places, counts = self._place.unique_consecutive(return_counts=True)
        self.counts: list[int] = counts.tolist()
        self.covers = len(self.counts) == len(here)

    @cached_property
    def stops(self) -> Tensor:
        """Where the rows of each of `places` end, int32 on the device."""
        return _to(self._device, torch.tensor(self.counts).cumsum(0).int())

    @cached_property
    def places_there(self) -> Tensor:
        """`places` on the device."""
        return _to(self._device, self.places)

    @cached_property
    def place(self) -> Tensor:
        """The number in `here` of each sorted row's group, int64 on the device."""
        return _to(self._device, self._place)

    @cached_property
    def _order_there(self) -> Tensor:
        return _to(self._device, self._order)

    def sort(self, values: Tensor) -> Tensor:
        """The rows of `values` (B, …) by group."""
        return values[self._already] if self._already else values.index_select(0, self._order_there)

    def sum(self, values: Tensor, into: Tensor, fresh: bool) -> None:
        """Adds the sums of each group's rows of `values` (B, n) to `into` (here, n); `fresh`: puts them there.

        On a GPU it is a product with a matrix of zeros and ones: adding by index has another order every time.
        """
        values = self.sort(values)
        if _multiplies_together(self._device):
            sums = self._members.to(values.dtype) @ values
            into.copy_(sums) if fresh else into.add_(sums)
            return
        for place, rows in zip(self.places.tolist(), values.split(self.counts), strict=True):
            into[place].copy_(rows.sum(0)) if fresh else into[place].add_(rows.sum(0))

    @cached_property
    def _members(self) -> Tensor:
        """Ones where a sorted row is of a group, (here, rows)."""
        return (self.place == torch.arange(self._here, device=self._device)[:, None]).to(self._like.dtype)

    @cached_property
    def padded(self) -> "_Padded":
        """The rows in a few matrices of like length."""
        return _Padded(self._order, self.counts, self.places, self._device)


class _Padded:
    """The rows of groups, padded, in a few classes of groups of like size.

    `rows` int64 (n,) are their numbers, of all classes one after another, and `real` (n,) tells them from padding,
    which repeats a row; `classes` are the groups of each class and their rows with padding; `places`, (groups,), are
    the groups in the classes' order.
    """

    def __init__(self, order: Tensor, counts: list[int], places: Tensor, device: torch.device) -> None:
        sizes = torch.tensor(counts)
        starts, by_size = sizes.cumsum(0) - sizes, sizes.argsort(descending=True, stable=True)
        self.classes: list[tuple[int, int]] = []
        rows, real = [], []
        for groups in _size_classes(sizes, by_size):
            columns = torch.arange(int(sizes[groups[0]]))
            rows.append(order[starts[groups, None] + columns.minimum(sizes[groups, None] - 1)].flatten())
            real.append((columns < sizes[groups, None]).flatten())
            self.classes.append((len(groups), len(columns)))
        self.rows, self.real, self.places = (
            _to(device, one) for one in (torch.cat(rows), torch.cat(real), places[by_size])
        )


def _size_classes(sizes: Tensor, by_size: Tensor) -> Iterator[Tensor]:
    """Cuts the groups, from large to small, where one has less than half the rows of its class's first."""
    first = 0
    for number in range(1, SIZE_CLASSES + 1):
        fitting = int((2 * sizes[by_size] >= sizes[by_size[first]]).sum())
        stop = len(by_size) if number == SIZE_CLASSES else fitting
        yield by_size[first:stop]
        if stop == len(by_size):
            return
        first = stop


def _add_gradients(into: Tensor, piece: _Piece, call: _Call, layout: _Layout, fresh: bool) -> None:
    """Adds a call's gradient of the piece, for each group, to `into` (here, …); `fresh`: puts it there.

    Groups that the call has no rows of stay as they are.
    """
    if piece.parameter.ndim == 1:
        _add_vector_gradients(into, piece, call, layout, fresh)
    elif isinstance(piece.module, nn.Embedding):
        _add_embedding_gradients(into, piece, call, layout, fresh)
    elif layout.counts:
        _add_linear_gradients(into, piece, call, layout, fresh)


def _add_linear_gradients(into: Tensor, piece: _Piece, call: _Call, layout: _Layout, fresh: bool) -> None:
    """Σ_{t in g} δ_t x_tᵀ, (here, rows of the piece, in); summed up in the type of δ."""
    deltas = call.deltas[..., piece.first : piece.last]  # B, …, rows of the piece
    inputs = call.inputs.to(deltas.dtype)  # B, …, in
    if not _multiplies_together(deltas.device):
        _add_a_product_a_group(into, layout.sort(deltas), layout.sort(inputs), layout, fresh)
        return
    if _can_be_grouped(deltas, inputs, len(layout.counts)):
        deltas, inputs = (layout.sort(values).flatten(0, -2) for values in (deltas, inputs))
        stops = layout.stops * (len(inputs) // sum(layout.counts))
        products, places = functional.grouped_mm(deltas.T, inputs, offs=stops), layout.places_there
    else:
        products, places = _padded_products(deltas, inputs, layout.padded), layout.padded.places
    put = into.index_copy_ if fresh else into.index_add_
    put(0, places, products.to(into.dtype))


def _add_a_product_a_group(into: Tensor, deltas: Tensor, inputs: Tensor, layout: _Layout, fresh: bool) -> None:
    """δᵀ x of sorted rows, a product a group: what a CPU does best."""
    for place, delta, row in zip(
        layout.places.tolist(), deltas.split(layout.counts), inputs.split(layout.counts), strict=True
    ):
        delta, row = delta.flatten(0, -2), row.flatten(0, -2)
        if delta.dtype == into.dtype:
            into[place].addmm_(delta.T, row, beta=0 if fresh else 1)
        elif fresh:
            into[place].copy_(delta.T @ row)
        else:
            into[place].add_(delta.T @ row)


def _padded_products(deltas: Tensor, inputs: Tensor, padded: _Padded) -> Tensor:
    """δᵀ x of each group, (groups, out, in), in the order of `padded.places`: as many launches as size classes."""
    deltas = deltas.index_select(0, padded.rows)
    deltas *= padded.real.view(-1, *[1] * (deltas.ndim - 1))
    inputs = inputs.index_select(0, padded.rows)
    products = deltas.new_empty(len(padded.places), deltas.shape[-1], inputs.shape[-1])
    sizes = [groups * rows for groups, rows in padded.classes]
    for (groups, _), delta, row, product in zip(
        padded.classes,
        deltas.split(sizes),
        inputs.split(sizes),
        products.split([groups for groups, _ in padded.classes]),
        strict=True,
    ):
        torch.bmm(delta.reshape(groups, -1, delta.shape[-1]).mT, row.reshape(groups, -1, row.shape[-1]), out=product)
    return products


def _multiplies_together(device: torch.device) -> bool:
    """Whether there is to be one product for many groups: a GPU would wait for the launches of one a group."""
    return device.type == "cuda"


def _can_be_grouped(deltas: Tensor, inputs: Tensor, groups: int) -> bool:
    """Whether torch has one kernel for all groups, unpadded: bfloat16 on Hopper and Blackwell.

    It takes fewer than 1,024 groups, and rows that begin at multiples of 16 bytes.
    """
    if not (deltas.is_cuda and deltas.dtype == torch.bfloat16 and groups < 1024):
        return False
    if torch.cuda.get_device_capability(deltas.device)[0] not in (9, 10):
        return False
    return all(
        rows.stride(-1) == 1
        and rows.stride(-2) > 0
        and not (rows.storage_offset() % 8 or rows.stride(-2) % 8 or rows.shape[-1] % 8)
        for rows in (deltas, inputs)
    )


def _add_embedding_gradients(into: Tensor, piece: _Piece, call: _Call, layout: _Layout, fresh: bool) -> None:
    """Σ_{t in g} δ_t of each group and token, (here, tokens of the piece, out)."""
    tokens = layout.sort(call.inputs.reshape(len(call.inputs), -1))  # B, tokens
    chosen = (tokens >= piece.first) & (tokens < piece.last)
    if piece.module.padding_idx is not None:
        chosen &= tokens != piece.module.padding_idx
    count = into.shape[0] * into.shape[1]
    index = (layout.place[:, None] * into.shape[1] + tokens - piece.first).where(chosen, count)
    sums = into.new_zeros(count + 1, into.shape[2])  # the last one takes what is not chosen
    sums.index_add_(0, index.flatten(), layout.sort(call.deltas).reshape(-1, into.shape[2]).to(into.dtype))
    put = into.copy_ if fresh else into.add_
    put(sums[:-1].view_as(into))


def _add_vector_gradients(into: Tensor, piece: _Piece, call: _Call, layout: _Layout, fresh: bool) -> None:
    """The gradient of a bias, or of LayerNorm's weight, (here, entries)."""
    values = call.deltas  # B, …, entries
    if isinstance(piece.module, nn.LayerNorm) and piece.parameter is piece.module.weight:
        inputs, values = call.inputs.to(into.dtype), values.to(into.dtype)
        values = values * functional.layer_norm(inputs, piece.module.normalized_shape, eps=piece.module.eps)
    values = values[..., piece.first : piece.last]
    layout.sum(values if values.ndim == 2 else values.flatten(1, -2).sum(1), into, fresh)


def _to(device: torch.device, numbers: Tensor) -> Tensor:
    """A small tensor of the CPU on the device, without waiting for what a GPU has to do."""
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers


def _size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _agreed_block_bytes(device: torch.device) -> int:
    """The bytes of a block, the same in all processes: their GPUs may differ."""
    if device.type != "cuda":
        return BLOCK_BYTES
    own = min(GPU_BLOCK_BYTES, int(torch.cuda.get_device_properties(device).total_memory * GPU_MEMORY_SHARE))
    if _size() == 1:
        return own
    least = torch.tensor(own, device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least)


def _tell_each_other(own: list[Tensor], n_groups: int, device: torch.device) -> list[Tensor]:
    """The groups that each process has rows of, when each says which are in its `own`."""
    present = torch.zeros(n_groups, dtype=torch.int64)
    for groups in own:
        present[groups[groups >= 0]] = 1
    gathered = present[None]
    if _size() > 1:
        gathered = torch.empty(_size(), n_groups, dtype=torch.int64, device=device)
        dist.all_gather(list(gathered), present.to(device))
    return [mask.nonzero().flatten() for mask in gathered.cpu()]


def _check_groups(groups: Sequence[Tensor], own: list[Tensor], n_groups: int) -> None:
    if len(groups) != _size():
        raise ValueError(f"groups of {len(groups)} processes were given, and there are {_size()}")
    for process, of_process in enumerate(groups):
        unknown = of_process[(of_process < 0) | (of_process >= n_groups)]
        if len(unknown):
            raise ValueError(
                f"process {process} is said to have rows of group {unknown[0]}; there are 0 to {n_groups - 1}, and "
                "rows of none (-1) are not told"
            )
    for recorded in own:
        unknown = recorded[recorded >= 0].unique()
        unknown = unknown[~torch.isin(unknown, groups[_rank()])]
        if len(unknown):
            raise ValueError(
                f"rows of group {unknown[0]} were recorded, and process {_rank()} is not said to have any of it"
            )


class _Exchange:
    """Averages blocks of group gradients over the processes and sums their inner products.

    A block is (groups here, entries). Each process sends each other one the share of the entries that is the other's
    to sum up, for the groups that it has rows of: no process ever holds more than a block, and absent groups do not
    travel. `groups` are those of each process; `here` this one's, int64 ascending, and `most` the most of any.
    `_union` are those in any process; of each process, `_counts` is how many it has and `_places` where they stand in
    the union.
    """

    def __init__(self, groups: Sequence[Tensor], n_groups: int, sketch_dim: int | None, like: nn.Parameter) -> None:
        self._size, self._rank = len(groups), _rank()
        groups = [of_process.unique() for of_process in groups]
        self.here = groups[self._rank]
        self._union = torch.cat(groups).unique()
        self._counts = [len(of_process) for of_process in groups]
        self.most = max(self._counts)
        self._n_groups, self._like = n_groups, like
        self._places = [_to(like.device, torch.searchsorted(self._union, of_process)) for of_process in groups]
        self._products = like.new_zeros(len(self._union), len(self._union))
        self._sketch = like.new_zeros(len(self._union), sketch_dim) if sketch_dim else None

    def new_block(self, entries: int) -> Tensor:
        """A block with room for so many entries, not filled in, and zeros up to equal shares for all processes."""
        share = -(-entries // self._size)
        block = self._like.new_empty(len(self.here), share * self._size)
        block[:, entries:] = 0
        return block

    def add(self, block: Tensor, signs: Tensor | None, start: int) -> Tensor:
        """Takes in a block, (groups here, n), and returns the mean gradient over the processes, (n,).

        `start` is the number of its first entry among those of all blocks.
        """
        if self._sketch is not None:
            dimension = self._sketch.shape[1]
            before = start % dimension
            signed = block[:, : len(signs)] * signs
            signed = functional.pad(signed, (before, -(before + len(signs)) % dimension))
            self._sketch.index_add_(0, self._places[self._rank], signed.view(len(block), -1, dimension).sum(1))
            return self._sum(block.sum(0)) / self._size
        if self._size == 1:
            self._products.addmm_(block, block.T)
            return block.sum(0)

        share = block.shape[1] // self._size
        outgoing = block.view(len(block), self._size, share).transpose(0, 1).reshape(-1, share)
        incoming = block.new_empty(sum(self._counts), share)
        dist.all_to_all_single(incoming, outgoing, self._counts, [len(block)] * self._size)
        if len(incoming) == self._size * len(self._union):  # every process has every group
            total = incoming.view(self._size, -1, share).sum(0)
        else:
            total = block.new_zeros(len(self._union), share)
            for places, part in zip(self._places, incoming.split(self._counts), strict=True):
                total.index_add_(0, places, part)
        total /= self._size
        self._products.addmm_(total, total.T)
        mean = block.new_empty(self._size, share)
        dist.all_gather(list(mean), total.sum(0))
        return mean.flatten()

    def _sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if self._size > 1:
            dist.all_reduce(tensor)
        return tensor

    def products(self) -> Tensor:
        """The inner products over all blocks and processes, (K, K)."""
        if self._sketch is not None:
            mean = self._sum(self._sketch) / self._size
            products = mean @ mean.T
        else:
            products = self._sum(self._products)
        union = _to(products.device, self._union)
        return products.new_zeros(self._n_groups, self._n_groups).index_put((union[:, None], union), products)
