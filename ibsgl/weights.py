"""State dicts from files of this package and of others, and what to say where one does not fit."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

log = logging.getLogger(__name__)

_WRAPPERS = ("state_dict", "model")
_SHOWN = 3


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in the file ``path``, read without executing anything in it.

    Unwraps ``{"state_dict": …}`` and ``{"model": …}``, and takes off the ``module.`` of ``DataParallel``.

    Raises:
        ValueError: the file cannot be read, or holds something else; one line.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: not a file of weights alone that torch.load can read; save the network's state_dict()"
        ) from error
    except (OSError, EOFError, RuntimeError, KeyError, ValueError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path}: the weights cannot be read ({reason}); is the file complete?") from error
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
            break
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(
            f"{path}: not a state dict, a mapping of names to tensors, nor one under {' or '.join(_WRAPPERS)}"
        )
    return {key.removeprefix("module."): value for key, value in state.items()}


def load_state(
    network: nn.Module,
    state: Mapping[str, torch.Tensor],
    path: Path,
    *,
    names: Mapping[str, str],
    what: str,
    new_classes: bool,
) -> None:
    """Copy ``state`` into ``network``.

    Args:
        path: where ``state`` is from, for the message.
        names: the network's key → the key in ``state``, for every key of the network.
        what: the network, for the message.
        new_classes: take no notice of a last layer with another number of classes: the network's own stays.

    Raises:
        ValueError: layers are missing, unexpected or of another shape; one line that names the first few of each.
    """
    own = {names[key]: value for key, value in network.state_dict().items()}
    # Written by no network before batch norm counted its batches, and used by none in evaluation.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    different = [key for key in own if key in state and state[key].shape != own[key].shape]
    last = {key for key in different if key in list(own)[-2:] and state[key].shape[1:] == own[key].shape[1:]}
    if new_classes:
        different = [key for key in different if key not in last]
    if missing or unexpected or different:
        shapes = [f"{key} {_shape(state[key])} in the file, {_shape(own[key])} here" for key in different]
        said = [
            f"{title} {_first(keys)}"
            for title, keys in (("missing:", missing), ("unexpected:", unexpected), ("another shape:", shapes))
            if keys
        ]
        if not missing and not unexpected and set(different) == last:
            said.append("another number of classes, so train the classifier (classifier.epochs) on the new ones")
        raise ValueError(f"{path}: these are not the weights of {what}; {'; '.join(said)}")
    if last:
        log.warning("%s: it has another number of classes, so the last layer is left out and a new one trained", path)
    kept = {key: state[name] for key, name in names.items() if name in state and name not in last}
    network.load_state_dict(kept, strict=False)


def _shape(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"


def _first(items: Sequence[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
