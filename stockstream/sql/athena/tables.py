"""The archive as tables of the Glue catalogue, which Athena reads. They are data: for the Glue API, for CloudFormation, and as DDL.

A table has all objects of an area (`ticks_objects`). Partition projection makes Athena find the folders by name, so no crawler and no `MSCK REPAIR` is needed.
The views `stored_*` of `views.py` leave out what a compaction replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from stockstream.locations import bucket_and_prefix
from stockstream.sinks.archive.compactions import MANIFESTS
from stockstream.sinks.archive.schemas import STORED
from stockstream.sql.views import folder_columns, stored_columns

DATABASE = WORKGROUP = "stockstream"
SINCE = date(2020, 1, 1)
"""The first date of the tables unless another is given."""
COMPACTIONS = "compactions"

_TYPES = {"VARCHAR": "string", "INTEGER": "int", "BIGINT": "bigint", "DOUBLE": "double", "BOOLEAN": "boolean", "TIMESTAMP": "timestamp", "DATE": "date"}
"""The catalogue's name of each type of SQL."""
_COMPACTIONS = {"area": "VARCHAR", "hour": "INTEGER", "log": "VARCHAR", "partition": "INTEGER", "first": "BIGINT", "last": "BIGINT", "compaction": "INTEGER"}
_PARQUET = {
    "InputFormat": "org.apache.hadoop.hive.ql.io.parquet.MapredParquetInputFormat",
    "OutputFormat": "org.apache.hadoop.hive.ql.io.parquet.MapredParquetOutputFormat",
    "SerdeInfo": {"SerializationLibrary": "org.apache.hadoop.hive.ql.io.parquet.serde.ParquetHiveSerDe", "Parameters": {"serialization.format": "1"}},
}
_JSON = {
    "InputFormat": "org.apache.hadoop.mapred.TextInputFormat",
    "OutputFormat": "org.apache.hadoop.hive.ql.io.IgnoreKeyTextOutputFormat",
    "SerdeInfo": {"SerializationLibrary": "org.openx.data.jsonserde.JsonSerDe", "Parameters": {"serialization.format": "1"}},
}


@dataclass(frozen=True)
class Catalog:
    """The tables of the archive at `archive` (`s3://bucket/prefix`), with folders of `since` and later. Raises `SettingsError` for another URL."""

    archive: str
    database: str = DATABASE
    since: date = SINCE

    def __post_init__(self) -> None:
        bucket, prefix = bucket_and_prefix(self.archive)
        object.__setattr__(self, "archive", f"s3://{bucket}/{prefix}".rstrip("/"))

    def database_input(self) -> dict[str, Any]:
        """`DatabaseInput` of the Glue API, and of CloudFormation's `AWS::Glue::Database`."""
        return {"Name": self.database, "Description": f"The archive {self.archive} of stockstream"}

    def table_inputs(self) -> list[dict[str, Any]]:
        """`TableInput` of the Glue API, and of CloudFormation's `AWS::Glue::Table`, of each table."""
        tables = [self._table("raw_objects", "raw", stored_columns("raw"), folder_columns("raw"), _JSON, "Records of ticks.raw as received")]
        for area in STORED:
            comment = f"All rows of processed/{area}; those that count are in the view stored_{area}"
            tables.append(self._table(f"{area}_objects", f"processed/{area}", stored_columns(area), folder_columns(area), _PARQUET, comment))
        comment = "Ranges of offsets whose objects a compaction replaced"
        return [*tables, self._table(COMPACTIONS, MANIFESTS.rstrip("/"), _COMPACTIONS, {"date": "DATE"}, _JSON, comment)]

    def _table(
        self, name: str, folder: str, columns: Mapping[str, str], keys: Mapping[str, str], form: Mapping[str, Any], comment: str
    ) -> dict[str, Any]:
        parameters = {
            "EXTERNAL": "TRUE", "classification": "parquet" if form is _PARQUET else "json", "comment": comment,
            "projection.enabled": "true", "projection.date.type": "date", "projection.date.format": "yyyy-MM-dd",
            "projection.date.range": f"{self.since},NOW+1DAYS",          # a feed's clock may be ahead of ours
        }  # fmt: skip
        if "hour" in keys:
            parameters |= {"projection.hour.type": "integer", "projection.hour.range": "0,23", "projection.hour.digits": "2"}
        return {
            "Name": name, "TableType": "EXTERNAL_TABLE", "Parameters": parameters, "PartitionKeys": _columns(keys),
            "StorageDescriptor": {"Columns": _columns(columns), "Location": f"{self.archive}/{folder}/", **form},
        }  # fmt: skip


def _columns(types: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Name": name, "Type": _TYPES[kind]} for name, kind in types.items()]
