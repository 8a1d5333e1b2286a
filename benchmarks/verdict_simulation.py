"""How often intervals and verdicts are right: simulated studies with known effects.

Each draw is one study: R replicates on the same images, each value the sum of the true effect, a replicate's part, an image's
part and an error as large as the image's part, all normal. The unit is the standard error of the mean. The smallest effect that
matters is 4 units, so that every verdict can come out. The estimates and verdicts are those of the claims' table.

    python benchmarks/verdict_simulation.py                  (minutes; with --draws 2000, seconds)
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from scipy.special import stdtrit

from ibsgl.files import written
from ibsgl.randomness import derive_seed
from ibsgl.reporting.statistics import Estimate, crossed_estimate
from ibsgl.reporting.verdicts import MINIMUM_REPLICATES, Evidence, Verdict, judge

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

# The smallest effect that matters, in standard errors of the mean.
SMALLEST = 4.0
REPLICATES = (3, 5, 10)
# Variance of the mean that comes from replicates, relative to that from images.
RATIOS = (0.1, 1.0, 10.0)
# True effects, relative to the smallest that matters.
EFFECTS = (-2.0, 0.0, 1.0, 2.0)
# The requirements.
COVERAGE, WRONG = 0.92, 0.05
DECISIVE = (Verdict.SUPPORTED, Verdict.CONTRADICTED, Verdict.NO_RELEVANT_EFFECT)


def studies(replicates: int, images: int, ratio: float, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Values (draws, replicates, images) with a true mean of 0 whose mean over replicates and images has the variance 1."""
    of_image = 1 / (1 + ratio + 1 / replicates)
    image = rng.normal(0, np.sqrt(images * of_image), (draws, 1, images))
    replicate = rng.normal(0, np.sqrt(replicates * ratio * of_image), (draws, replicates, 1))
    return image + replicate + rng.normal(0, np.sqrt(images * of_image), (draws, replicates, images))


def hillis_covers(estimate: Estimate, true: float) -> bool:
    """Whether a 95 % interval with one t quantile, with Hillis' degrees of freedom, covers the true mean."""
    df = (estimate.replicates - 1) / estimate.replicate_share**2
    return abs(estimate.mean - true) <= estimate.standard_error * stdtrit(df, 0.975)


def wrong_verdicts(effect: float, smallest: float = 1.0) -> set[Verdict]:
    """The decisive verdicts that are wrong for a true effect. At exactly ± ``smallest``, those on both sides are wrong."""
    right = {
        Verdict.SUPPORTED: effect > smallest,
        Verdict.CONTRADICTED: effect < -smallest,
        Verdict.NO_RELEVANT_EFFECT: abs(effect) < smallest,
    }
    return {verdict for verdict, holds in right.items() if not holds}


def simulate(images: int, draws: int, seed: int) -> pd.DataFrame:
    """One row for each number of replicates, ratio, true effect and minimum of replicates.

    Returns:
        ``replicates``, ``ratio``, ``effect`` (relative to the smallest that matters), ``minimum`` (of replicates for a verdict;
        1: verdicts without the minimum), ``coverage`` of the 95 % interval, ``coverage_hillis`` of :func:`hillis_covers`, the
        share of each verdict, and ``wrong``, the share of wrong verdicts. Shares are in [0,1].
    """
    rows = []
    for replicates in REPLICATES:
        for ratio in RATIOS:
            for effect in EFFECTS:
                rng = np.random.default_rng(derive_seed(seed, "verdicts", replicates, ratio, effect))
                true = effect * SMALLEST
                values = studies(replicates, images, ratio, draws, rng) + true
                claims = [Evidence((crossed_estimate(study),), SMALLEST) for study in values]
                estimates = [claim.estimates[0] for claim in claims]
                covered = sum(estimate.low <= true <= estimate.high for estimate in estimates)
                covered_hillis = sum(hillis_covers(estimate, true) for estimate in estimates)
                minimums = (MINIMUM_REPLICATES,) if replicates >= MINIMUM_REPLICATES else (MINIMUM_REPLICATES, 1)
                for minimum in minimums:
                    verdicts = [judge(claim, minimum=minimum) for claim in claims]
                    shares = {verdict: verdicts.count(verdict) / draws for verdict in (*DECISIVE, Verdict.NOT_RESOLVED)}
                    rows.append(
                        {
                            "replicates": replicates,
                            "ratio": ratio,
                            "effect": effect,
                            "minimum": minimum,
                            "coverage": covered / draws,
                            "coverage_hillis": covered_hillis / draws,
                            **{verdict.value: share for verdict, share in shares.items()},
                            "wrong": sum(shares[verdict] for verdict in wrong_verdicts(effect)),
                        }
                    )
    return pd.DataFrame(rows)


@app.command()
def main(
    images: Annotated[int, typer.Option(min=2, help="Images of each study.")] = 96,
    draws: Annotated[int, typer.Option(min=1, help="Simulated studies in each row.")] = 20000,
    seed: Annotated[int, typer.Option(help="Seed of the simulation.")] = 0,
    out: Annotated[Path, typer.Option(help="The table as CSV.")] = Path("docs/measured/verdicts.csv"),
) -> None:
    """Simulate studies, print the table, and write it."""
    table = simulate(images, draws, seed)
    with written(out) as temporary:
        table.to_csv(temporary, index=False, float_format="%.4g")
    typer.echo(table.to_string(index=False, float_format="{:.4g}".format))
    coverage, wrong = table["coverage"].min(), table["wrong"].max()
    # Three standard errors of a simulated share: at the boundary the true share of wrong verdicts is close to what is allowed.
    below, above = (3 * float(np.sqrt(share * (1 - share) / draws)) for share in (COVERAGE, WRONG))
    typer.echo(f"lowest coverage {coverage:.2%} (required: {COVERAGE:.0%}, less {below:.2%} for chance)")
    typer.echo(f"most wrong verdicts {wrong:.2%} (allowed: {WRONG:.0%}, and {above:.2%} for chance)")
    if coverage < COVERAGE - below or wrong > WRONG + above:
        typer.echo("the requirements are not met")
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
