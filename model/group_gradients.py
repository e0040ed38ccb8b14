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

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

BLOCK_BYTES = 16 * 2**20  # of one block of group gradients; a handful of such blocks are alive at a time


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
        self._rows: dict[int, _Rows] = {}
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
        rows: dict[int, _Rows] = {}
        for one in groups:
            own = one.detach().cpu()
            if own.ndim != 1 or not ((own >= -1) & (own < self.n_groups)).all():
                raise ValueError(f"groups must be one-dimensional, from -1 to {self.n_groups - 1}")
            if not torch.equal(rows.setdefault(len(own), _Rows(own)).given, own):
                raise ValueError(f"two different groups of {len(own)} rows: they cannot be told apart")
        self._rows = rows
        try:
            yield
        finally:
            self._rows, self._last_cast = {}, None

    @torch.no_grad()
    def collect(self) -> Tensor:
        """The inner products of what was recorded since the last call; adds the gradients to .grad.

        Returns <g_i, g_j>, (K, K) in the parameters' dtype and on their device, 0 for a group that is absent. Every
        process must call it after its backward passes.
        """
        recorded = {
            module: [call.by_group() for call in calls if call.deltas is not None]
            for module, calls in self._calls.items()
        }
        self._calls = {module: [] for module in self._names}
        exchange = _Exchange(recorded.values(), self.n_groups, self.sketch_dim, like=self.parameters[0])
        vectors: list[tuple[nn.Parameter, Tensor]] = []
        for module, calls in recorded.items():
            for parameter in module.parameters(recurse=False) if calls else ():
                if not any(parameter is watched for watched in self.parameters):
                    continue
                if parameter.ndim == 1:
                    vectors.append((parameter, _vector_gradients(module, parameter, calls, exchange.here)))
                    continue
                for first, last in exchange.slices(parameter):
                    block = _matrix_gradients(module, calls, exchange.here, first, last)
                    signs = self._signs[parameter].view_as(parameter)[first:last].flatten() if self._signs else None
                    _grad_of(parameter)[first:last] += exchange.add(block.flatten(1), signs).view(last - first, -1)
        if vectors:  # biases and norms are small: one block holds them all
            parameters = [parameter for parameter, _ in vectors]
            signs = torch.cat([self._signs[parameter] for parameter in parameters]) if self._signs else None
            total = exchange.add(torch.cat([block for _, block in vectors], dim=1), signs)
            for parameter, gradient in zip(parameters, total.split([len(p) for p in parameters]), strict=True):
                _grad_of(parameter).add_(gradient)
        return exchange.products()

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


class _Rows:
    """The groups of a forward call's rows, and how to sort the rows by group.

    `given` (B,) is what the caller said. Rows of no group left out: `groups` int64, ascending; `present` the groups
    that there are, and `stops` where the rows of each end.
    """

    def __init__(self, given: Tensor) -> None:
        self.given = given
        outside = int((given < 0).sum())
        ascending = not (given.diff() < 0).any()
        self._order = slice(outside, None) if ascending else given.argsort(stable=True)[outside:]
        self.groups = given[self._order]
        self.present, self._place, counts = self.groups.unique_consecutive(return_inverse=True, return_counts=True)
        self.stops = counts.cumsum(0)

    def sort(self, values: Tensor) -> Tensor:
        """The rows of `values` (B, …) in the order of `groups`."""
        if isinstance(self._order, Tensor):
            self._order = _to(values.device, self._order)
        return values[self._order]

    def place(self, device: torch.device) -> Tensor:
        """Which of `present` each of the sorted rows belongs to, int64, on the device."""
        self._place = _to(device, self._place)
        return self._place


class _Call:
    """One forward call: input (B, …, in), gradient of the output (B, …, out), and the groups of the B rows."""

    def __init__(self, inputs: Tensor, rows: _Rows) -> None:
        self.inputs, self.rows = inputs, rows
        self.deltas: Tensor | None = None
        self._version = inputs._version

    def add_deltas(self, deltas: Tensor) -> None:
        self.deltas = deltas if self.deltas is None else self.deltas + deltas

    def by_group(self) -> "_Call":
        """Itself with its rows sorted by group, rows of no group left out."""
        if self.inputs._version != self._version:
            raise RuntimeError("a watched module's input was changed in place before the backward pass")
        self.inputs, self.deltas = self.rows.sort(self.inputs), self.rows.sort(self.deltas)
        return self


def _matrix_gradients(module: nn.Module, calls: list[_Call], groups: Tensor, first: int, last: int) -> Tensor:
    """Rows first … last - 1 of the weight's gradient, for each of `groups`: (groups, last - first, columns)."""
    weight = module.weight
    make = _embedding_gradients if isinstance(module, nn.Embedding) else _linear_gradients
    if len(calls) == 1 and len(calls[0].rows.present) == len(groups):
        return make(module, calls[0], first, last).to(weight.dtype)
    block = weight.new_zeros(len(groups), last - first, weight.shape[1])
    for call in calls:
        places = _to(weight.device, torch.searchsorted(groups, call.rows.present))
        block.index_add_(0, places, make(module, call, first, last).to(weight.dtype))
    return block


def _linear_gradients(module: nn.Linear, call: _Call, first: int, last: int) -> Tensor:
    """Σ_{t in g} δ_t x_tᵀ of each group of one call, (groups present, last - first, in), in the type of δ."""
    deltas = call.deltas.flatten(0, -2)[:, first:last]  # N, rows of the weight
    inputs = call.inputs.flatten(0, -2).to(deltas.dtype)  # N, in
    stops = call.rows.stops * call.inputs[:1].flatten(0, -2).shape[0]
    if len(stops) and _can_be_grouped(deltas, inputs):
        return functional.grouped_mm(deltas.T, inputs, offs=_to(deltas.device, stops.int()))
    return _product_a_group(deltas, inputs, stops)


def _product_a_group(deltas: Tensor, inputs: Tensor, stops: Tensor) -> Tensor:
    """deltasᵀ inputs over the rows of each group, which end at `stops`: (groups, out, in)."""
    products = deltas.new_empty(len(stops), deltas.shape[1], inputs.shape[1])
    sizes = stops.diff(prepend=stops.new_zeros(1)).tolist()
    for product, delta, row in zip(products, deltas.split(sizes), inputs.split(sizes), strict=True):
        torch.mm(delta.T, row, out=product)
    return products


def _can_be_grouped(deltas: Tensor, inputs: Tensor) -> bool:
    """Whether torch has one kernel for all groups, rather than one a group: bfloat16 on Hopper and Blackwell."""
    if not (deltas.is_cuda and deltas.dtype == torch.bfloat16):
        return False
    aligned = all(rows.stride(1) == 1 and rows.stride(0) and rows.stride(0) % 8 == 0 for rows in (deltas, inputs))
    return aligned and torch.cuda.get_device_capability(deltas.device)[0] in (9, 10)


def _embedding_gradients(module: nn.Embedding, call: _Call, first: int, last: int) -> Tensor:
    """Σ_{t in g} δ_t of each group and token of one call, (groups present, last - first, out)."""
    tokens = call.inputs.reshape(len(call.inputs), -1)  # B, tokens
    chosen = (tokens >= first) & (tokens < last)
    if module.padding_idx is not None:
        chosen &= tokens != module.padding_idx
    index = (call.rows.place(tokens.device)[:, None] * (last - first) + tokens - first)[chosen]
    deltas = call.deltas.reshape(*tokens.shape, -1)[chosen]
    block = deltas.new_zeros(len(call.rows.present) * (last - first), deltas.shape[1])
    return block.index_add_(0, index, deltas).view(-1, last - first, deltas.shape[1])


def _vector_gradients(module: nn.Module, parameter: nn.Parameter, calls: list[_Call], groups: Tensor) -> Tensor:
    """The gradient of a bias, or of LayerNorm's weight, for each of `groups`: (groups, entries)."""
    block = parameter.new_zeros(len(groups), len(parameter))
    for call in calls:
        values = call.deltas.to(parameter.dtype)  # B, …, entries
        if isinstance(module, nn.LayerNorm) and parameter is module.weight:
            inputs = call.inputs.to(parameter.dtype)
            values = values * functional.layer_norm(inputs, module.normalized_shape, eps=module.eps)
        values = values if values.ndim == 2 else values.flatten(1, -2).sum(1)
        own = block.new_zeros(len(call.rows.present), len(parameter))
        own.index_add_(0, call.rows.place(block.device), values)
        block.index_add_(0, _to(block.device, torch.searchsorted(groups, call.rows.present)), own)
    return block


def _to(device: torch.device, numbers: Tensor) -> Tensor:
    """A small tensor of the CPU on the device, without waiting for what the device has to do."""
    return numbers.to(device, non_blocking=True)


def _grad_of(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


class _Exchange:
    """Averages blocks of group gradients over the processes and sums their inner products.

    A block is (groups here, entries). Each process sends each other one the share of the entries that is the other's
    to sum up, for the groups that it has rows of: no process ever holds more than a block, and absent groups do not
    travel. `here` are the groups present in this process, int64 ascending, `_union` those in any process; `_counts`
    and `_places` are, a process each, how many it has and where they stand in the union.
    """

    def __init__(
        self, recorded: Iterable[list[_Call]], n_groups: int, sketch_dim: int | None, like: nn.Parameter
    ) -> None:
        present = torch.zeros(n_groups, dtype=torch.int64)
        for calls in recorded:
            for call in calls:
                present[call.rows.present] = 1
        self.here = present.nonzero().flatten()
        self._size = dist.get_world_size() if dist.is_initialized() else 1
        gathered = present[None]
        if self._size > 1:
            gathered = torch.empty(self._size, n_groups, dtype=torch.int64, device=like.device)
            dist.all_gather(list(gathered), present.to(like.device))
        everywhere = [mask.nonzero().flatten() for mask in gathered.cpu()]
        self._union = torch.cat(everywhere).unique()
        self._counts = [len(groups) for groups in everywhere]
        self._places = [_to(like.device, torch.searchsorted(self._union, groups)) for groups in everywhere]
        self._n_groups = n_groups
        self._products = like.new_zeros(len(self._union), len(self._union))
        self._sketch = like.new_zeros(len(self._union), sketch_dim) if sketch_dim else None

    def slices(self, parameter: nn.Parameter) -> Iterator[tuple[int, int]]:
        """Row ranges of a matrix: a block of all groups' gradients stays within BLOCK_BYTES, or is of eight rows."""
        row_bytes = parameter[0].numel() * parameter.element_size() * max(1, len(self._union))
        step = max(8, BLOCK_BYTES // row_bytes // 8 * 8)  # in eights, as a GPU's loads are aligned
        for first in range(0, len(parameter), step):
            yield first, min(first + step, len(parameter))

    def add(self, block: Tensor, signs: Tensor | None) -> Tensor:
        """Takes in a block, (groups here, n), and returns the mean gradient over the processes, (n,)."""
        if self._sketch is not None:
            signed = functional.pad(block * signs, (0, -block.shape[1] % self._sketch.shape[1]))
            folded = signed.view(len(block), -1, self._sketch.shape[1]).sum(1)
            self._sketch.index_add_(0, self._places[dist.get_rank() if self._size > 1 else 0], folded)
            return self._sum(block.sum(0)) / self._size
        if self._size == 1:
            self._products.addmm_(block, block.T)
            return block.sum(0)

        share = -(-block.shape[1] // self._size)
        padded = functional.pad(block, (0, share * self._size - block.shape[1]))
        outgoing = padded.view(len(block), self._size, share).transpose(0, 1).reshape(-1, share)
        incoming = block.new_empty(sum(self._counts), share)
        dist.all_to_all_single(incoming, outgoing, self._counts, [len(block)] * self._size)
        total = block.new_zeros(len(self._union), share)
        for places, part in zip(self._places, incoming.split(self._counts), strict=True):
            total.index_add_(0, places, part)
        total /= self._size
        self._products.addmm_(total, total.T)
        mean = block.new_empty(self._size, share)
        dist.all_gather(list(mean), total.sum(0))
        return mean.flatten()[: block.shape[1]]

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
