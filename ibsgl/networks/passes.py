"""Faster passes of the methods that need thousands of them: the stem in bf16, with batch norm folded, compiled.

RISE, Score-CAM, SISE, Integrated Gradients and Extremal Perturbation run their passes through :func:`forward_pass` and
:func:`input_gradient`. Inside :func:`fast_passes` these use a prepared copy of the network. Outside they use the network as it
is, in float32. Everything else, such as scores, softmax and sums over masks, stays in float32.
"""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ibsgl.networks.split import SplitNetwork, evaluating
from ibsgl.provenance import processor

Precision = Literal["float32", "bfloat16"]

# torch's variable with the folder of what it has compiled.
COMPILED = "TORCHINDUCTOR_CACHE_DIR"
# A prepared stem may differ from the stem by this share of the features' range before its precision is lowered.
_ROUNDING = 1e-4


@dataclass
class FastPasses:
    """How the passes inside :func:`fast_passes` are run.

    Attributes:
        precision: of the stem's convolutions and linear layers.
        folded: whether batch norm is folded into the convolutions before it.
        compiled: whether forward passes of batches of the announced shape are compiled.
    """

    precision: Precision = "float32"
    folded: bool = False
    compiled: bool = False
    # The network that was prepared, the copy of its stem, this compiled, and the shape of the batches that it was compiled for.
    _network: SplitNetwork | None = field(default=None, repr=False)
    _stem: nn.Module | None = field(default=None, repr=False)
    _compiled: Callable[[torch.Tensor], torch.Tensor] | None = field(default=None, repr=False)
    _shape: torch.Size | None = field(default=None, repr=False)

    def facts(self) -> dict[str, str | bool]:
        """What was done, for the metadata of results."""
        return {"precision": self.precision, "folded": self.folded, "compiled": self.compiled}

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B,K) of ``images`` (B,3,H,W), in the dtype of ``images``."""
        assert self._network is not None
        if self._stem is None:
            return self._network(images)
        stem: Callable[[torch.Tensor], torch.Tensor] = self._stem
        if self._compiled is not None and images.shape == self._shape and not torch.is_grad_enabled():
            # Another memory order would compile anew.
            stem, images = self._compiled, images.contiguous()
        # A logit in bf16 would have two or three digits, and the head costs little.
        return self._network.head(self._features(stem, images))

    def _features(self, stem: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        if self.precision == "float32":
            return stem(images)
        with torch.autocast(images.device.type, torch.bfloat16):
            return stem(images).to(images.dtype)


_CURRENT: ContextVar[tuple[FastPasses, ...]] = ContextVar("_CURRENT", default=())


@contextmanager
def fast_passes(
    network: SplitNetwork,
    shape: Sequence[int],
    precision: Precision = "float32",
    *,
    fold: bool = False,
    compile: bool = False,
) -> Iterator[FastPasses]:
    """Inside this block, :func:`forward_pass` and :func:`input_gradient` of ``network`` are faster.

    The network must not change inside the block. A block for the same network inside this one changes nothing.

    Args:
        network: on its device.
        shape: (B,3,H,W) of the images. Batches of this shape are compiled.
        precision: ``bfloat16``: the stem's convolutions and linear layers take bf16 and add up in float32. The head is in
            float32.
        fold: fold batch norm into the convolutions before it, if torch can trace the network. In bf16 and if passes are
            compiled this is always done.
        compile: compile forward passes. If that fails, one line on stderr says so and they run uncompiled.

    Raises:
        ValueError: the passes of ``network`` run in another precision already, or bf16 for a network that is not float32.
    """
    if (outer := _prepared_for(network)) is not None:
        if outer.precision != precision:
            raise ValueError(f"passes of this network run in {outer.precision} already, and not in {precision}")
        yield outer
        return
    prepared = FastPasses(_network=network, precision=precision)
    if precision != "float32" or fold or compile:
        _prepare(prepared, network, torch.Size(shape), compile)
    token = _CURRENT.set((*_CURRENT.get(), prepared))
    try:
        yield prepared
    finally:
        _CURRENT.reset(token)


def forward_pass(network: SplitNetwork, images: torch.Tensor) -> torch.Tensor:
    """Images (B,3,H,W) → logits (B,K) in the dtype of ``images``, without a gradient; see :func:`fast_passes`."""
    prepared = _prepared_for(network)
    with torch.no_grad():
        return network(images) if prepared is None else prepared.logits(images)


def input_gradient(network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The gradient (B,3,H,W) of each image's logit of its target (B,) with respect to ``images``; see :func:`fast_passes`.

    Gradients of weights are not computed, in evaluation mode of :func:`ibsgl.networks.evaluating`.
    """
    prepared = _prepared_for(network)
    run = network if prepared is None else prepared.logits
    with torch.enable_grad():
        images = images.detach().requires_grad_(True)
        # The sum has one logit per image, so its gradient is each image's own.
        score = run(images).gather(1, targets[:, None]).sum()
        return torch.autograd.grad(score, images)[0]


def _prepared_for(network: SplitNetwork) -> FastPasses | None:
    return next((passes for passes in _CURRENT.get() if passes._network is network), None)


@cache
def native_precision(device_type: str) -> Precision:
    """``bfloat16`` if the processor, or the GPU for ``cuda``, computes in it natively; otherwise ``float32``."""
    if device_type == "cuda":
        # The main process of a cluster may see no GPU. Then it is taken to have bf16, as NVIDIA's have since 2020.
        known = torch.cuda.is_available()
        native = not known or torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        found = torch.cpu.get_capabilities()
        native = any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    return "bfloat16" if native else "float32"


@cache
def has_compiler() -> bool:
    """Whether there is a C++ compiler, which torch's compiler needs."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if name)


def _prepare(prepared: FastPasses, network: SplitNetwork, shape: torch.Size, compile: bool) -> None:
    # On the CPU also where a caller has made another device torch's default.
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0), device="cpu").to(network.mean)
    if prepared.precision == "bfloat16" and images.dtype != torch.float32:
        raise ValueError(f"passes in bfloat16 are those of a float32 network; this one is {images.dtype}")
    with evaluating(network), torch.no_grad():
        made, prepared.folded = _folded(network.stem, images[:1])
        if prepared.precision == "bfloat16":
            for module in made.modules():
                # Not a subclass, which may compute with its weights itself.
                if type(module) in (nn.Conv2d, nn.Linear):
                    # Autocast would cast the weights again in every pass.
                    module.to(torch.bfloat16)
        prepared._stem = made.eval().requires_grad_(False)
        if compile:
            prepared._shape = shape
            prepared._compiled = _compiled(prepared, images)
            prepared.compiled = prepared._compiled is not None


def _folded(stem: nn.Module, images: torch.Tensor) -> tuple[nn.Module, bool]:
    """A copy of ``stem`` with batch norm folded, and whether there is any. A stem that torch cannot trace is copied."""
    expected = stem(images)
    # Imported here, because only some jobs need it.
    from torch.fx.experimental.optimization import fuse

    try:
        folded = fuse(stem)
        close = (folded(images) - expected).abs().max() <= _ROUNDING * (expected.max() - expected.min())
    except Exception:  # A user's network may fail in any way when it is traced.
        return copy.deepcopy(stem), False
    if not close:
        return copy.deepcopy(stem), False
    norms = [sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in of.modules()) for of in (stem, folded)]
    return folded, norms[1] < norms[0]


def _separate_processors() -> None:
    """Give each kind of processor a folder of its own for what torch has compiled.

    torch compiles for the processor at hand, but its keys do not name that. On a cluster another machine would end with an
    illegal instruction.
    """
    has = sorted(name for name, value in torch.cpu.get_capabilities().items() if value is True)
    kind = hashlib.sha256(" ".join([processor(), *has]).encode()).hexdigest()[:16]
    folder = os.environ.get(COMPILED)
    if folder and Path(folder).name != kind:
        os.environ[COMPILED] = str(Path(folder, kind))


def _compiled(prepared: FastPasses, images: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The compiled forward pass of the stem's copy; ``None`` if compiling fails."""
    assert prepared._stem is not None
    _separate_processors()
    reference = prepared._features(prepared._stem, images)
    try:
        # With more threads torch starts a pool of processes, which would outlive a killed job.
        options: dict[str, Any] = {"freezing": True, "compile_threads": 1}
        compiled = torch.compile(prepared._stem, dynamic=False, options=options)
        found = prepared._features(compiled, images)
        span = reference.max() - reference.min()
        limit = _ROUNDING if prepared.precision == "float32" else 2**-6
        # NaN is not close either.
        if not (found - reference).abs().max() <= limit * span:
            raise ArithmeticError("the compiled network has other features")
    except Exception as error:  # A compiler fails in many ways.
        lines = str(error).strip().splitlines() or [""]
        print(f"compile: the passes run uncompiled: {type(error).__name__}: {lines[0]}", file=sys.stderr, flush=True)
        return None
    return compiled
