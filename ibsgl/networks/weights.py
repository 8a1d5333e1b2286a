"""State dicts in files of this package and of others: reading one, and loading it into a network with clear errors."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from ibsgl.files import read_tensors

log = logging.getLogger(__name__)

_WRAPPERS = ("state_dict", "model")
_SHOWN = 3


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in the file ``path``. Nothing in the file is executed.

    The dict may be under the key ``state_dict`` or ``model``. The prefix ``module.`` of ``DataParallel`` is removed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or holds something else. The message is one line.
    """
    state = read_tensors(path)
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
            break
    if not isinstance(state, Mapping) or not state or not all(map(_is_entry, state, state.values())):
        raise ValueError(
            f"{path}: it must hold a state dict (names and dense tensors), or one under the key {' or '.join(_WRAPPERS)}"
        )
    return {key.removeprefix("module."): value for key, value in state.items()}


def _is_entry(name: object, value: object) -> bool:
    """Whether it can be an entry of a state dict."""
    return isinstance(name, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided


def load_state(
    network: nn.Module,
    state: Mapping[str, torch.Tensor],
    path: Path,
    *,
    names: Mapping[str, str],
    network_name: str,
    new_classes: bool,
) -> None:
    """Copy ``state`` into ``network``.

    Args:
        network: its parameters are overwritten.
        state: the parameters by name.
        path: the file of ``state``, for the message.
        names: the network's key → the key in ``state``, for every key of the network.
        network_name: the network's name, for the message.
        new_classes: whether the last layer of ``state`` may have another number of classes. The network then keeps its own.

    Raises:
        ValueError: layers are missing, unexpected or of another shape. The message is one line, with the first few of each.
    """
    own = {names[key]: value for key, value in network.state_dict().items()}
    # Old files lack num_batches_tracked, and evaluation does not use it.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    different = [key for key in own if key in state and state[key].shape != own[key].shape]
    last = {key for key in different if key in list(own)[-2:] and state[key].shape[1:] == own[key].shape[1:]}
    if new_classes:
        different = [key for key in different if key not in last]
    if missing or unexpected or different:
        shapes = [f"{key} {_shape(state[key])} in the file, {_shape(own[key])} here" for key in different]
        problems = [
            f"{title} {_first(keys)}"
            for title, keys in (("missing:", missing), ("unexpected:", unexpected), ("another shape:", shapes))
            if keys
        ]
        if not missing and not unexpected and set(different) == last:
            problems.append("another number of classes, so train the classifier (classifier.epochs) on the new ones")
        raise ValueError(f"{path}: these are not the weights of {network_name}; {'; '.join(problems)}")
    if last:
        log.warning("%s: it has another number of classes, so its last layer is not used; a new one is trained", path)
    kept = {key: state[name] for key, name in names.items() if name in state and name not in last}
    network.load_state_dict(kept, strict=False)


def _shape(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"


def _first(items: Sequence[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def digest_state(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of a state dict's names, types, shapes and values, as 64 hexadecimal digits.

    It does not depend on the bytes of a file that holds the state dict.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
