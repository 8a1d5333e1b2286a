"""What a method does to a device, counted on a machine without that device: launches, waiting, transfers, memory."""

import weakref
from collections import Counter

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# The CPU waits for a GPU: a value is read, or values decide the size of a result.
_WAITING = {
    "_local_scalar_dense", "_unique", "_unique2", "bincount", "equal", "histc", "is_nonzero", "masked_select", "nonzero",
    "repeat_interleave", "unique_consecutive", "unique_dim", "unique_dim_consecutive",
}  # fmt: skip
# On a CPU they are no operation, so only the call shows. ``numpy`` is not one of them: it needs ``cpu`` before.
_READING = {torch.Tensor.cpu, torch.Tensor.tolist}


class Operations(TorchDispatchMode):
    """Counts the operations inside the block, also those of backward passes.

    Attributes:
        launches: operations that are no views. On a GPU each is at least one kernel.
        waits: by name, operations for which the CPU would wait on a GPU.
        transfers: copies between devices.
        peak: bytes. The most that tensors made inside the block had at one time, without what a kernel needs for itself.
    """

    def __init__(self):
        super().__init__()
        self.launches = self.transfers = self.peak = self._live = 0
        self.waits: Counter[str] = Counter()
        self._known = weakref.WeakSet()
        self._reads = _Reads(self.waits)

    def __enter__(self):
        self._reads.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._reads.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        inputs = _tensors((args, kwargs))
        # What was there before is not counted.
        self._known.update(tensor.untyped_storage() for tensor in inputs)
        output = func(*args, **kwargs)
        self.launches += not _is_view(func)
        if name in _WAITING:
            self.waits[name] += 1
        elif name.startswith("index") and any(tensor.dtype == torch.bool for tensor in _tensors(args[1:2])):
            self.waits["boolean index"] += 1
        elif name in ("_to_copy", "copy_"):
            self.transfers += len({tensor.device.type for tensor in [*inputs, *_tensors(output)]}) > 1
        for tensor in _tensors(output):
            self._add(tensor.untyped_storage())
        return output

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            self._known.add(storage)
            self._live += storage.nbytes()
            self.peak = max(self.peak, self._live)
            weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self._live -= size


class _Reads(TorchFunctionMode):
    def __init__(self, found: Counter):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in _READING:
            self.found[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def _tensors(values: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _is_view(func: torch._ops.OpOverload) -> bool:
    returns = [output.alias_info for output in func._schema.returns]
    return bool(returns) and all(alias is not None and not alias.is_write for alias in returns)
