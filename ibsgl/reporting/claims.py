"""The claims of the paper, and what a run says about them: effect, interval, verdict, and one sentence each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import yaml
from pydantic import Field, ValidationError, model_validator

from ibsgl.config.schema import describe
from ibsgl.reporting.claim_texts import interval_text
from ibsgl.reporting.comparisons import METRIC_LABELS, by_replicate_text, difference_unit, estimate_difference
from ibsgl.reporting.measurements import Measurements, Quantity
from ibsgl.reporting.statistics import Estimate
from ibsgl.reporting.verdicts import MINIMUM_REPLICATES, Decision, Evidence, Rule, Verdict, decide, judge
from ibsgl.settings import NonNegative, Settings
from ibsgl.training.variants import GUIDED, PRETRAINED

FILE = "claims.yaml"
_COLUMNS = (
    *(
        "claim",
        "title",
        "model",
        "arch",
        "data",
        "metric",
        "direction",
        "unit",
        "comparison",
        "effect",
        "low",
        "high",
    ),
    *("corrected_low", "corrected_high", "corrected_p", "by_replicate", "replicates", "images", "smallest", "rule"),
    *("verdict", "on_paper_setting", "sentence", "reason", "comparisons", "shown"),
    *("quote", "place", "why", "published_margin"),
)


class Shown(Settings):
    """A comparison that is reported and not judged: guided − ``against``, in ``metric`` or in that of the claim."""

    against: str
    metric: str | None = None


class Assay(Settings):
    """The positive control: ``of`` − ``against`` must be supported, or the claim is not tested."""

    of: str
    against: str


class Claim(Settings):
    """One claim of the paper. ``results/published/claims.yaml`` describes the keys."""

    key: str
    title: str
    quote: str
    place: str
    metric: str = ""
    direction: Literal["higher", "lower"] = "higher"
    smallest: NonNegative = 0.0
    unit: Literal["points", "nats", "fraction"] = "points"
    why: str = ""
    rule: Rule = "superiority"
    comparisons: list[str] = Field([])
    methods: list[str] = Field([])
    run_on: list[str] = Field([])
    shown: list[Shown] = Field([])
    assay: Assay | None = None
    same_claim_on_all: str | None = None
    family: str = "primary"
    published_margin: str = ""

    @model_validator(mode="after")
    def _judged_by_one_rule(self) -> Claim:
        given = [bool(self.comparisons), bool(self.methods), self.same_claim_on_all is not None]
        if sum(given) != 1:
            raise ValueError("give one of comparisons, methods and same_claim_on_all")
        if self.same_claim_on_all is not None:
            return self
        if self.metric not in METRIC_LABELS:
            raise ValueError(f"there is no metric {self.metric!r}; take one of {', '.join(METRIC_LABELS)}")
        if self.unit != difference_unit(self.metric):
            raise ValueError(f"the unit of a difference in {self.metric} is {difference_unit(self.metric)}")
        if self.methods and PRETRAINED not in self.run_on:
            raise ValueError(f"run_on: methods are compared on {PRETRAINED} at least")
        return self


class _Component(NamedTuple):
    """One difference that a claim rests on."""

    title: str
    found: Estimate
    # The estimate with the sign of the claim: positive is the claimed direction.
    oriented: Estimate


@dataclasses.dataclass
class _Case:
    """A claim on one network, before the verdict."""

    claim: Claim
    measurements: Measurements
    metric: str
    components: list[_Component]
    # Why the claim is not tested.
    reason: str = ""
    # What is missing. The claim can be contradicted all the same.
    missing: list[str] = dataclasses.field(default_factory=list)
    # Comparisons with too few replicates for a verdict. They are shown, and do not count if others have enough.
    few: list[_Component] = dataclasses.field(default_factory=list)

    @property
    def evidence(self) -> Evidence:
        components = [] if self.reason else self.components
        estimates = tuple(component.oriented for component in components)
        return Evidence(estimates, self.claim.smallest, self.claim.rule)


def read_claims(published_dir: str | Path) -> list[Claim]:
    """The claims of ``claims.yaml``, in its order.

    Args:
        published_dir: folder with the file.

    Raises:
        ValueError: a claim has a wrong key or value, two have one key, or one names another that is not there.
    """
    path = Path(published_dir) / FILE
    claims: list[Claim] = []
    for number, content in enumerate(yaml.safe_load(path.read_text(encoding="utf-8"))["claims"]):
        name = content.get("key", number) if isinstance(content, Mapping) else number
        try:
            claims.append(Claim.model_validate(content))
        except ValidationError as error:
            raise ValueError(f"{path}: {describe(error, f'claims.{name}.')}") from None
    keys = [claim.key for claim in claims]
    for claim in claims:
        if keys.count(claim.key) > 1:
            raise ValueError(f"{path}: claims.{claim.key}: there are two claims with this key")
        if claim.same_claim_on_all is not None and claim.same_claim_on_all not in keys:
            raise ValueError(
                f"{path}: claims.{claim.key}.same_claim_on_all: there is no claim {claim.same_claim_on_all!r}"
            )
    return claims


def evaluate_claims(
    claims: Sequence[Claim],
    measurements: Mapping[str, Measurements],
    variants: Sequence[str],
    *,
    data: str,
    deviations: Mapping[str, Sequence[str]],
    multilabel: bool = False,
    average: Literal["pairs", "classes"] = "pairs",
    error: float = 0.05,
) -> pd.DataFrame:
    """The verdicts of a run on all claims and networks.

    Holm's correction covers the claims of one family on all networks, one primary metric each. A claim with several comparisons
    is about the weakest of them (:class:`ibsgl.reporting.verdicts.Evidence`). Comparisons below the minimum of replicates
    cannot refute a claim. They keep it from being supported.

    A claim is not tested if the run lacks a variant or a method that it needs; if a variant that guidance is compared with has
    collapsed (:func:`collapsed`); if L^ib is zero on all held-out images; or if the positive control shows no effect. The
    positive control is judged at the uncorrected level, since it is no claim.

    Args:
        claims: those of :func:`read_claims`.
        measurements: by network, in the config's order.
        variants: those of the config.
        data: the name of the data, for sentences.
        deviations: by network, how the run differs from the published settings. Only without any does a verdict hold on the
            paper's setting.
        multilabel: mAP takes the place of the accuracy.
        average: how (image, class) pairs are averaged.
        error: probability of one wrong verdict or more in a family, in (0, 1).

    Returns:
        one row per (claim, model), in the claims' order; claims about all networks have one row. ``effect``, ``low`` and
        ``high`` (95 %) are of the comparison that decides: guided minus the other, in ``unit``. ``corrected_low`` and
        ``corrected_high`` are the interval that the verdict comes from, ``corrected_p`` Holm's p-value. ``by_replicate``: every
        replicate's own effect. ``comparisons``: all of the claim's comparisons as text. ``shown``: those that are not judged.
        ``verdict``, ``on_paper_setting``: see :data:`VERDICTS`. ``sentence``: the verdict in words, with data and network.
        ``reason``: why a claim is not tested or not resolved. Numbers are NaN where there is nothing to compare.
    """
    single = [claim for claim in claims if claim.same_claim_on_all is None]
    cases = [
        _case(claim, network, variants, multilabel=multilabel, average=average, error=error)
        for claim in single
        for network in measurements.values()
    ]
    rows: dict[str, list[dict[str, Any]]] = {claim.key: [] for claim in claims}
    for family in dict.fromkeys(claim.family for claim in single):
        members = [case for case in cases if case.claim.family == family]
        for case, decision in zip(members, decide([case.evidence for case in members], error), strict=True):
            settings = deviations.get(case.measurements.model)
            row = _row(case, decision, data, on_paper_setting=settings is not None and not len(settings))
            row["shown"] = _shown(case, multilabel=multilabel, average=average)
            rows[case.claim.key].append(row)
    for claim in claims:
        if claim.same_claim_on_all is not None:
            rows[claim.key].append(_conjunction(claim, rows[claim.same_claim_on_all], data))
    return pd.DataFrame([row for claim in claims for row in rows[claim.key]], columns=list(_COLUMNS))


def collapsed(measurements: Measurements, variant: str, *, multilabel: bool = False) -> dict[int, tuple[float, float]]:
    """The replicates in which ``variant`` has lost the ability to classify.

    It has collapsed if its accuracy is nearer to chance than to the accuracy of the pretrained network. Chance is the mean
    share of images that show a class. mAP takes the place of the accuracy with ``multilabel``.

    Returns:
        by replicate, the accuracies of the variant and of the pretrained network in percent.
    """
    metric = "map" if multilabel else "accuracy"
    quantities = [Quantity(metric, name) for name in (variant, PRETRAINED)]
    if any(measurements.missing(quantity) for quantity in quantities):
        return {}
    reached, before = (measurements.values(quantity).mean() for quantity in quantities)
    chance = 100 * float(measurements.predictions.filter(regex="^label_").to_numpy(dtype=np.float64).mean())
    return {
        int(number): (float(reached[number]), float(before[number]))
        for number in reached.index.intersection(before.index)
        if before[number] > chance and reached[number] < (before[number] + chance) / 2
    }


# Comparisons ----------------------------------------------------------------------------------------------------------


def _case(
    claim: Claim,
    measurements: Measurements,
    variants: Sequence[str],
    *,
    multilabel: bool,
    average: Literal["pairs", "classes"],
    error: float,
) -> _Case:
    """The comparisons of a claim on one network, or why there are none."""
    case = _Case(claim, measurements, _metric(claim.metric, multilabel), [])
    lost = {
        variant: replicates
        for variant in variants
        if variant not in (PRETRAINED, GUIDED)
        and (replicates := collapsed(measurements, variant, multilabel=multilabel))
    }
    pairs = compared_with(claim, measurements, multilabel=multilabel)
    guided = Quantity(case.metric, GUIDED)
    problems, not_run = [_flat_teacher(measurements)], []
    if not problems[0]:
        for title, other in pairs:
            reason = _absent(measurements, guided, variants) or _absent(measurements, other, variants)
            if not reason and other.variant in lost:
                reason = _collapse_text(other.variant, lost[other.variant])
            if not reason:
                try:
                    case.components.append(_component(title, measurements, guided, other, claim.direction, average))
                except ValueError as problem:
                    reason = str(problem)
            if claim.methods and other.method not in measurements.methods(other.variant):
                not_run.append(measurements.label(other.method))
            elif reason and not (claim.methods and other.variant != PRETRAINED):
                problems.append(reason)
        if not_run:
            problems.append(f"not run on {PRETRAINED}: {', '.join(not_run)}")
        if claim.assay is not None and not any(problems):
            problems += _insensitive(claim, measurements, case.metric, variants, average, error)
    problems = list(dict.fromkeys(problem for problem in problems if problem))
    if claim.methods and case.components:
        case.missing = problems
    elif problems:
        case.reason = "; ".join(problems)
    elif not case.components:
        case.reason = "there is nothing to compare"
    enough = [component for component in case.components if component.oriented.replicates >= MINIMUM_REPLICATES]
    if enough:
        case.few = [component for component in case.components if component.oriented.replicates < MINIMUM_REPLICATES]
        case.components = enough
    return case


def compared_with(claim: Claim, measurements: Measurements, *, multilabel: bool) -> list[tuple[str, Quantity]]:
    """What Eq. 3 on the guided network is compared with, each with a title. Some of it may not have been measured."""
    metric = _metric(claim.metric, multilabel)
    pairs = [(f"guided - {variant}", Quantity(metric, variant)) for variant in claim.comparisons]
    for variant in claim.run_on:
        for method in _methods(claim, measurements, variant):
            title = f"guided Eq. 3 - {measurements.label(method)} on {variant}"
            pairs.append((title, Quantity(metric, variant, method)))
    return pairs


def shown_with(claim: Claim, *, multilabel: bool) -> list[tuple[str, Quantity]]:
    """As :func:`compared_with`: what is reported beside the claim, and not judged."""
    return [
        (f"guided - {shown.against}", Quantity(_metric(shown.metric or claim.metric, multilabel), shown.against))
        for shown in claim.shown
    ]


def _metric(metric: str, multilabel: bool) -> str:
    return "map" if metric == "accuracy" and multilabel else metric


def _methods(claim: Claim, measurements: Measurements, variant: str) -> list[str]:
    """The claim's methods; on another variant than the pretrained one, those that were run there."""
    if variant == PRETRAINED:
        return claim.methods
    run = measurements.methods(variant)
    return [method for method in claim.methods if method in run]


def _absent(measurements: Measurements, quantity: Quantity, variants: Sequence[str]) -> str:
    if quantity.variant not in variants:
        return f"no variant {quantity.variant} in this run"
    return measurements.missing(quantity)


def _collapse_text(variant: str, replicates: Mapping[int, tuple[float, float]]) -> str:
    found = ", ".join(
        f"{reached:.1f} % correct in replicate {number} ({before:.1f} % before)"
        for number, (reached, before) in replicates.items()
    )
    return f"the training of the variant {variant} has collapsed: {found}"


def _flat_teacher(measurements: Measurements) -> str:
    """Why L^ib cannot teach anything, or an empty text."""
    diagnostics = measurements.diagnostics
    if not len(diagnostics):
        return ""
    highest = diagnostics.groupby("replicate")["nats"].max()
    flat = [str(number) for number in highest.index[~(highest > 0)]]
    return (
        f"L^ib is zero on all held-out images (replicate {', '.join(flat)}), so guidance has no teacher" if flat else ""
    )


def _insensitive(
    claim: Claim,
    measurements: Measurements,
    metric: str,
    variants: Sequence[str],
    average: Literal["pairs", "classes"],
    error: float,
) -> list[str]:
    """Why the positive control shows no effect. Below the minimum of replicates nothing is resolved anyway."""
    assert claim.assay is not None
    first, second = (Quantity(metric, variant) for variant in (claim.assay.of, claim.assay.against))
    if reason := _absent(measurements, first, variants) or _absent(measurements, second, variants):
        return [reason]
    title = f"{claim.assay.of} - {claim.assay.against}"
    component = _component(title, measurements, first, second, claim.direction, average)
    if component.oriented.replicates < MINIMUM_REPLICATES:
        return []
    if judge(Evidence((component.oriented,), claim.smallest), 1 - error) is Verdict.SUPPORTED:
        return []
    return [f"the assay is insensitive: {_component_text(component, metric)}"]


def _component(
    title: str,
    measurements: Measurements,
    first: Quantity,
    second: Quantity,
    direction: str,
    average: Literal["pairs", "classes"],
) -> _Component:
    found = estimate_difference(measurements, first, second, average)
    return _Component(title, found, _oriented(found, direction))


def _oriented(estimate: Estimate, direction: str) -> Estimate:
    """``estimate`` with the sign of the claim."""
    if direction == "higher":
        return estimate
    return dataclasses.replace(
        estimate,
        mean=-estimate.mean,
        low=-estimate.high,
        high=-estimate.low,
        by_replicate=tuple(-value for value in estimate.by_replicate),
    )


def _shown(case: _Case, *, multilabel: bool, average: Literal["pairs", "classes"]) -> str:
    """The comparisons that are reported and not judged."""
    texts = []
    for title, second in shown_with(case.claim, multilabel=multilabel):
        first = Quantity(second.metric, GUIDED)
        if case.measurements.missing(first) or case.measurements.missing(second):
            continue
        try:
            component = _component(title, case.measurements, first, second, "higher", average)
        except ValueError as problem:
            texts.append(f"{METRIC_LABELS[second.metric]}, {title}: {problem}")
        else:
            texts.append(f"{METRIC_LABELS[second.metric]}, {_component_text(component, second.metric)}")
    return "; ".join(texts)


# Rows -----------------------------------------------------------------------------------------------------------------


def _row(case: _Case, decision: Decision, data: str, *, on_paper_setting: bool) -> dict[str, Any]:
    claim, verdict, reason = case.claim, decision.verdict, case.reason
    row = _facts(claim, data) | {
        "model": case.measurements.model,
        "arch": case.measurements.arch,
        "metric": case.metric,
    }
    if verdict is not Verdict.NOT_TESTED:
        if verdict is not Verdict.CONTRADICTED and case.missing:
            verdict, reason = Verdict.NOT_TESTED, "; ".join(case.missing)
        elif verdict is not Verdict.CONTRADICTED and case.few:
            verdict, reason = Verdict.NOT_RESOLVED, f"{len(case.few)} comparisons have too few replicates"
        elif case.evidence.replicates < MINIMUM_REPLICATES:
            reason = f"a verdict needs {MINIMUM_REPLICATES} replicates"
    everything = [*case.components, *case.few]
    if everything and not case.reason:
        side = 1 if verdict is Verdict.CONTRADICTED else 0
        judged = zip(case.components, decision.intervals, strict=True)
        deciding, corrected = min(judged, key=lambda pair: (pair[1][side], pair[0].oriented.mean))
        estimate = deciding.found
        if claim.direction == "lower":
            corrected = (-corrected[1], -corrected[0])
        row |= {
            "comparison": deciding.title,
            "effect": estimate.mean,
            "low": estimate.low,
            "high": estimate.high,
            "corrected_low": corrected[0],
            "corrected_high": corrected[1],
            "corrected_p": decision.p,
            "by_replicate": by_replicate_text(estimate),
            "replicates": estimate.replicates,
            "images": estimate.images,
        }
    row["comparisons"] = "; ".join(_component_text(component, case.metric) for component in everything)
    row |= {"verdict": str(verdict), "reason": reason}
    row["on_paper_setting"] = str(verdict if on_paper_setting else Verdict.NOT_TESTED)
    row["sentence"] = _sentence(row, len(case.components))
    return row


def _facts(claim: Claim, data: str) -> dict[str, Any]:
    nan = math.nan
    return {
        "claim": claim.key,
        "title": claim.title,
        "data": data,
        "direction": claim.direction,
        "unit": claim.unit,
        "comparison": "",
        **dict.fromkeys(("effect", "low", "high", "corrected_low", "corrected_high", "corrected_p"), nan),
        "by_replicate": "",
        "replicates": nan,
        "images": nan,
        "smallest": claim.smallest,
        "rule": claim.rule,
        "quote": " ".join(claim.quote.split()),
        "place": claim.place,
        "why": " ".join(claim.why.split()),
        "published_margin": claim.published_margin,
        "shown": "",
        "comparisons": "",
    }


def _conjunction(claim: Claim, rows: Sequence[Mapping[str, Any]], data: str) -> dict[str, Any]:
    """A claim that holds only if another holds on every network. The verdicts are corrected already."""
    verdicts = [Verdict(row["verdict"]) for row in rows]
    reason = ""
    if len(rows) < 2:
        verdict, reason = Verdict.NOT_TESTED, "this run has one network"
    elif Verdict.CONTRADICTED in verdicts:
        verdict = Verdict.CONTRADICTED
    elif Verdict.NOT_TESTED in verdicts:
        verdict, reason = Verdict.NOT_TESTED, "; ".join(dict.fromkeys(row["reason"] for row in rows if row["reason"]))
    else:
        # The weakest verdict decides.
        order = (Verdict.NOT_RESOLVED, Verdict.NO_RELEVANT_EFFECT, Verdict.SUPPORTED)
        verdict = next(each for each in order if each in verdicts)
    settings = [row["on_paper_setting"] == row["verdict"] for row in rows]
    networks = " and ".join(str(row["model"]) for row in rows)
    found = "; ".join(f"{row['model']}: {row['verdict']}" for row in rows)
    # One network is enough to contradict. All are needed for any other verdict.
    deciding = min if verdict is Verdict.CONTRADICTED else max
    contradicted = [row for row in rows if row["verdict"] == Verdict.CONTRADICTED]
    p_values = [row["corrected_p"] for row in contradicted or rows]
    row = _facts(claim, data) | {
        "model": networks,
        "arch": "",
        "metric": rows[0]["metric"] if rows else "",
        **({key: rows[0][key] for key in ("direction", "unit", "smallest", "rule")} if rows else {}),
        "corrected_p": deciding(p_values) if len(rows) > 1 and not any(map(math.isnan, p_values)) else math.nan,
        "comparisons": found,
        "verdict": str(verdict),
        "reason": reason,
        "on_paper_setting": str(verdict if rows and all(settings) else Verdict.NOT_TESTED),
    }
    row["sentence"] = f"{claim.title}: {verdict} on {data} ({found}){f', because {reason}' if reason else ''}."
    return row


def _sentence(row: Mapping[str, Any], count: int) -> str:
    start = f"{row['title']}: {row['verdict']} on {row['data']} with {row['model']} ({row['arch']})"
    if row["verdict"] == Verdict.NOT_TESTED:
        return f"{start}, because {row['reason']}."
    which = f"{row['comparison']}, the weakest of {count} comparisons," if count > 1 else row["comparison"]
    replicates = int(row["replicates"])
    trainings = "1 replicate, these trainings only" if replicates == 1 else f"{replicates} replicates"
    reason = f" {row['reason'][0].upper()}{row['reason'][1:]}." if row["reason"] else ""
    return (
        f"{start}: in {METRIC_LABELS[row['metric']]}, {which} is {interval_text(row, row['unit'])} "
        f"(95 % interval; {trainings}, {int(row['images'])} images).{reason}"
    )


def _component_text(component: _Component, metric: str) -> str:
    estimate = component.found
    values = {"effect": estimate.mean, "low": estimate.low, "high": estimate.high}
    number = f"{estimate.replicates} replicate{'s' if estimate.replicates > 1 else ''}"
    return f"{component.title}: {interval_text(values, difference_unit(metric))}, {number}"
