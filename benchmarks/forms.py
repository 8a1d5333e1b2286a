"""How much other forms of the maps change: choices that have no config key (docs/decisions.md, "Switch: none").

Each form changes one detail of one method, mostly to what other code does. The networks are the pretrained ones of a finished
run. Ours and the other form get the same test pairs, settings and random draws.

    python benchmarks/forms.py --config config/shapes.yaml --results results/shapes
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
import typer
from skimage.transform import resize
from torch import nn

from baselines import fullgrad
from baselines.fullgrad import FullGrad
from baselines.gradcam_pp import GradCAMPlusPlus
from baselines.integrated_gradients import IntegratedGradients
from baselines.rise import RISE
from ibsgl import attribution, bottleneck, config, provenance
from ibsgl.attribution.registry import Attribution
from ibsgl.bottleneck import Bottleneck, FeatureStatistics, kl_slope, kl_to_prior
from ibsgl.cli.options import dataset, load_statistics
from ibsgl.config import Config
from ibsgl.data.loading import ImageDataset
from ibsgl.evaluation.held_out import pearson
from ibsgl.files import written
from ibsgl.inference import pair_batches
from ibsgl.maps import maps_of_batch
from ibsgl.metrics.localization import ebpg
from ibsgl.networks import SplitNetwork, evaluating, features_and_gradient, upsample
from ibsgl.randomness import Generators
from ibsgl.reporting.statistics import crossed_estimate

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

CPU = torch.device("cpu")
# The reference code of the bottleneck masks neurons that are active in at most this share of its images.
ACTIVE_SHARE = 0.01


def active_neurons(network: SplitNetwork, data: ImageDataset, batch_size: int = 64) -> torch.Tensor:
    """(C,h,w) bool: whether A ≠ 0 in more than :data:`ACTIVE_SHARE` of the training images."""
    ids = data.ids("train")
    with evaluating(network), torch.no_grad():
        active = sum((network.stem(images) != 0).sum(0) for _, images in data.batches(ids, batch_size))
    return active > ACTIVE_SHARE * len(ids)


class _Masked(nn.Module):
    """Sets A (B,C,h,w) to zero where ``active`` (C,h,w) is False."""

    active: torch.Tensor

    def __init__(self, active: torch.Tensor):
        super().__init__()
        self.register_buffer("active", active)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features * self.active


@dataclass(frozen=True, eq=False)
class ActiveBottleneck:
    """L^ib of the neurons in ``active`` (C,h,w) alone. The others are zero for the head, and have no information."""

    label: ClassVar[str] = Bottleneck.label
    requires: ClassVar[frozenset[str]] = Bottleneck.requires
    ours: Bottleneck
    active: torch.Tensor

    def __call__(
        self,
        network: SplitNetwork,
        images: torch.Tensor,
        targets: torch.Tensor,
        generator: Generators = None,
        *,
        statistics: FeatureStatistics,
    ) -> torch.Tensor:
        """Images (B,3,H,W) and targets (B,) → (B,H,W) ≥ 0."""
        head = nn.Sequential(_Masked(self.active), network.head)
        masked = SplitNetwork(network.stem, head, multilabel=network.multilabel)
        # As in the reference code, the mean in L_I is still over all neurons.
        with (
            patch.object(bottleneck, "kl_to_prior", lambda *arguments: kl_to_prior(*arguments) * self.active),
            patch.object(bottleneck, "kl_slope", lambda *arguments: kl_slope(*arguments) * self.active),
        ):
            return self.ours(masked, images, targets, generator, statistics=statistics)


class NormalisedGradCAMPlusPlus(GradCAMPlusPlus):
    """Grad-CAM++ whose α sum to 1 over the places of a channel that count, as in the authors' code."""

    def __call__(
        self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, generator: Generators = None
    ) -> torch.Tensor:
        """Images (B,3,H,W) and targets (B,) → (B,H,W) ≥ 0."""
        features, gradient = features_and_gradient(network, images, targets)
        denominator = 2 + gradient * features.sum((2, 3), keepdim=True)
        alpha = torch.where((gradient > 0) & (denominator != 0), 1 / denominator, 0)
        total = alpha.sum((2, 3), keepdim=True)
        weights = (alpha * gradient).sum((2, 3), keepdim=True) / total.where(total != 0, 1)
        return upsample((weights * features).sum(1).relu(), images.shape[-2:])


@dataclass(frozen=True)
class ScaledFullGrad(FullGrad):
    """FullGrad with the minimum and maximum over the axes ``axes`` of (B,C,h,w), and ``epsilon`` added to the range."""

    axes: tuple[int, ...]
    epsilon: float

    def __call__(
        self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, generator: Generators = None
    ) -> torch.Tensor:
        """Images (B,3,H,W) and targets (B,) → (B,H,W) ≥ 0."""
        with patch.object(fullgrad, "_scaled", self._scaled):
            return super().__call__(network, images, targets, generator)

    def _scaled(self, term: torch.Tensor) -> torch.Tensor:
        size = term.abs()
        low, high = size.amin(self.axes, keepdim=True), size.amax(self.axes, keepdim=True)
        return (size - low) / (high - low + self.epsilon)


def _mirrored(grids: torch.Tensor, size: Iterable[int], **_: object) -> torch.Tensor:
    """Grids (n,1,cells,cells), enlarged to ``size`` as in the authors' code of RISE."""
    cells = grids.shape[-1]
    # The enlargement is linear in each axis, so its matrix is the enlargement of the unit vectors.
    rows, columns = (
        torch.from_numpy(resize(np.eye(cells), (side, cells), order=1, mode="reflect", anti_aliasing=False)).to(grids)
        for side in size
    )
    return rows @ grids @ columns.T


class MirroredRISE(RISE):
    """RISE whose grid is mirrored about its outermost cells."""

    def _masks(self, numbers: torch.Tensor, size: torch.Size) -> torch.Tensor:
        with patch.object(nn.functional, "interpolate", _mirrored):
            return super()._masks(numbers, size)


class PositiveIntegratedGradients(IntegratedGradients):
    """Integrated Gradients: max(Σ_colour a, 0)."""

    def __call__(
        self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, generator: Generators = None
    ) -> torch.Tensor:
        """Images (B,3,H,W) and targets (B,) → (B,H,W) ≥ 0."""
        return self.attributions(network, images, targets).sum(1).clamp_min(0)


class AbsoluteIntegratedGradients(IntegratedGradients):
    """Integrated Gradients: Σ_colour |a|."""

    def __call__(
        self, network: SplitNetwork, images: torch.Tensor, targets: torch.Tensor, generator: Generators = None
    ) -> torch.Tensor:
        """Images (B,3,H,W) and targets (B,) → (B,H,W) ≥ 0."""
        return self.attributions(network, images, targets).abs().sum(1)


@dataclass(frozen=True)
class Form:
    """Another form of a method.

    Attributes:
        method: the method's name.
        description: what is different, in words.
        make: (our method with its settings, the network, the data) → the other form.
    """

    method: str
    description: str
    make: Callable[[Any, SplitNetwork, ImageDataset], Attribution]


FORMS = {
    "bottleneck_active_neurons": Form(
        "bottleneck",
        "elements of A that are active in at most 1 % of the training images are masked",
        lambda ours, network, data: ActiveBottleneck(ours, active_neurons(network, data)),
    ),
    # Each step draws its noise from the same stream. So one step less is the map from before the last step.
    "bottleneck_before_last_step": Form(
        "bottleneck",
        "the map from before the last step",
        lambda ours, network, data: ours.model_copy(update={"steps": ours.steps - 1}),
    ),
    "gradcam_pp_normalised": Form(
        "gradcam_pp",
        "α is divided by its sum over the places with a positive gradient",
        lambda ours, network, data: NormalisedGradCAMPlusPlus(),
    ),
    "fullgrad_epsilon": Form(
        "fullgrad",
        "1e-6 is added to the range of each layer",
        lambda ours, network, data: ScaledFullGrad((1, 2, 3), 1e-6),
    ),
    # The package adds 1e-7 to the range.
    "fullgrad_channels": Form(
        "fullgrad",
        "minimum and maximum are those of each channel",
        lambda ours, network, data: ScaledFullGrad((2, 3), 1e-7),
    ),
    "rise_mirrored_border": Form(
        "rise", "the grid is mirrored at the border", lambda ours, network, data: MirroredRISE(**asdict(ours))
    ),
    "integrated_gradients_positive": Form(
        "integrated_gradients",
        "negative sums over the colours become zero",
        lambda ours, network, data: PositiveIntegratedGradients(**asdict(ours)),
    ),
    "integrated_gradients_absolute_first": Form(
        "integrated_gradients",
        "absolute values are taken before the sum over the colours",
        lambda ours, network, data: AbsoluteIntegratedGradients(**asdict(ours)),
    ),
}


@dataclass(frozen=True, eq=False)
class Trained:
    """One pretrained network of a run, with the run's images at its input size and the statistics of its features."""

    model: str
    replicate: int
    network: SplitNetwork
    data: ImageDataset
    statistics: FeatureStatistics


def load(settings: Config, results: Path) -> list[Trained]:
    """The pretrained networks of the run in the folder ``results``.

    Raises:
        ValueError: a file is missing, or does not fit the config. The message is one line.
    """
    index_file = results / "index.parquet"
    folders = {
        (model, replicate): results / model / str(replicate) / "pretrained"
        for model in settings.models
        for replicate in range(settings.replicates)
    }
    of_networks = [folder / name for folder in folders.values() for name in ("network.pt", "statistics.pt")]
    for file in (index_file, *of_networks):
        if not file.is_file():
            raise ValueError(f"there is no file {file}; run the workflow with this config first")
    root = Path(settings.data_root)
    if not root.is_dir():
        raise ValueError(f"there is no folder {root} with the run's images; start where the run was started")
    networks = []
    for (model, replicate), folder in folders.items():
        data = dataset(index_file, root, settings.models[model].image_size)
        network = settings.network(model).build(len(data.index.class_names), folder / "network.pt")
        networks.append(Trained(model, replicate, network, data, load_statistics(folder / "statistics.pt", CPU)))
    return networks


def compare(settings: Config, forms: Sequence[str], trained: Trained) -> pd.DataFrame:
    """Our maps and those of ``forms`` on the test pairs, for one network. ``settings`` are those for its model.

    Returns:
        one row per (form, pair): ``form``, ``description``, ``image_id``, the EBPG of the two maps in percent (``ours``,
        ``other``), and ``r``, their Pearson correlation (NaN where one of them is constant).
    """
    network, data = trained.network, trained.data
    names = dict.fromkeys(FORMS[form].method for form in forms)
    ours = {name: attribution.row(name, settings.method_settings(name)).method for name in names}
    others = {form: FORMS[form].make(ours[FORMS[form].method], network, data) for form in forms}
    description = f"{trained.model}, replicate {trained.replicate}"
    frames = []
    for rows, images, targets in pair_batches(data, data.pairs("test"), settings.batch_size, CPU, description):
        batch = (network, data, rows, images, targets)
        maps = partial(maps_of_batch, *batch, seed=settings.seed, statistics=trained.statistics)
        region = data.regions(rows, settings.metrics.region)
        own = maps(ours)
        for form, other in others.items():
            # Under our method's name, so that the form gets the same draws.
            name = FORMS[form].method
            first, second = own[name], maps({name: other})[name]
            ours_percent, other_percent = (100 * ebpg(saliency, region).double() for saliency in (first, second))
            values = {"ours": ours_percent, "other": other_percent, "r": pearson(first, second)}
            names_of_form = {"form": form, "description": FORMS[form].description}
            frames.append(rows[["image_id"]].assign(**names_of_form, **{key: of.numpy() for key, of in values.items()}))
    return pd.concat(frames, ignore_index=True)


def summary(pairs: pd.DataFrame) -> pd.DataFrame:
    """One row for each form and network.

    Args:
        pairs: the rows of :func:`compare`, with ``model``, ``arch`` and ``replicate``.

    Returns:
        ``form``, ``description``, ``model``, ``arch``, ``metric``, its mean in percent for our maps (``ours``) and the other
        form's (``other``), ``difference`` (other − ours) in percentage points with its 95 % interval (``low``, ``high``), ``r``
        (the mean over the pairs without a constant map), and the numbers of ``replicates`` and ``images``. An image counts
        once, however many pairs it has.
    """
    rows = []
    for (form, description), of_form in pairs.groupby(["form", "description"], sort=False):
        for model, group in of_form.groupby("model", sort=False):
            images = group.groupby(["replicate", "image_id"])[["ours", "other"]].mean()
            estimate = crossed_estimate((images["other"] - images["ours"]).unstack("image_id"))
            rows.append(
                {
                    "form": form,
                    "description": description,
                    "model": model,
                    "arch": group["arch"].iloc[0],
                    "metric": "ebpg",
                    "ours": images["ours"].mean(),
                    "other": images["other"].mean(),
                    "difference": estimate.mean,
                    "low": estimate.low,
                    "high": estimate.high,
                    "r": group["r"].mean(),
                    "replicates": estimate.replicates,
                    "images": estimate.images,
                }
            )
    return pd.DataFrame(rows)


@app.command()
def main(
    configfiles: Annotated[
        list[Path],
        typer.Option(
            "--config",
            exists=True,
            help="The run's config file. A further file changes some keys of the first. Repeatable.",
        ),
    ] = [Path("config/shapes.yaml")],  # noqa: B006
    results: Annotated[Path, typer.Option(help="The run's folder of results.")] = Path("results/shapes"),
    out: Annotated[Path, typer.Option(help="The table as CSV.")] = Path("docs/measured/forms.csv"),
    forms: Annotated[
        list[str] | None, typer.Option("--forms", help=f"{', '.join(FORMS)}. Repeatable; default: all.")
    ] = None,
) -> None:
    """Compare our maps with other forms of them, print the table, and write it."""
    for form in forms or ():
        if form not in FORMS:
            raise typer.BadParameter(f"there is no form {form!r}; take one of {', '.join(FORMS)}", param_hint="--forms")
    try:
        settings = config.read(configfiles)
    except config.ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--config") from None
    try:
        networks = load(settings, results)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--results") from None
    pairs = [
        compare(settings.for_model(trained.model), list(dict.fromkeys(forms or FORMS)), trained).assign(
            model=trained.model, arch=settings.models[trained.model].arch, replicate=trained.replicate
        )
        for trained in networks
    ]
    facts = provenance.collect("cpu")
    table = summary(pd.concat(pairs, ignore_index=True)).assign(
        torch=facts["versions"]["torch"], device=facts["device"], data_digest=networks[0].data.index.digest
    )
    with written(out) as temporary:
        table.to_csv(temporary, index=False, float_format="%.5g")
    typer.echo(table.to_string(index=False, float_format="{:.5g}".format))


if __name__ == "__main__":
    app()
