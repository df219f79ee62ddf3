"""Which source stands behind each `[[source]]` of a config. What a kind needs is imported when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from edge_agg.config.tables import FileTable, HttpTable, MqttTable, OtlpTable, StdinTable, TailTable
from edge_agg.ingest.trouble import unheard

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_agg.clock import Clock
    from edge_agg.config.tables import SourceTable
    from edge_agg.ingest.groups import OneTime
    from edge_agg.ingest.source import Source
    from edge_agg.ingest.trouble import Trouble


def source_of(
    table: SourceTable,
    *,
    clock: Clock,
    heard: Callable[[Trouble], None] = unheard,
    one_time: OneTime | None = None,
) -> Source:
    """Build a source; nothing is opened yet.

    Args:
        table: what the config says.
        clock: the one door to time.
        heard: is told of what a live source passes over and goes on.
        one_time: which times of a file need not be read; None: all are.
    """
    match table:
        case FileTable():
            from edge_agg.ingest.file import FileSource  # noqa: PLC0415

            return FileSource(table.path, clock=clock, tolerant=True, heard=heard, one_time=one_time)
        case TailTable():
            from edge_agg.ingest.tail import TailSource  # noqa: PLC0415

            return TailSource(table, clock=clock, heard=heard)
        case HttpTable():
            from edge_agg.ingest.http import HttpSource  # noqa: PLC0415

            return HttpSource(table)
        case MqttTable():
            from edge_agg.ingest.mqtt import MqttSource  # noqa: PLC0415

            return MqttSource(table=table)
        case OtlpTable():
            from edge_agg.ingest.otlp import OtlpSource  # noqa: PLC0415

            return OtlpSource(table)
        case StdinTable():
            from edge_agg.ingest.stdin import StdinSource  # noqa: PLC0415

            return StdinSource(table)
        case _:
            assert_never(table)
