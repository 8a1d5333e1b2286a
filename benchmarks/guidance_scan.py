"""How strong may the guidance be? The scan behind the defaults in config/README.md.

The paper gives neither the inner step of Algorithm 1 nor the optimiser. For each combination this trains the guided network
and its control from the same classifier and prints, on held-out training images, the paired differences (guided − control) of
what guidance optimises, L_CE(L^c, L^ib) and L_SS, and the change of the accuracy on the test images.

    python benchmarks/guidance_scan.py --config config/shapes.yaml --out results/guidance_scan.csv
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

import pandas as pd
import torch
import yaml
from tqdm import tqdm

from ibsgl import attribution, evaluation, training
from ibsgl.config import Config, Divergence, parse
from ibsgl.data.loading import VOCData
from ibsgl.data.shapes import generate
from ibsgl.data.voc import build_index
from ibsgl.metrics.classification import accuracy
from ibsgl.network import build_network
from ibsgl.randomness import derive_seed
from ibsgl.statistics import paired_interval

CPU = torch.device("cpu")


def start_of(config: Config, model: str, data: VOCData):
    """The trained classifier's state and its L^ib of the training and the held-out pairs."""
    torch.manual_seed(derive_seed(config.seed, model, "initialisation"))
    spec = config.models[model]
    network = build_network(spec.arch, len(data.index.class_names), **spec.options)
    with tempfile.TemporaryDirectory() as folder:
        training.train_classifier(
            network,
            data,
            config.classifier,
            name=f"{model} classifier",
            seed=config.seed,
            device=CPU,
            checkpoint=Path(folder) / "checkpoint",
            digest="",
        )
    statistics = training.feature_statistics(network, data, 64, CPU)
    method = attribution.get("bottleneck", **config.bottleneck.model_dump())
    l_ib = {
        split: evaluation.bottleneck_maps(
            network, data, data.pairs(split), method, statistics, seed=config.seed, batch_size=64, device=CPU
        )
        for split in ("train", "held_out")
    }
    return network, l_ib


def run(config: Config, model: str, data: VOCData, start, l_ib, guidance) -> tuple[pd.DataFrame, torch.Tensor, float]:
    """Held-out losses, test correctness and held-out score after training with ``guidance`` (None: the control)."""
    spec = config.models[model]
    network = build_network(spec.arch, len(data.index.class_names), **spec.options)
    network.load_state_dict(start)
    with tempfile.TemporaryDirectory() as folder:
        training.train_guided(
            network,
            data,
            (guidance or config.guidance).training,
            guidance=guidance,
            suppression=config.suppression,
            l_ib=l_ib["train"],
            name=model,
            seed=config.seed,
            device=CPU,
            checkpoint=Path(folder) / "checkpoint",
            digest="",
        )
    losses, predictions = evaluation.guidance_effect(
        network,
        data,
        l_ib["held_out"],
        r=config.suppression.r,
        cross_entropy=config.guidance.cross_entropy,
        batch_size=64,
        device=CPU,
    )
    held_out = accuracy(training.predict(network, data, "held_out", 64, CPU), data.labels("held_out")).mean().item()
    return losses, predictions, held_out


def main() -> None:
    """Run the scan and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("config/shapes.yaml"))
    parser.add_argument("--out", type=Path, default=Path("results/guidance_scan.csv"))
    parser.add_argument("--models", nargs="*", help="default: every model of the config")
    parser.add_argument("--reductions", nargs="+", default=["sum", "mean"])
    parser.add_argument("--step-sizes", nargs="+", type=float, default=[0.02, 0.05, 0.1, 0.2])
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 3])
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-3, 3e-3])
    parser.add_argument("--epochs", type=int, help="default: the config's")
    arguments = parser.parse_args()
    config = parse(yaml.safe_load(arguments.config.read_text()))

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "VOC2007"
        generate(root, seed=config.seed, **config.data.shapes.model_dump())
        index = build_index(
            root,
            splits=config.data.splits.model_dump(),
            held_out=config.data.held_out,
            seed=config.seed,
            class_names=None,
            difficult="keep",
        )
        for model in arguments.models or config.models:
            data = VOCData(index, root, config.models[model].image_size)
            network, l_ib = start_of(config, model, data)
            start = {key: value.clone() for key, value in network.state_dict().items()}
            for rate in arguments.rates:
                epochs = arguments.epochs or config.guidance.training.epochs
                setting = config.guidance.training.model_copy(update={"lr": rate, "epochs": epochs})
                with_rate = config.model_copy(
                    update={"guidance": config.guidance.model_copy(update={"training": setting})}
                )
                control, control_test, control_held = run(with_rate, model, data, start, l_ib, None)
                cells = itertools.product(arguments.reductions, arguments.step_sizes, arguments.steps)
                for reduction, step_size, steps in tqdm(list(cells), desc=f"{model}, lr {rate:g}"):
                    guidance = with_rate.guidance.model_copy(
                        update={
                            "step_size": step_size,
                            "steps": steps,
                            "divergence": Divergence(normalise="softmax", reduction=reduction),
                        }
                    )
                    row = {"model": model, "lr": rate, "reduction": reduction, "step_size": step_size, "steps": steps}
                    try:
                        losses, test, held = run(with_rate, model, data, start, l_ib, guidance)
                    except training.TrainingError as error:
                        rows.append(row | {"verdict": str(error).split(":")[1][:40]})
                        continue
                    for key in ("l_ce", "l_ss"):
                        low, high = paired_interval(
                            losses[key].to_numpy(), control[key].to_numpy(), losses["image_id"].to_numpy(), seed=0
                        )
                        row |= {
                            f"{key}_control": control[key].mean(),
                            f"{key}_guided": losses[key].mean(),
                            f"{key}_low": low,
                            f"{key}_high": high,
                        }
                    row |= {
                        "accuracy_control": control_test["correct"].mean(),
                        "accuracy_guided": test["correct"].mean(),
                        "held_out_control": control_held,
                        "held_out_guided": held,
                    }
                    rows.append(row)
                    print(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1), flush=True)
    table = pd.DataFrame(rows)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(arguments.out, index=False)


if __name__ == "__main__":
    main()
