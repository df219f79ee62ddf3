"""What an analyst calls: a collector's plans and estimates as Polars frames.

Place: the last step; everything here has passed the privacy of the edge, so an answer may be kept and asked again.

Invariants:
- Without TLS only loopback is spoken to; a token leaves this process over TLS alone, to whom the CA vouches for.
- Every failure of the wire becomes an error of this package, with a text that says what to do.
"""

from __future__ import annotations

import threading
import weakref
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Self

import grpc
import polars as pl
import pyarrow as pa

from cloud_collector.errors import (
    AccessDenied,
    CollectorError,
    CollectorUnreachable,
    Overloaded,
    PlanUnknown,
    QuestionInvalid,
    StoreFailed,
)
from edge_agg.contract.address import is_loopback
from edge_agg.contract.codec import to_us
from edge_agg.contract.plan import (
    Count,
    DistinctUnits,
    Histogram,
    Mean,
    Quantiles,
    Ratio,
    Sum,
    Variance,
    parse_duration,
    parse_plan,
)
from edge_agg.contract.refusal import REFUSAL_KEY, Refusal
from edge_agg.contract.v1 import query_pb2 as pb
from edge_agg.contract.v1.query_pb2_grpc import QueryServiceStub

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from edge_agg.contract.plan import Metric, Plan

Moment = datetime | date | str
"""A UTC moment; text is ISO 8601. Without a zone it is UTC."""

_READY_S = 3.0
_MAX_BYTES = 64 * 1024 * 1024
_BIAS = "the interval covers the noise; bias from clipping and bounding is not in it"
_SUPPRESSED = "a key that too few units had is suppressed, and sums over keys leave it out"
_PLANS: pl.Schema = pl.Schema(
    {
        "plan": pl.String(),
        "version": pl.Int64(),
        "metric": pl.String(),
        "kind": pl.String(),
        "column": pl.String(),
        "by": pl.List(pl.String),
        "every": pl.String(),
        "nodes": pl.List(pl.String),
        "epsilon": pl.Float64(),
        "delta": pl.Float64(),
        "mechanism": pl.String(),
        "max_nodes": pl.Int64(),
        "reads_as": pl.String(),
    }
)


def connect(
    url: str,
    *,
    ca: str | Path | None = None,
    token: str | None = None,
    cert: str | Path | None = None,
    key: str | Path | None = None,
    timeout_s: float = 30.0,
) -> Client:
    """Connect to a collector: `connect(url)` on loopback, else with a CA and either a token or a certificate.

    Args:
        url: `host:port`, for example `127.0.0.1:8815`.
        ca: the file of the collector's CA, in PEM.
        token: a bearer token, from `cloud-collector token issue`; the url is then the collector's `listen_open`.
        cert: the file of the analyst's certificate and its issuers, in PEM.
        key: the file of the certificate's key, in PEM.
        timeout_s: how long one question may take, in seconds.

    Raises:
        CollectorUnreachable: nothing answers there, or it is not whom the CA vouches for: start it with
            `cloud-collector serve`, or correct the address, the CA or the certificate.
    """
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", _MAX_BYTES)]
    credentials = _credentials(ca, token, cert, key)
    if credentials is not None:
        channel = grpc.secure_channel(url, credentials, options=options)
    elif is_loopback(url):
        channel = grpc.insecure_channel(url, options=options)
    else:
        raise CollectorUnreachable(
            "a url is host:port, and without TLS only loopback is spoken to: 127.0.0.1:8815, say; or give a ca"
        )
    if not _wait_ready(channel, min(timeout_s, _READY_S)):
        channel.close()
        whom = "" if credentials is None else " that the ca vouches for and that takes this certificate"
        raise CollectorUnreachable(f"no collector at {url}{whom}: start it with `cloud-collector serve`")
    return Client(channel, timeout_s=timeout_s)


class Client:
    """An open connection; use it as a context manager, or close it."""

    def __init__(self, channel: grpc.Channel, *, timeout_s: float) -> None:
        self._channel = channel
        # A channel that is open when the interpreter ends waits there for a thread that is gone, and never ends.
        self._hang_up = weakref.finalize(self, channel.close)
        self._timeout_s = timeout_s
        self._stub = QueryServiceStub(channel)

    def plans(self) -> pl.DataFrame:
        """List what can be asked.

        Returns:
            One row a plan and metric: plan, version, metric, kind, column, by, every, nodes, epsilon and delta of one
            window at one node, mechanism, max_nodes, and `reads_as`, what the numbers mean in words.

        Raises:
            CollectorUnreachable: start the collector, or connect again.
        """
        try:
            answer = self._stub.ListPlans(pb.ListPlansRequest(), timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise _mapped(error) from None
        rows = [row for one in answer.plans for row in _describe(parse_plan(one.text), list(one.nodes))]
        return pl.DataFrame(rows, schema=_PLANS, orient="row")

    def estimate(
        self,
        plan: str,
        metric: str,
        *,
        by: Sequence[str] = (),
        every: str | None = None,
        where: Mapping[str, str | Sequence[str]] | None = None,
        start: Moment | None = None,
        end: Moment | None = None,
        version: int | None = None,
        confidence: float = 0.95,
    ) -> pl.DataFrame:
        """Ask for one metric.

        Args:
            plan: its name.
            metric: its name in the plan.
            by: partitions to group by, and "node". Discovered keys appear if the range holds them, or `where` names
                them.
            every: the length of a time bucket, a multiple of the plan's window ("28d"); one bucket when absent.
            where: partition -> the keys to keep; of a discovered one, any text.
            start: the first instant; the earliest window that landed when absent.
            end: the first instant after; when absent, the end of the latest window that landed, at most of the one that
                now lies in.
            version: of the plan; the newest when absent.
            confidence: the probability that an interval covers the truth of the bounded data.

        Returns:
            One row a bucket and group, sorted: start, end, the `by` columns, value, lo, hi (null where nothing was
            released), nodes_reporting, nodes_expected, windows_reporting, windows_expected; absent, a struct that
            counts what is missing by reason, as :meth:`coverage` names them, and "suppressed"; status: "complete", or
            the most frequent reason; and note, which says what the numbers leave out. A histogram has a row a bin,
            between `bin_lower` and `bin_upper`; quantiles have a row for each `quantile` of the plan.

            Values are noisy and may be negative; they add up without bias. A value alone is null where noise leaves
            nothing to divide by. An interval covers the noise alone: bias from clipping and bounding is not in it. A
            quantile's interval is made of whole bins.

            Where keys are discovered, a window that lacks a key is "suppressed" there: too few units had it. A sum over
            keys adds up what was released, so it leaves out the suppressed ones, and counts a window as suppressed for
            each key that it lacks of those that the range holds or `where` names.

        Raises:
            QuestionInvalid: fix what the text names.
            PlanUnknown: see :meth:`plans`.
            CollectorUnreachable: start the collector, or connect again.
            Overloaded: ask again in a moment.
        """
        try:
            request = pb.EstimateRequest(
                plan=plan,
                version=version,
                metric=metric,
                by=[by] if isinstance(by, str) else by,
                every_us=None if every is None else _length_us(every),
                where=[_filter(column, values) for column, values in (where or {}).items()],
                start_us=None if start is None else _moment_us("start", start),
                end_us=None if end is None else _moment_us("end", end),
                confidence=confidence,
            )
        except (TypeError, ValueError):
            raise QuestionInvalid("an argument has the wrong type, or a number is out of range") from None
        return self._frame(self._stub.Estimate(request, timeout=self._timeout_s))

    def coverage(
        self,
        plan: str,
        *,
        by_node: bool = True,
        every: str | None = None,
        nodes: str | Sequence[str] = (),
        start: Moment | None = None,
        end: Moment | None = None,
        version: int | None = None,
    ) -> pl.DataFrame:
        """Ask who should have reported, and what became of every window.

        Args:
            plan: its name.
            by_node: a row for each node; else all are added up.
            every: the length of a time bucket, a multiple of the plan's window, so "7d" of a weekly plan is a row for
                each window; one bucket when absent.
            nodes: these only.
            start: the first instant; the earliest window that landed when absent.
            end: the first instant after; when absent, the end of the latest window that landed, at most of the one that
                now lies in.
            version: of the plan; the newest when absent.

        Returns:
            One row a bucket and node, sorted: start, end, node, windows_expected, and how many of these are `released`;
            `late` (may still come), `offline` (overdue, and the agent was not heard of since), `lost` (will not come),
            `vetoed` (the device's policy forbids it), `exhausted` (the budget has no room), `expired` (no longer kept);
            `last_heard`, null if never, and `fenced`.

        Raises:
            As :meth:`estimate`.
        """
        try:
            request = pb.CoverageRequest(
                plan=plan,
                version=version,
                nodes=[nodes] if isinstance(nodes, str) else nodes,
                every_us=None if every is None else _length_us(every),
                start_us=None if start is None else _moment_us("start", start),
                end_us=None if end is None else _moment_us("end", end),
                total=not by_node,
            )
        except (TypeError, ValueError):
            raise QuestionInvalid("an argument has the wrong type, or a number is out of range") from None
        return self._frame(self._stub.Coverage(request, timeout=self._timeout_s))

    def _frame(self, parts: Iterable[pb.EstimateResponse | pb.CoverageResponse]) -> pl.DataFrame:
        try:
            stream = b"".join(part.arrow for part in parts)
        except grpc.RpcError as error:
            raise _mapped(error) from None
        with pa.ipc.open_stream(stream) as reader:
            frame = pl.from_arrow(reader.read_all())
            note = (reader.schema.metadata or {}).get(b"note")
        assert isinstance(frame, pl.DataFrame)
        if note is None or "note" in frame.columns:  # a partition may have the name
            return frame
        return frame.with_columns(note=pl.lit(note.decode()))

    def close(self) -> None:
        """Hang up; safe to call twice."""
        self._hang_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _credentials(
    ca: str | Path | None, token: str | None, cert: str | Path | None, key: str | Path | None
) -> grpc.ChannelCredentials | None:
    """TLS with who asks, or None where nothing was given."""
    if (ca, token, cert, key) == (None, None, None, None):
        return None
    if ca is None or (cert is None) != (key is None) or (token is None) == (cert is None):
        raise CollectorUnreachable("with TLS give a ca, and either a token, or a cert and its key")
    try:
        anchors, chain, secret = (None if file is None else Path(file).read_bytes() for file in (ca, cert, key))
    except OSError:
        raise CollectorUnreachable("the file of the ca, cert or key cannot be read") from None
    credentials = grpc.ssl_channel_credentials(anchors, secret, chain)
    if token is None:
        return credentials
    return grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(token))


def _wait_ready(channel: grpc.Channel, timeout_s: float) -> bool:
    """Whether the channel comes up; a refused connection is known at once, not after the timeout."""
    decided = threading.Event()
    states: list[grpc.ChannelConnectivity] = []

    def note(state: grpc.ChannelConnectivity) -> None:
        if state in {grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE}:
            states.append(state)
            decided.set()

    channel.subscribe(note, try_to_connect=True)
    decided.wait(timeout_s)
    channel.unsubscribe(note)
    return states[:1] == [grpc.ChannelConnectivity.READY]


def _filter(column: str, values: str | Sequence[str]) -> pb.Filter:
    return pb.Filter(column=column, values=[values] if isinstance(values, str) else values)


def _length_us(every: str) -> int:
    try:
        return parse_duration(every) // timedelta(microseconds=1)
    except ValueError as error:
        raise QuestionInvalid(f"every: {error}") from None


def _moment_us(name: str, moment: Moment) -> int:
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError:
            raise QuestionInvalid(f"{name}: text must be ISO 8601, for example 2013-01-07") from None
    if not isinstance(moment, date):
        raise QuestionInvalid(f"{name}: must be a date, a datetime, or text, for example 2013-01-07") from None
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day, tzinfo=UTC)
    return to_us(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def _mapped(error: grpc.RpcError) -> CollectorError:
    text = error.details() or ""
    refusals = [str(one.value) for one in error.trailing_metadata() or () if one.key == REFUSAL_KEY]
    if Refusal.STORE_FAILED in refusals:
        return StoreFailed("the collector's disk failed: tell the people who run it")
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and Refusal.OVERLOADED not in refusals:
        return QuestionInvalid("the question is larger than the collector takes")  # gRPC's own limit has this code too
    gone = CollectorUnreachable("the collector went away: start it with `cloud-collector serve`, then connect again")
    slow = CollectorUnreachable("no answer in time: ask for less, or connect with a longer timeout_s")
    known: dict[grpc.StatusCode, CollectorError] = {
        grpc.StatusCode.INVALID_ARGUMENT: QuestionInvalid(text),
        grpc.StatusCode.NOT_FOUND: PlanUnknown(text),
        grpc.StatusCode.UNAUTHENTICATED: AccessDenied(text),
        grpc.StatusCode.PERMISSION_DENIED: AccessDenied(text),
        grpc.StatusCode.UNAVAILABLE: gone,
        grpc.StatusCode.CANCELLED: gone,
        grpc.StatusCode.DEADLINE_EXCEEDED: slow,
        grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded("the collector has too many questions: ask again in a moment"),
    }
    return known.get(error.code(), CollectorError(text))


def _describe(plan: Plan, nodes: list[str]) -> list[tuple[object, ...]]:
    by = [partition.label for partition in plan.partition]
    budget, about = plan.budget, _BIAS if plan.discovered is None else f"{_BIAS}; {_SUPPRESSED}"
    return [
        (
            *(plan.name, plan.version, metric.name, _kind(metric), getattr(metric, "column", None)),
            *(by, plan.window.every, nodes),
            *(budget.epsilon, budget.delta, budget.mechanism, plan.privacy_unit.max_nodes),
            f"{_reads_as(plan, metric)}; {about}",
        )
        for metric in plan.metric
    ]


def _kind(metric: Metric) -> str:
    return str(metric.__struct_config__.tag)


def _reads_as(plan: Plan, metric: Metric) -> str:
    unit, bounds = plan.privacy_unit.label, plan.bounds
    partitions = f"at most {bounds.max_partitions} partition(s)"
    kept = f"rows kept by the bounds ({partitions} x {bounds.max_rows_per_partition} row(s) per {unit} and window)"
    match metric:
        case Count():
            return kept
        case DistinctUnits():
            cell = ", site and partition" if bounds.max_partitions > 1 else " and site"
            return f"distinct {unit}, counted once per window{cell}, then added up"
        case Sum(clip="unit"):
            clipped = f"clipped to {metric.lower:g} .. {metric.upper:g} as a whole"
            return f"sum of each {unit}'s {metric.column} in a window and partition, {clipped}, over {partitions}"
        case Sum() | Mean() | Variance():
            what = {Sum: "sum", Mean: "mean", Variance: "population variance"}[type(metric)]
            return f"{what} of {metric.column}, clipped to {metric.lower:g} .. {metric.upper:g}, over {kept}"
        case Histogram() | Quantiles():
            edges, asked = metric.all_edges, [] if isinstance(metric, Histogram) else metric.quantiles
            what = f"quantiles {', '.join(map(str, asked))}" if asked else "rows in each bin"
            return (
                f"{what} of {metric.column}, by {len(edges) - 1} bins from {edges[0]:g} to {edges[-1]:g}, over {kept}"
            )
        case Ratio():
            by_name = {other.name: other for other in plan.metric}
            above, below = (_reads_as(plan, by_name[name]) for name in (metric.numerator, metric.denominator))
            return f"{metric.numerator} / {metric.denominator}: ({above}) / ({below})"
