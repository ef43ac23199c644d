"""Build the Grafana dashboard: `python deploy/monitoring/dashboards/build.py` writes polywand.json beside this file.

With --check nothing is written: exit code 1 says that polywand.json is not what this file builds.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

PATH = Path(__file__).with_name("polywand.json")
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
GRID_COLUMNS = 24

# What every expression selects. Triton's metrics are in a job of their own, with the same instances.
OURS = 'job=~"$job",instance=~"$instance"'
TRITONS = 'instance=~"$instance"'


@dataclass(frozen=True)
class Query:
    """expr: PromQL. legend: of each series it returns. is_heatmap: its series are the buckets of a histogram."""

    expr: str
    legend: str
    is_heatmap: bool = False

    def build(self, letter: str) -> prometheus.Dataquery:
        """Return the query as Grafana has it. letter: names it within its panel."""
        query = (
            prometheus.Dataquery().expr(self.expr).legend_format(self.legend).ref_id(letter).datasource(SOURCE).range()
        )
        return query.format(PromQueryFormat.HEATMAP if self.is_heatmap else PromQueryFormat.TIME_SERIES)


@dataclass(frozen=True)
class Panel:
    """One panel: a graph, or where kind says so a number ("stat") or a "heatmap".

    unit: as Grafana names it. about: what it tells. width: of 24 columns. stacked: areas on one another.
    """

    title: str
    unit: str
    about: str
    queries: tuple[Query, ...]
    width: int = 8
    kind: str = "graph"
    stacked: bool = False
    # Of a number: green below the first, yellow from it, red from the second; the other way round if it falls.
    limits: tuple[float, float] | None = None

    def build(self) -> timeseries.Panel | stat.Panel | heatmap.Panel:
        """Return it as Grafana has it."""
        panel = {"graph": self._graph, "stat": self._stat, "heatmap": self._heatmap}[self.kind]()
        panel.title(self.title).description(self.about).datasource(SOURCE).unit(self.unit)
        panel.span(self.width).height(4 if self.kind == "stat" else 8)
        for number, query in enumerate(self.queries):
            panel.with_target(query.build(chr(ord("A") + number)))
        return panel

    def _graph(self) -> timeseries.Panel:
        legend = common.VizLegendOptions().show_legend(True)
        legend.display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM).calcs(["lastNotNull"])
        panel = timeseries.Panel().legend(legend).min(0).line_width(1).fill_opacity(40 if self.stacked else 8)
        panel.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
        if self.stacked:
            panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))
        return panel

    def _stat(self) -> stat.Panel:
        panel = stat.Panel().graph_mode(BigValueGraphMode.AREA).orientation(VizOrientation.AUTO).no_value("-")
        panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields(""))
        if self.limits is not None:
            first, second = self.limits
            colors = ("green", "yellow", "red") if first < second else ("red", "yellow", "green")
            steps = zip((None, *sorted(self.limits)), colors, strict=True)
            thresholds = dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE)
            panel.thresholds(thresholds.steps([Threshold(value=value, color=color) for value, color in steps]))
        return panel

    def _heatmap(self) -> heatmap.Panel:
        color = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
        return heatmap.Panel().calculate(False).color(color)


def rate(metric: str, labels: str = "", selector: str = OURS) -> str:
    """Return the increase of a counter per second."""
    return f"rate({metric}{{{selector}{',' if labels else ''}{labels}}}[$__rate_interval])"


def total(metric: str, by: str, labels: str = "", selector: str = OURS) -> str:
    """Return the increase of a counter per second, added up by labels."""
    return f"sum by ({by}) ({rate(metric, labels, selector)})"


def quantile(part: float, histogram: str, by: str = "") -> str:
    """Return a quantile of a histogram; nothing, rather than NaN, where nothing happened."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({part}, sum by ({labels}) ({rate(histogram + '_bucket')})) >= 0"


def share(part: str, whole: str, on: str = "") -> str:
    """Return a part of a whole, both of which are rates; nothing where the whole is 0."""
    by = f"sum by ({on})" if on else "sum"
    return f"({by} ({part}) or 0 * {by} ({whole})) / ({by} ({whole}) > 0)"


def gauge(metric: str, by: str = "", labels: str = "") -> str:
    """Return a gauge, added up by labels."""
    return f"sum{f' by ({by})' if by else ''} ({metric}{{{OURS}{',' if labels else ''}{labels}}})"


PROMPT, STAGE = "polywand_prompt_duration_seconds", "polywand_stage_duration_seconds"
CALLS, INFERENCES = "polywand_grpc_requests_total", "polywand_inferences_total"
SIGNAL = " + ".join(f"polywand_{what}{{{OURS}}}" for what in ("prompts_in_work", "prompts_waiting", "frames_waiting"))
FAULTS = 'code=~"INTERNAL|UNKNOWN|DATA_LOSS"'
IN_TIME = rate(PROMPT + "_bucket", 'le="0.5"')
SLOW = f"1 - sum ({IN_TIME}) / (sum ({rate(PROMPT + '_count')}) > 0)"
WAIT = rate(STAGE + "_sum", 'stage="wait"')
IN_TRITON = rate(STAGE + "_bucket", 'stage="triton"')
WITH_ERROR = 'outcome="error"'
OF_PROMPTS = f"and on (job, instance, model) {PROMPT}_count{{{OURS}}}"
PER_STAGE = (
    f"sum by (stage) ({rate(STAGE + '_sum')} {OF_PROMPTS}) / on () group_left () (sum ({rate(PROMPT + '_count')}) > 0)"
)

OVERVIEW = (
    Panel(
        "Replicas ready",
        "none",
        "Replicas whose /readyz is 200.",
        (Query(gauge("polywand_ready"), ""),),
        4,
        "stat",
        limits=(1, 0.5),
    ),
    Panel(
        "Clicks, p95",
        "s",
        "From a prompt's receipt to its answer.",
        (Query(quantile(0.95, PROMPT), ""),),
        4,
        "stat",
        limits=(0.25, 0.5),
    ),
    Panel(
        "Slow clicks",
        "percentunit",
        "Part of the prompts that took longer than half a second.",
        (Query(SLOW, ""),),
        4,
        "stat",
        limits=(0.01, 0.06),
    ),
    Panel(
        "Load per replica",
        "none",
        "The scale signal: prompts in work and waiting, and frames waiting; the mean of the replicas.",
        (Query(f"avg ({SIGNAL})", ""),),
        4,
        "stat",
        limits=(8, 16),
    ),
    Panel(
        "Calls failed",
        "percentunit",
        "By the service's own fault: INTERNAL, UNKNOWN, DATA_LOSS.",
        (Query(share(rate(CALLS, FAULTS), rate(CALLS)), ""),),
        4,
        "stat",
        limits=(0.001, 0.01),
    ),
    Panel(
        "Tritons up",
        "none",
        "Tritons that answer.",
        (Query(gauge("polywand_triton_up"), ""),),
        4,
        "stat",
        limits=(1, 0.5),
    ),
)

LATENCY = (
    Panel(
        "Time of a click",
        "s",
        "From a prompt's receipt to its answer, of all models.",
        tuple(Query(quantile(part, PROMPT), name) for part, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))),
    ),
    Panel(
        "Time of a click by model, p95",
        "s",
        "From a prompt's receipt to its answer.",
        (Query(quantile(0.95, PROMPT, "model"), "{{model}}"),),
    ),
    Panel(
        "Where the time of a click goes",
        "s",
        "Mean seconds of each stage. wait: for its turn; decode: of an image that came with it; prepare: crop and "
        "tensors; triton: inference; geometry: outline.",
        (Query(PER_STAGE, "{{stage}}"),),
        stacked=True,
    ),
    Panel(
        "Times of clicks",
        "s",
        "How many prompts per second took how long.",
        (Query(f"sum by (le) ({rate(PROMPT + '_bucket')})", "{{le}}", is_heatmap=True),),
        kind="heatmap",
    ),
    Panel(
        "Triton's part by model, p95",
        "s",
        "The stage triton: all inferences of one prompt or frame.",
        (Query(f"histogram_quantile(0.95, sum by (model, le) ({IN_TRITON})) >= 0", "{{model}}"),),
    ),
    Panel(
        "Time of unary calls, p95",
        "s",
        "Segment, Detect and the small ones, from start to end.",
        (Query(quantile(0.95, "polywand_grpc_request_duration_seconds", "method"), "{{method}}"),),
    ),
)

LOAD = (
    Panel(
        "Scale signal by replica",
        "none",
        "Prompts in work and waiting, and frames waiting. Scale on its mean.",
        (Query(f"sum by (instance) ({SIGNAL})", "{{instance}}"),),
    ),
    Panel(
        "In work and waiting",
        "none",
        "Of all replicas.",
        tuple(
            Query(gauge(f"polywand_{name}"), name.replace("_", " "))
            for name in ("prompts_in_work", "prompts_waiting", "frames_in_work", "frames_waiting")
        ),
    ),
    Panel(
        "Part of a click's time that it waits",
        "percentunit",
        "By model. Above a half, a replica is saturated.",
        (Query(share(f"{WAIT} {OF_PROMPTS}", rate(PROMPT + "_sum"), "model"), "{{model}}"),),
    ),
    Panel(
        "Prompts",
        "reqps",
        "Answered, by outcome; skipped ones gave way to newer ones.",
        (
            Query(total("polywand_prompts_total", "outcome"), "{{outcome}}"),
            Query(f"sum ({rate('polywand_prompts_skipped_total')})", "skipped"),
        ),
        stacked=True,
    ),
    Panel(
        "Frames",
        "reqps",
        "Of Detect and DetectStream, by outcome.",
        (Query(total("polywand_frames_total", "outcome"), "{{outcome}}"),),
        stacked=True,
    ),
    Panel(
        "Open streams",
        "none",
        "By method; and streams that were told to move, per second.",
        (
            Query(gauge("polywand_grpc_active_streams", "method"), "{{method}}"),
            Query(total("polywand_streams_moved_total", "reason"), "moved: {{reason}}/s"),
        ),
    ),
    Panel(
        "Calls", "reqps", "Finished ones by method, streams included.", (Query(total(CALLS, "method"), "{{method}}"),)
    ),
    Panel(
        "Heartbeats", "reqps", "To idle streams.", (Query(f"sum ({rate('polywand_heartbeats_total')})", "heartbeats"),)
    ),
)

MODELS = (
    Panel(
        "Tools ready",
        "none",
        "By kind and replica.",
        (Query(gauge("polywand_models_ready", "instance, kind"), "{{kind}} {{instance}}"),),
    ),
    Panel(
        "Inferences",
        "reqps",
        "By model and outcome; newer clicks cancel inferences.",
        (Query(total(INFERENCES, "model, outcome"), "{{model}} {{outcome}}"),),
    ),
    Panel(
        "Clicks by model", "reqps", "Answered prompts.", (Query(total("polywand_prompts_total", "model"), "{{model}}"),)
    ),
    Panel(
        "Versions in use",
        "reqps",
        "Inferences by version of a model.",
        (Query(total(INFERENCES, "model, version"), "{{model}} {{version}}"),),
    ),
)

MEMORY = (
    Panel(
        "Memory of images",
        "bytes",
        "Of the fullest replica: decoded images, and decoders at work; of this, images that nothing uses, which give "
        "way first; and the limit.",
        (
            Query(f"max (polywand_image_memory_bytes{{{OURS}}})", "images"),
            Query(f"max (polywand_kept_image_memory_bytes{{{OURS}}})", "kept"),
            Query(f"max (polywand_image_memory_limit_bytes{{{OURS}}})", "limit"),
        ),
    ),
    Panel(
        "Other memory",
        "bytes",
        "Of all replicas.",
        tuple(
            Query(gauge(f"polywand_{name}_memory_bytes"), text)
            for name, text in (
                ("mask", "probability maps"),
                ("reply", "unread replies"),
                ("body", "received, not decoded"),
                ("shared", "shared with Triton"),
            )
        ),
    ),
    Panel(
        "Resident memory",
        "bytes",
        "Of the service's process, without Triton.",
        (Query(gauge("process_resident_memory_bytes", "instance"), "{{instance}}"),),
    ),
    Panel(
        "Images",
        "reqps",
        "Decoded, refused, or given up by idle streams.",
        (Query(total("polywand_images_total", "outcome"), "{{outcome}}"),),
    ),
    Panel(
        "Images that were there already",
        "percentunit",
        "Hits of all look-ups, by bytes or by digest.",
        (
            Query(
                share(rate("polywand_image_lookups_total", 'outcome="hit"'), rate("polywand_image_lookups_total")),
                "hits",
            ),
        ),
    ),
    Panel(
        "Unused images dropped",
        "reqps",
        "To make room, or beyond --kept-images-mebibytes.",
        (Query(total("polywand_image_evictions_total", "reason"), "{{reason}}"),),
    ),
    Panel(
        "Size of received images",
        "bytes",
        "Encoded, or raw.",
        tuple(Query(quantile(part, "polywand_image_bytes"), name) for part, name in ((0.5, "p50"), (0.95, "p95"))),
    ),
    Panel(
        "Pixels of decoded images",
        "short",
        "Width times height.",
        tuple(Query(quantile(part, "polywand_image_pixels"), name) for part, name in ((0.5, "p50"), (0.95, "p95"))),
    ),
)

ERRORS = (
    Panel(
        "Calls that did not end well",
        "reqps",
        "By code; CANCELLED is usually a client that left.",
        (Query(total(CALLS, "code", 'code!="OK"'), "{{code}}"),),
    ),
    Panel(
        "Prompts and frames with an error",
        "reqps",
        "In answers; many are of wrong requests.",
        (
            Query(f"sum ({rate('polywand_prompts_total', WITH_ERROR)})", "prompts"),
            Query(f"sum ({rate('polywand_frames_total', WITH_ERROR)})", "frames"),
        ),
    ),
    Panel(
        "Inferences that failed",
        "reqps",
        "By model and outcome.",
        (Query(total(INFERENCES, "model, outcome", 'outcome!~"ok|cancelled"'), "{{model}} {{outcome}}"),),
    ),
    Panel(
        "Callers refused",
        "reqps",
        "Without a right to call, by reason.",
        (Query(total("polywand_refused_calls_total", "reason"), "{{reason}}"),),
    ),
    Panel(
        "Quotas reached",
        "reqps",
        "Refusals by quota.",
        (Query(total("polywand_quota_refusals_total", "quota"), "{{quota}}"),),
    ),
    Panel(
        "Audit lines lost",
        "none",
        "Since each replica's start.",
        (Query(gauge("polywand_audit_dropped_total", "instance"), "{{instance}}"),),
    ),
)


def per_inference(metric: str) -> str:
    """Return the mean seconds of one of Triton's counters of microseconds."""
    done = total("nv_inference_request_success", "model", selector=TRITONS)
    return f"{total(metric, 'model', selector=TRITONS)} / 1e6 / ({done} > 0)"


_RUNS = total("nv_inference_exec_count", "model", selector=TRITONS)
ROWS_PER_BATCH = f"{total('nv_inference_count', 'model', selector=TRITONS)} / ({_RUNS} > 0)"

TRITON = (
    Panel(
        "Restarts",
        "none",
        "Of the embedded Triton, within an hour.",
        (Query(f"sum by (instance) (increase(polywand_triton_restarts_total{{{OURS}}}[1h]))", "{{instance}}"),),
    ),
    Panel(
        "Time of a request in Triton",
        "s",
        "Mean by model: in its queue, and computing.",
        (
            Query(per_inference("nv_inference_queue_duration_us"), "{{model}} queue"),
            Query(per_inference("nv_inference_compute_infer_duration_us"), "{{model}} compute"),
        ),
    ),
    Panel(
        "Waiting in Triton",
        "none",
        "Requests by model. The service sends few at a time; most wait in the service.",
        (Query(f"sum by (model) (nv_inference_pending_request_count{{{TRITONS}}})", "{{model}}"),),
    ),
    Panel(
        "Rows per batch",
        "none",
        "Mean by model.",
        (
            Query(
                ROWS_PER_BATCH,
                "{{model}}",
            ),
        ),
    ),
    Panel(
        "Failed requests",
        "reqps",
        "By model, as Triton counts them.",
        (Query(total("nv_inference_request_failure", "model", selector=TRITONS), "{{model}}"),),
    ),
    Panel(
        "GPU",
        "percentunit",
        "Utilisation, and part of its memory that is used; none on a machine without a GPU.",
        (
            Query(f"nv_gpu_utilization{{{TRITONS}}}", "{{instance}} {{gpu_uuid}}"),
            Query(
                f"nv_gpu_memory_used_bytes{{{TRITONS}}} / nv_gpu_memory_total_bytes{{{TRITONS}}}",
                "memory {{instance}} {{gpu_uuid}}",
            ),
        ),
    ),
)

PROCESS = (
    Panel(
        "Delay of the event loop, p99",
        "s",
        "How late it is with what is due. Every click pays that.",
        (Query(quantile(0.99, "polywand_event_loop_delay_seconds", "instance"), "{{instance}}"),),
    ),
    Panel(
        "Tasks of the event loop",
        "none",
        "They follow the number of streams.",
        (Query(gauge("polywand_asyncio_tasks", "instance"), "{{instance}}"),),
    ),
    Panel(
        "CPU",
        "none",
        "Cores that the service's process uses, without Triton and the child processes.",
        (Query(total("process_cpu_seconds_total", "instance"), "{{instance}}"),),
    ),
    Panel(
        "File descriptors",
        "percentunit",
        "Part of those that the process may have.",
        (Query(f"process_open_fds{{{OURS}}} / process_max_fds{{{OURS}}}", "{{instance}}"),),
    ),
    Panel(
        "Days until the certificate expires",
        "d",
        "Of the TLS of the ports.",
        (Query(f"(polywand_tls_certificate_expiry_timestamp_seconds{{{OURS}}} - time()) / 86400", "{{instance}}"),),
    ),
    Panel(
        "Versions of Polywand",
        "none",
        "Replicas by version.",
        (Query(f"count by (version) (polywand_build_info{{{OURS}}})", "{{version}}"),),
    ),
)

ROWS = (
    ("Overview", OVERVIEW),
    ("Annotators' latency", LATENCY),
    ("Load and the scale signal", LOAD),
    ("Models", MODELS),
    ("Images and memory", MEMORY),
    ("Errors and refusals", ERRORS),
    ("Triton", TRITON),
    ("The process", PROCESS),
)


def variables() -> Iterator[dashboard.DatasourceVariable | dashboard.QueryVariable]:
    """Yield the choices at the top of the dashboard."""
    yield dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    for name, label, selector in (("job", "Job", ""), ("instance", "Replica", '{job=~"$job"}')):
        variable = (
            dashboard.QueryVariable(name).label(label).datasource(SOURCE).multi(True).include_all(True).all_value(".*")
        )
        variable.query(f"label_values(polywand_build_info{selector}, {name})")
        yield variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.ALPHABETICAL_ASC)


def build() -> str:
    """Return the dashboard as JSON."""
    board = dashboard.Dashboard("Polywand").uid("polywand").tags(["polywand"]).timezone("browser")
    board.description("Clicks in, polygons out: latency, load, models, memory, errors. See docs/monitoring.md.")
    board.time("now-1h", "now").refresh("30s").tooltip(DashboardCursorSync.CROSSHAIR).editable()
    for variable in variables():
        board.with_variable(variable)
    for title, panels in ROWS:
        board.with_row(dashboard.Row(title))
        for panel in panels:
            board.with_panel(panel.build())
    return JSONEncoder(sort_keys=True, indent=1).encode(board.build()) + "\n"


if __name__ == "__main__":
    built = build()
    if sys.argv[1:] != ["--check"]:
        PATH.write_text(built)
    elif not PATH.exists() or PATH.read_text() != built:
        sys.exit(f"{PATH} is not current: run {Path(__file__).name}")
