"""The features of archived rows, and what a model answers to them: the functions that `score` calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models import ScoringModel, features
from stockstream.errors import ModelError
from stockstream.research.frames import INDEX
from stockstream.research.windows import times
from stockstream.transforms.frames import numbers
from stockstream.transforms.scoring.asking import UNITS_OF_P_UP, UNITS_OF_RETURN, ask, require_usable

if TYPE_CHECKING:
    from stockstream.settings import Settings


def model_of(model: ScoringModel | str, settings: Settings) -> ScoringModel:
    """The model itself, or the champion of this name in the registry of the settings. Raises `ModelError` if it cannot be loaded or used."""
    if isinstance(model, str):
        from stockstream.champions import Champions
        from stockstream.registries import open_registry

        known = Champions(settings.models, model, lambda url: open_registry(url, settings))
        known.refresh()
        if known.champion is None:
            raise ModelError(known.problem)
        model = known.champion.model
    require_usable(model)
    return model


def table(rows: pa.Table, model: ScoringModel | None) -> pa.Table:
    """Features of the rows (columns of WINDOWS_SCHEMA) that have a price, with the index, symbol, source, price, and the model's answers.

    Raises `ModelError` if the model gives no usable answer.
    """
    rows = rows.filter(pc.fill_null(pc.greater(rows.column("price"), 0), fill_value=False)).combine_chunks()
    batches = rows.to_batches()
    matrix = np.concatenate([np.empty((0, len(features.FEATURES)), np.float32), *(of_batch(batch) for batch in batches)])
    columns = {INDEX: times(rows), **{name: rows.column(name) for name in ("symbol", "source", "price")}}
    columns |= {name: pa.array(np.ascontiguousarray(matrix[:, place])) for place, name in enumerate(features.FEATURES)}
    if model is not None:
        columns |= _answers(model, matrix)
    return pa.table(columns)


def of_batch(batch: pa.RecordBatch) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return features.matrix({name: numbers(batch, name) for name in features.COLUMNS})


def _answers(model: ScoringModel, matrix: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> dict[str, pa.Array]:
    horizons = tuple(model.horizons_s)
    returns = np.empty((0, len(horizons))) if not len(matrix) else None
    p_up = returns
    if len(matrix):
        answer = ask(model, matrix)
        if answer.fault is not None or answer.returns is None or answer.p_up is None:
            raise ModelError(f"model {model.name} {model.version}: {answer.fault.detail if answer.fault else 'it gave no answer'}")
        returns, p_up = answer.returns / UNITS_OF_RETURN, answer.p_up / UNITS_OF_P_UP
    assert returns is not None and p_up is not None
    found = {}
    for place, horizon in enumerate(horizons):
        found[f"predicted_return_{horizon}s"] = pa.array(np.ascontiguousarray(returns[:, place]))
        found[f"p_up_{horizon}s"] = pa.array(np.ascontiguousarray(p_up[:, place]))
    return found
