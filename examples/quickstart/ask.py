"""Ask the collector of this folder how many visits each shop had."""

from __future__ import annotations

import polars as pl

import cloud_collector

with cloud_collector.connect("127.0.0.1:8815") as c:
    answer = c.estimate("shop_visits", "visits", by=["shop"])
with pl.Config(tbl_hide_column_data_types=True, tbl_hide_dataframe_shape=True, tbl_width_chars=100):
    print(answer.select("shop", "value", "lo", "hi", "nodes_reporting", "nodes_expected", "status"))
