"""Writes predictions in batches, one row per image, as CSV, Parquet or JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.values import Array
from pipeline.system.tables import csv_cell
from pipeline.system.terminal import as_text

_TOP = 3
DIGITS = 6  # of a probability written as text
ROW_GROUP = 2**16  # rows of Parquet


@dataclass(frozen=True, kw_only=True)
class PredictedBlock:
    """A model's predictions on a block of images; `probabilities` f32[N,K].

    `indices`: positions in a file of several images, None in a file of one. `inverted`: bool[N],
    whether the image was inverted for the model.
    """

    files: tuple[Path, ...]
    indices: tuple[int | None, ...]
    probabilities: Array
    inverted: Array
    class_names: tuple[str, ...]

    @cached_property
    def top(self) -> Array:
        """The most probable classes, best first, ties in class order, i64[N,min(3,K)]."""
        return np.argsort(-self.probabilities, axis=1, kind="stable")[:, :_TOP]

    def columns(self) -> dict[str, list[Any]]:
        """The rows as columns by name, probabilities rounded."""
        names = np.array(self.class_names, object)
        values = np.take_along_axis(self.probabilities, self.top, axis=1)
        rounded = np.round(values.astype(float), DIGITS)
        columns: dict[str, list[Any]] = {
            "file": [*map(as_text, self.files)],
            "index": list(self.indices),
        }
        for rank in range(self.top.shape[1]):
            end = f"_{rank + 1}" if rank else ""
            columns[f"class{end}"] = names[self.top[:, rank]].tolist()
            columns[f"probability{end}"] = rounded[:, rank].tolist()
        return columns | {"inverted": self.inverted.tolist()}


Write = Callable[[PredictedBlock], None]


@contextmanager
def csv_writer(path: Path) -> Iterator[Write]:
    """Writes CSV with a header; None becomes empty, and no cell is a formula."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)

        def write(predicted: PredictedBlock) -> None:
            columns = predicted.columns()
            columns["inverted"] = ["true" if value else "false" for value in columns["inverted"]]
            if not file.tell():
                writer.writerow(columns)
            writer.writerows(map(csv_cell, row) for row in zip(*columns.values(), strict=True))

        yield write


@contextmanager
def json_writer(path: Path) -> Iterator[Write]:
    """Writes one JSON object per line (jsonlines.org), with a list of the best classes."""
    with path.open("w", encoding="utf-8") as file:

        def write(predicted: PredictedBlock) -> None:
            columns = predicted.columns()
            for row in zip(*columns.values(), strict=True):
                name, index, *best, inverted = row
                top = [
                    {"class": label, "probability": probability}
                    for label, probability in zip(best[::2], best[1::2], strict=True)
                ]
                line = {"file": name, "index": index, **top[0], "top": top, "inverted": inverted}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

        yield write


@contextmanager
def parquet_writer(path: Path) -> Iterator[Write]:
    """Writes typed columns in row groups, so that memory does not grow with the number of rows."""
    from pyarrow import concat_tables, parquet  # type: ignore[import-untyped]

    with ExitStack() as stack:
        waiting: list[Any] = []
        writers: list[Any] = []

        def flush() -> None:
            table = concat_tables(waiting)
            if not writers:
                writers.append(stack.enter_context(parquet.ParquetWriter(path, table.schema)))
            writers[0].write_table(table)
            waiting.clear()

        def write(predicted: PredictedBlock) -> None:
            waiting.append(_table(predicted))
            if sum(table.num_rows for table in waiting) >= ROW_GROUP:
                flush()

        yield write
        if waiting:
            flush()


WRITERS = {
    ".csv": csv_writer,
    ".parquet": parquet_writer,
    ".json": json_writer,
    ".jsonl": json_writer,
}


def _table(predicted: PredictedBlock) -> Any:
    import pyarrow as pa

    columns = predicted.columns()
    types = dict.fromkeys(columns, pa.string()) | {"index": pa.int64(), "inverted": pa.bool_()}
    types |= {name: pa.float32() for name in columns if name.startswith("probability")}
    return pa.table(columns, schema=pa.schema(types.items()))
