"""Options of Triton: where it is, and how it is started, probed and asked."""

from pathlib import Path
from typing import Any

import click

from polywand_common.console import Number
from polywand_server.config import Settings, TritonTls
from polywand_server.options.kinds import FILE, MAX_SECONDS, metrics_url

_DEFAULTS = Settings()

OPTIONS = (
    click.option(
        "--model-repository",
        default=_DEFAULTS.model_repository,
        type=click.Path(path_type=Path),
        show_envvar=True,
        help="Model repository of the embedded Triton. Not used with --triton-url.",
    ),
    click.option(
        "--triton-url",
        show_envvar=True,
        help="host:port of an external Triton's gRPC service. Default: the service starts its own Triton and monitors "
        "it.",
    ),
    click.option("--triton-tls", is_flag=True, show_envvar=True, help="Use TLS for --triton-url."),
    click.option(
        "--triton-tls-ca", type=FILE, show_envvar=True, help="PEM root certificates to trust instead of the system's."
    ),
    click.option("--triton-tls-key", type=FILE, show_envvar=True, help="PEM private key, for mutual TLS."),
    click.option("--triton-tls-cert", type=FILE, show_envvar=True, help="PEM certificate chain, for mutual TLS."),
    click.option(
        "--load-models/--no-load-models",
        default=None,
        show_envvar=True,
        help="Load all models of Triton's repository (needs explicit model control in Triton). "
        "Default: yes with the embedded Triton, no with --triton-url.",
    ),
    click.option(
        "--poll-seconds",
        default=_DEFAULTS.poll_seconds,
        type=Number(0.1, MAX_SECONDS),
        show_envvar=True,
        help="Interval between polls of Triton's model index.",
    ),
    click.option(
        "--settling-seconds",
        default=_DEFAULTS.settling_seconds,
        type=Number(0, MAX_SECONDS),
        show_envvar=True,
        help="How long a model's files must not have changed before they are loaded: longer where copies stall.",
    ),
    click.option(
        "--triton-hang-seconds",
        default=_DEFAULTS.triton_hang_seconds,
        type=Number(0.5, MAX_SECONDS),
        show_envvar=True,
        help="How long the embedded Triton may leave probes unanswered before it is restarted.",
    ),
    click.option(
        "--infer-timeout-seconds",
        default=_DEFAULTS.infer_timeout_seconds,
        type=Number(0.1, MAX_SECONDS),
        show_envvar=True,
        help="Longest wait for one inference, including Triton's queue.",
    ),
    click.option(
        "--triton-metrics-url",
        callback=metrics_url,
        show_envvar=True,
        help="URL of the metrics of an external Triton, which /metrics/triton passes on. The embedded one's are known.",
    ),
    click.option(
        "--scratch",
        type=click.Path(path_type=Path),
        show_envvar=True,
        help="Folder for the embedded Triton's files; programs in it must be executable. Default: the system's folder "
        "for temporary files.",
    ),
)


def take(given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of these options.

    Raises:
        click.UsageError: options do not go together.
    """
    tls, ca, key, certificate = (given.pop(f"triton_tls{part}") for part in ("", "_ca", "_key", "_cert"))
    if (key is None) != (certificate is None):
        raise click.UsageError("--triton-tls-key and --triton-tls-cert belong together: give both or none")
    use_tls = tls or ca is not None or key is not None
    if use_tls and given["triton_url"] is None:
        raise click.UsageError("TLS to Triton needs --triton-url: the embedded Triton listens on a private socket")
    if given["triton_metrics_url"] is not None and given["triton_url"] is None:
        raise click.UsageError("--triton-metrics-url needs --triton-url: those of the embedded Triton are known")
    load_models = given.pop("load_models")
    names = ("model_repository", "poll_seconds", "settling_seconds", "triton_hang_seconds", "infer_timeout_seconds")
    return {
        "triton_tls": TritonTls(ca, key, certificate) if use_tls else None,
        "load_models": given["triton_url"] is None if load_models is None else load_models,
        **{name: given.pop(name) for name in (*names, "triton_url", "triton_metrics_url", "scratch")},
    }
