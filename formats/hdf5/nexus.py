"""HDF5 as NeXus viewers read it: datasets that say what they are, and groups that open as plots.

A plot is a group of NX_class NXdata whose attributes name a signal, its axes and further curves; `default`
attributes lead from the root to the one to show first. Measured on h5web 16 (h5wasm) and silx 3.1:
float16, array fields in a compound and a `signal` that is an array of one string show nothing, an axis
must be a plain number dataset in the same group and of the signal's length, silx takes an axis of two
values for offset and scale, h5web draws no image with a side above 8192 (one WebGL texture) and no curve
of one point, and only gzip and shuffle are read everywhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import h5py
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CHUNK_NBYTES",
    "Field",
    "describe",
    "empty",
    "escaped",
    "group",
    "index_axis",
    "note",
    "plot",
    "put",
    "storable",
    "text",
]

CHUNK_NBYTES = 1 << 20
_IMAGE_SIDE = 8192
_GZIP_LEVEL = 4
_TEXT = h5py.h5t.py_create(h5py.string_dtype(), logical=True)
_PYTHON_TEXT = h5py.h5t.py_create(h5py.string_dtype())  # as it lies in memory
_SCALAR = h5py.h5s.create(h5py.h5s.SCALAR)


@dataclass(frozen=True)
class Field:
    """A dataset to be made, or one that exists and is to be linked.

    Attributes
    ----------
    name : str
    values : ndarray or h5py.Dataset
        A dataset is hard-linked under `name`: links are followed by every viewer, copies take space.
    description : str
        One line.
    units : str
        "1" for numbers without a unit.
    long_name : str or None
        Label of an axis; `name` if there is none.
    """

    name: str
    values: NDArray[Any] | h5py.Dataset
    description: str = ""
    units: str = "1"
    long_name: str | None = None


def index_axis(name: str, length: int, description: str, long_name: str | None = None) -> Field:
    """Return the axis 0, 1, 2 and so on."""
    return Field(name, np.arange(length, dtype=np.int32), description, "1", long_name)


def escaped(name: str) -> str:
    """Return a tensor's name as one component of a path: "/", "%", control characters and dots alone become %XX."""
    if name in ("", ".", ".."):
        return name.replace(".", "%2E") or "%"
    return "".join(f"%{ord(c):02X}" if c in "/%" or ord(c) < 32 or ord(c) == 127 else c for c in name)


def storable(value: str) -> str:
    """Return text that HDF5 can hold: NUL, where its strings end, becomes U+2400."""
    return value.replace("\0", "\u2400")


def group(parent: h5py.Group, name: str, nx_class: str, description: str, **attributes: Any) -> h5py.Group:
    """Return a new group of a NeXus class; attributes that are None are left out."""
    made = parent.create_group(name)
    describe(made, NX_class=nx_class, description=description, **attributes)
    return made


def describe(obj: h5py.Group | h5py.Dataset, **attributes: Any) -> None:
    """Set attributes; those that are None are left out, and text is made storable."""
    for key, value in attributes.items():
        if isinstance(value, str):
            _set_text(obj, key, storable(value))
        elif value is not None:
            obj.attrs[key] = value


def _set_text(obj: h5py.Group | h5py.Dataset, key: str, value: str) -> None:
    """Set a new attribute: h5py's own way takes three times as long, and a tensor has 60."""
    made = h5py.h5a.create(obj.id, key.encode(), _TEXT, _SCALAR)
    made.write(np.array(value, object), mtype=_PYTHON_TEXT)


def _described(dataset: h5py.Dataset, field: Field) -> h5py.Dataset:
    _set_text(dataset, "units", field.units)
    _set_text(dataset, "long_name", field.long_name or field.name)
    _set_text(dataset, "description", field.description)
    return dataset


def empty(parent: h5py.Group, field: Field, n_rows: int) -> h5py.Dataset:
    """Return a new dataset of `n_rows` rows like those of `field.values`, to be filled row by row."""
    row_shape, dtype = field.values.shape[1:], field.values.dtype
    shape = (n_rows, *row_shape)
    filters: dict[str, Any] = {}
    if math.prod(shape):
        row_nbytes = dtype.itemsize * math.prod(row_shape)
        chunk_rows = max(1, min(n_rows, CHUNK_NBYTES // max(1, row_nbytes)))
        widths = row_shape
        if row_nbytes > CHUNK_NBYTES:  # only an axis of columns can be this long
            widths = (*row_shape[:-1], CHUNK_NBYTES // dtype.itemsize)
        filters = {
            "chunks": (chunk_rows, *widths),
            "compression": "gzip",
            "compression_opts": _GZIP_LEVEL,
            "shuffle": True,
        }
    return _described(parent.create_dataset(field.name, shape, dtype, **filters), field)


def put(parent: h5py.Group, field: Field) -> h5py.Dataset:
    """Return a new dataset that holds `field.values`, or the existing one under a new name."""
    if isinstance(field.values, h5py.Dataset):
        parent[field.name] = field.values
        return cast(h5py.Dataset, parent[field.name])
    values = np.asarray(field.values)
    if values.ndim == 0:
        return _described(parent.create_dataset(field.name, data=values), field)
    dataset = empty(parent, Field(**(vars(field) | {"values": values})), len(values))
    if values.size:
        dataset[...] = values
    return dataset


def text(parent: h5py.Group, name: str, value: str | Sequence[str], description: str) -> h5py.Dataset:
    """Return a new dataset of text: UTF-8 of any length, for what an attribute of 64 kB may not hold."""
    values = storable(value) if isinstance(value, str) else np.array([storable(line) for line in value], object)
    made = parent.create_dataset(name, data=values, dtype=h5py.string_dtype())
    _set_text(made, "description", description)
    return made


def note(parent: h5py.Group, name: str, facts: Mapping[str, Any], description: str) -> None:
    """Put JSON where h5web pretty-prints it."""
    made = group(parent, name, "NXnote", description)
    text(made, "type", "application/json", "MIME type of data")
    text(made, "data", json.dumps(facts, indent=2, sort_keys=True, allow_nan=False), description)


def plot(
    parent: h5py.Group,
    name: str,
    title: str,
    signal: Field,
    axes: Sequence[Field | None],
    auxiliary: Sequence[Field] = (),
    *,
    description: str | None = None,
    interpretation: str | None = None,
    log: bool = False,
) -> h5py.Group:
    """Return a new group that viewers draw.

    Parameters
    ----------
    parent, name : group and name
    title : str
        Above the plot.
    signal : Field
        One axis draws a curve, two a heatmap.
    axes : sequence of Field or None
        One for every axis of the signal.
    auxiliary : sequence of Field
        More curves, of the signal's shape.
    description : str, optional
        The signal's by default.
    interpretation : {"spectrum", "image"}, optional
        How a signal of two axes is shown; an image too large to be drawn becomes curves.
    log : bool
        Draw the values on a logarithmic scale.
    """
    what = signal.values.attrs["description"] if isinstance(signal.values, h5py.Dataset) else signal.description
    made = group(parent, name, "NXdata", description or what)
    _set_text(made, "signal", signal.name)
    names = []
    for axis in axes:
        if axis is not None:
            put(made, axis)
        names.append("." if axis is None or len(axis.values) == 2 else axis.name)
    made.attrs["axes"] = names
    shown = [put(made, field) for field in (signal, *auxiliary)]
    if auxiliary:
        made.attrs["auxiliary_signals"] = [field.name for field in auxiliary]
    if interpretation == "image" and max(signal.values.shape) > _IMAGE_SIDE:
        interpretation = "spectrum"
    if interpretation is not None:
        for dataset in shown:
            describe(dataset, interpretation=interpretation)
    if log:
        made.attrs["SILX_style"] = json.dumps({"signal_scale_type": "log"})
    text(made, "title", title, "what the plot shows")
    return made
