"""Options of operating: readiness, draining, logs and traces."""

from pathlib import Path
from typing import Any, get_args

import click

from polywand_common.console import Number
from polywand_server.config import Settings, Tracing
from polywand_server.ops import logs
from polywand_server.options.kinds import MAX_SECONDS, names, url

_DEFAULTS = Settings()

OPTIONS = (
    click.option(
        "--ready-models",
        default="",
        callback=names,
        show_default=False,
        show_envvar=True,
        metavar="NAME,NAME...",
        help="Tools, or models with all their tools, that must be ready before the service is. "
        "Default: every model was tried once, and at least one tool is ready.",
    ),
    click.option(
        "--drain-seconds",
        default=_DEFAULTS.drain_seconds,
        type=Number(0, MAX_SECONDS),
        show_envvar=True,
        help="Time for running requests to finish after SIGTERM.",
    ),
    click.option(
        "--log-level",
        default="info",
        type=click.Choice(["debug", "info", "warning", "error"]),
        show_envvar=True,
        help="Lowest level that is logged. The log goes to stderr.",
    ),
    click.option(
        "--log-format",
        default="text",
        type=click.Choice(get_args(logs.Format)),
        show_envvar=True,
        help="Format of the log: text, or one JSON object per line.",
    ),
    click.option(
        "--drain-delay-seconds",
        default=_DEFAULTS.drain_delay_seconds,
        type=Number(0, MAX_SECONDS),
        show_envvar=True,
        help="Time after SIGTERM in which health says NOT_SERVING and all calls are still taken: until proxies have "
        "noticed. The drain follows.",
    ),
    click.option(
        "--stream-max-age-seconds",
        default=_DEFAULTS.stream_max_age_seconds,
        type=Number(0, MAX_SECONDS),
        show_envvar=True,
        help="Age, give or take a tenth, at which a stream is told to move, so that new replicas get their share. "
        "0: never.",
    ),
    click.option(
        "--heartbeat-seconds",
        default=_DEFAULTS.heartbeat_seconds,
        type=Number(0, MAX_SECONDS),
        show_envvar=True,
        help="Pause after which an idle stream gets a heartbeat, so that proxies do not end it. 0: never.",
    ),
    click.option(
        "--audit-log",
        type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
        show_envvar=True,
        help="File that gets one JSON line for every call; - for stderr. Default: none.",
    ),
    click.option(
        "--trace-endpoint",
        callback=url,
        show_envvar=True,
        help="URL of an OpenTelemetry collector that gets traces by OTLP over HTTP, such as http://collector:4318. "
        "Default: none are made.",
    ),
    click.option(
        "--trace-ratio",
        default=1.0,
        type=Number(0, 1),
        show_envvar=True,
        help="Part of the calls without a client's trace that are traced; a client's own decision counts first.",
    ),
)


def take(given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of these options."""
    endpoint, ratio = given.pop("trace_endpoint"), given.pop("trace_ratio")
    settings = ("ready_models", "drain_seconds", "drain_delay_seconds", "stream_max_age_seconds")
    return {
        "tracing": Tracing(endpoint, ratio) if endpoint else None,
        **{name: given.pop(name) for name in (*settings, "heartbeat_seconds", "audit_log")},
    }
