"""Settings of how a revision is tested: the gate, the trial, the comparison of answers, the shadow before the trial."""

from typing import Annotated

from pydantic import Field, model_validator

from common.settings import Section

Seconds = Annotated[float, Field(gt=0, le=86400)]
Share = Annotated[float, Field(ge=0, le=1)]


class GateSection(Section):
    """`[updater.models.NAME.gate]`: what a candidate must pass before it serves."""

    max_accuracy_loss: Annotated[
        Share, Field(description="largest allowed loss of accuracy against the active model")
    ] = 0.01
    max_negative_flips: Annotated[
        Share, Field(description="largest allowed share of questions that only the active model answers right")
    ] = 0.05
    significance: Annotated[float, Field(gt=0, lt=1, description="significance level of the exact paired test")] = 0.05
    min_agreement: Annotated[
        Share, Field(description="lowest share of answers equal to the active model's, for items without expectation")
    ] = 0.90
    max_cost_factor: Annotated[
        float,
        Field(
            ge=1, le=100, description="largest device time relative to the active model; above it the update is HELD"
        ),
    ] = 1.5


class ObserveSection(Section):
    """`[updater.models.NAME.observe]`: how a trial is judged."""

    window_seconds: Annotated[Seconds, Field(description="shortest trial")] = 600.0
    max_seconds: Annotated[
        Seconds,
        Field(
            description="time limit of a trial, or of a canary's step, that lacks answers or evidence; with probes, or "
            "while requests wait for the previous model, counted from the end of window_seconds"
        ),
    ] = 1800.0
    min_answers: Annotated[int, Field(ge=1, le=10**6, description="answers needed for a verdict")] = 50
    error_margin: Annotated[
        Share,
        Field(description="largest share of failed requests; one counts only if the previous model has answered it"),
    ] = 0.01
    burst_failures: Annotated[
        int, Field(ge=2, le=10**6, description="number of failures that causes an immediate rollback")
    ] = 5
    burst_share: Annotated[
        Share, Field(description="smallest failed share of the requests at which burst_failures causes the rollback")
    ] = 0.20
    max_not_finite: Annotated[
        int, Field(ge=0, le=10**6, description="more answers with NaN than this cause an immediate rollback")
    ] = 2
    max_restarts: Annotated[
        int,
        Field(
            ge=0,
            le=1000,
            description="more runner crashes than this cause an immediate rollback; each is one failed request, too",
        ),
    ] = 1
    max_cost_factor: Annotated[
        float,
        Field(
            ge=1,
            le=100,
            description="largest device time per row relative to the previous model; above it the update is HELD",
        ),
    ] = 2.0
    significance: Annotated[
        float, Field(gt=0, lt=1, description="significance level of the comparison of device times")
    ] = 0.01
    min_compared: Annotated[
        int,
        Field(
            ge=2,
            le=10**6,
            description="device calls (for cost) or answers (for latency) of each model before they are compared",
        ),
    ] = 30
    max_latency_factor: Annotated[
        float, Field(ge=1, le=100, description="largest 95th percentile of latency relative to the previous model")
    ] = 2.0
    latency_margin_seconds: Annotated[
        float, Field(ge=0, le=60, description="a smaller increase of latency is ignored")
    ] = 0.05
    probes_allowed: Annotated[bool, Field(description="whether a trial without traffic may pass on probes alone")] = (
        True
    )
    trial_lease_seconds: Annotated[
        float,
        Field(
            ge=5,
            le=3600,
            description="the server ends a trial, or the gap of unload_first, after this time without the updater",
        ),
    ] = 60.0
    keep_warm_seconds: Annotated[
        float, Field(ge=0, le=86400, description="how long the previous model stays loaded after a commit")
    ] = 60.0

    @model_validator(mode="after")
    def _check_order(self) -> "ObserveSection":
        if self.max_seconds < self.window_seconds:
            raise ValueError("max_seconds must not be less than window_seconds")
        return self


class CompareSection(Section):
    """`[updater.models.NAME.compare]`: how answers of a trial are compared with those of the previous model."""

    share: Annotated[
        Share,
        Field(
            description="share of the trial's requests that the previous model answers too, when it is idle; 0: none"
        ),
    ] = 0.2
    busy_share: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="largest share of its time that a model spends on copies of requests; on a GPU 5 % at most",
        ),
    ] = 0.5
    false_alarms: Annotated[
        float,
        Field(
            gt=0,
            lt=1,
            description="upper bound, over a whole trial, on the probability that a revision that changes no more "
            "answers than on the golden set is HELD for changed answers",
        ),
    ] = 0.02
    margin: Annotated[Share, Field(description="tolerance added to the golden set's limit on changed answers")] = 0.005
    min_compared: Annotated[
        int,
        Field(
            ge=0,
            le=10**6,
            description="compared answers needed before a trial that has answered this many requests is committed; "
            "if there are fewer, it is extended once, by at most one window",
        ),
    ] = 100
    max_mix_change: Annotated[
        Share,
        Field(
            description="share of labels that may move between the answers of a revision and of the one before, at the "
            "same hours of the day; beyond it label_mix_changed is an event; 0: any"
        ),
    ] = 0.1
    min_labels: Annotated[
        int, Field(ge=1, le=10**9, description="labels of each revision in an hour of the day before they are compared")
    ] = 500


class ShadowSection(Section):
    """`[updater.models.NAME.shadow]`: the time before the trial, with `rollout = "shadow"`."""

    share: Annotated[float, Field(gt=0, le=1, description="share of the requests that the candidate answers too")] = 0.2
    min_answers: Annotated[int, Field(ge=1, le=10**6, description="compared answers after which the trial begins")] = (
        200
    )
    max_seconds: Annotated[Seconds, Field(description="time after which the trial begins with fewer answers")] = 600.0
