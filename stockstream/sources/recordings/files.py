"""Rows of a CSV or Parquet file, compressed or not, with any delimiter, with or without a header; what it is shows by its content, not by its name."""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from stockstream.errors import SourceError
from stockstream.wording import one_line

CHUNK_ROWS = 16_384
CSV_BLOCK_BYTES = 4 * 1024 * 1024
HEAD_BYTES = 128 * 1024
HEAD_ROWS = 500
HEADER_ROWS = 3
"""Rows before the data that a header has at most: yfinance writes three for several symbols."""
DELIMITERS = ",;\t|"

_PARQUET = b"PAR1"
_CODECS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
_ZIP = b"PK\x03\x04"
_MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
"""What a text begins with, byte order marks, and its encoding."""
_ENDINGS = re.compile(r"(\.(csv|tsv|txt|parquet|pq|gz|gzip|zst|zstd|bz2|zip))+$", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?[\d.,]*\d[\d.,]*([eE][-+]?\d+)?")
_MARKUP = re.compile(r"\s*<(!doctype|!--|html|head|body|\?xml)", re.IGNORECASE)


class DataFile:
    """A file's columns, its first rows, and all of them.

    `columns` are the names in the file, without blanks around them, `1`, `2` ... if it has no header. `header` holds the cells of its header, row by row.
    `head` has the first rows as texts, column by column. Raises `SourceError`, here and while reading, if the file is missing, empty or unreadable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.header: list[list[str]] = []
        self.types: list[pa.DataType] = []
        self.delimiter = ""
        self._encoding, self._mark = "utf-8", 0
        if path.is_dir():
            raise SourceError(f"{path}: this is a folder, not a file")
        if not path.is_file():
            raise SourceError(f"{path}: no such file")
        self.size = path.stat().st_size
        with self.guarded():
            with path.open("rb") as file:
                self.is_parquet = file.read(4) == _PARQUET
            if self.is_parquet:
                self._read_schema()
            else:
                self._read_head()

    @property
    def stem(self) -> str:
        """The file's name without its endings (`.csv.gz`)."""
        return _ENDINGS.sub("", self.path.name)

    @property
    def headless(self) -> bool:
        return not self.is_parquet and not self.header

    def set_header_rows(self, rows: int) -> None:
        """Takes so many of the first rows for the header, instead of one."""
        self.header = self._first[:rows]
        self._fill(self._first[rows:])

    def batches(self, columns: Sequence[int], torn: Callable[[int, str], None], advance: Callable[[int], None] | None = None) -> Generator[pa.RecordBatch]:
        """All rows, some thousands at a time, of these columns, whose names are their numbers. CSV is read as texts.

        `torn` gets number and text of each row that has not as many columns as the header; `advance` the bytes of the file that were read since the last call.
        """
        with self.guarded():
            if self.is_parquet:
                yield from self._of_parquet(columns, advance)
            elif self._has_rows:                                 # pyarrow has no table without rows
                yield from self._of_csv(columns, torn, advance)

    def _of_parquet(self, columns: Sequence[int], advance: Callable[[int], None] | None) -> Iterator[pa.RecordBatch]:
        names = [self._names[number] for number in columns]
        done = 0
        with pyarrow.parquet.ParquetFile(self.path) as file:
            rows = max(1, file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=CHUNK_ROWS, columns=names):
                yield pa.RecordBatch.from_arrays([batch.column(name) for name in names], [str(number) for number in columns])
                done += batch.num_rows
                if advance is not None:
                    advance(self.size * done // rows - self.size * (done - batch.num_rows) // rows)

    def _of_csv(self, columns: Sequence[int], torn: Callable[[int, str], None], advance: Callable[[int], None] | None) -> Iterator[pa.RecordBatch]:
        def skip(row: Any) -> str:
            torn(int(row.number or 0) - len(self.header), row.text)
            return "skip"

        wanted = [str(number) for number in columns]
        parse = pyarrow.csv.ParseOptions(invalid_row_handler=skip, delimiter=self.delimiter)
        types = {name: pa.string() for name in wanted}
        convert = pyarrow.csv.ConvertOptions(column_types=types, include_columns=wanted, null_values=[""], strings_can_be_null=True)
        read = pyarrow.csv.ReadOptions(
            use_threads=False, block_size=CSV_BLOCK_BYTES, skip_rows=len(self.header), column_names=[str(number) for number in range(len(self.columns))],
            encoding=self._encoding,
        )  # fmt: skip
        with self.path.open("rb") as file, _decompressed(self.path, file) as stream:
            stream.read(self._mark)
            done = 0
            with pyarrow.csv.open_csv(stream, read_options=read, parse_options=parse, convert_options=convert) as reader:
                for batch in reader:
                    for start in range(0, batch.num_rows, CHUNK_ROWS):
                        yield batch.slice(start, CHUNK_ROWS)
                    if advance is not None:
                        at = file.tell()
                        advance(at - done)
                        done = at

    def _read_schema(self) -> None:
        schema = pyarrow.parquet.read_schema(self.path)
        self._names = list(schema.names)
        self.columns = [name.strip() for name in self._names]
        self.types = list(schema.types)
        if twice := [name for name in self._names if self._names.count(name) > 1]:
            raise SourceError(f"{self.path}: more than one column is called {twice[0]}: rename or remove the others")
        self.header = [self.columns]
        self.head: list[list[str]] = [[] for _ in self.columns]
        flat = [number for number, of in enumerate(self.types) if not pa.types.is_nested(of)]
        for batch in self._of_parquet(flat, None):
            for number in flat:
                self.head[number] = ["" if value is None else str(value) for value in batch.column(str(number)).slice(0, HEAD_ROWS).to_pylist()]
            return

    def _read_head(self) -> None:
        with self.path.open("rb") as file, _decompressed(self.path, file) as stream:
            start = stream.read(HEAD_BYTES)
        if start.startswith(_PARQUET):
            raise SourceError(f"{self.path}: this is compressed Parquet: decompress it first")
        for mark, encoding in _MARKS.items():
            if start.startswith(mark):
                self._encoding, self._mark = encoding, len(mark)
        text = start[self._mark :].decode(self._encoding, errors="replace")
        if not text.strip():
            raise SourceError(f"{self.path}: the file is empty")
        if text.lstrip()[0] in "{[" or _MARKUP.match(text) or "\0" in text:
            what = "neither text nor Parquet" if "\0" in text else "HTML or XML" if _MARKUP.match(text) else "JSON"
            raise SourceError(f"{self.path}: this is {what}, not CSV or Parquet")
        lines = text.splitlines(keepends=True)
        lines = lines if len(start) < HEAD_BYTES else lines[:-1] or lines            # the last one may be torn
        lines = [line for line in lines if line.strip()]
        self.delimiter = max(DELIMITERS, key=lambda sign: len(next(csv.reader([lines[0]], delimiter=sign), [])))
        self._first = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO("".join(lines[: HEAD_ROWS + HEADER_ROWS])), delimiter=self.delimiter)]
        self.set_header_rows(0 if any(_NUMBER.fullmatch(cell) for cell in self._first[0]) else 1)

    def _fill(self, rows: Sequence[Sequence[str]]) -> None:
        width = len(self._first[0])
        self.columns = list(self.header[0]) if self.header else [str(number + 1) for number in range(width)]
        self.types = [pa.string()] * width
        self._has_rows = bool(rows)
        self.head = [[row[number] for row in rows if len(row) == width] for number in range(width)]

    def guarded(self) -> _Guard:
        """A context in which errors of reading become `SourceError`, one line."""
        return _Guard(self)


class _Guard:
    def __init__(self, file: DataFile) -> None:
        self._file = file

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (pa.ArrowException, OSError, UnicodeError, EOFError, csv.Error, zipfile.BadZipFile)):
            what = "Parquet" if getattr(self._file, "is_parquet", False) else "CSV"
            raise SourceError(f"{self._file.path}: cannot be read as {what}: {one_line(error)}") from error


def _decompressed(path: Path, file: io.BufferedReader) -> Any:
    """The file's bytes, decompressed: a stream and context for pyarrow."""
    start = file.read(4)
    file.seek(0)
    for magic, codec in _CODECS.items():
        if start.startswith(magic):
            return pa.input_stream(file, compression=codec)
    if start.startswith(_ZIP):
        archive = zipfile.ZipFile(file)
        names = [name for name in archive.namelist() if not name.endswith("/")]
        if "[Content_Types].xml" in names:
            raise SourceError(f"{path}: this is an Excel file: save it as CSV")
        if len(names) != 1:
            raise SourceError(f"{path}: this is a zip of {len(names)} files: unpack it, and replay them one by one")
        return pa.input_stream(archive.open(names[0]), compression=None)
    return pa.input_stream(file, compression=None)
