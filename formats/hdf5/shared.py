"""What the tensors of a group share, as plots."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hhtld.codecs.tensor_view import TensorView
from hhtld.formats.hdf5.nexus import Field, describe, escaped, group, index_axis, plot, put, text
from hhtld.pack.pack import HhtldPack
from hhtld.slots.fisher_z import FisherZTable
from hhtld.slots.palette import HhtlCache, RouteAction, build_hip_families
from hhtld.slots.slot_d_v import residual
from hhtld.slots.slot_l import SvdBasis
from hhtld.sources.rows import row_ranges

__all__ = ["column_axis", "entry_axis", "group_name", "write_group"]


def group_name(pack: HhtldPack, number: int) -> str:
    """Return the name of a group in the export: its number, component, role and shape."""
    key = pack.table.groups[number].key
    return escaped(f"{number}_{key.component}_{key.role}_{key.shape[0]}x{key.shape[1]}")


def entry_axis(k: int, name: str = "entry", what: str = "palette entry") -> Field:
    """Return the axis of palette entries."""
    return index_axis(name, k, f"number of the {what}", what)


def column_axis(n_cols: int) -> Field:
    """Return the axis of a row's columns."""
    return index_axis("column", n_cols, "column of the matrix")


def write_group(parent: h5py.Group, pack: HhtldPack, number: int, names: list[str]) -> None:
    """Write what a group of the tensors `names` shares: palette and its tables, basis, centroids, codebook."""
    key = pack.table.groups[number].key
    made = group(parent, group_name(pack, number), "NXcollection", f"what the tensors of {key} share")
    describe(made, component=key.component, role=key.role, n_rows=key.shape[0], n_cols=key.shape[1])
    text(made, "tensor_names", names, "the tensors of this group")
    tensor = pack.get_encoded(names[0], [])  # no row of it, all that is shared
    view = tensor.view()
    if view.cache is not None:
        _write_palette(made, pack, names, view.cache, view.fisher_z)
    if view.seed is not None:
        made.attrs["seed"] = np.uint64(view.seed)
    if view.trellises:
        _write_codes(made, view)
    if view.basis is not None:
        _write_basis(made, view.basis)


def _heatmap(parent: h5py.Group, name: str, title: str, values: NDArray[Any], what: str) -> None:
    k = len(values)
    axes = [entry_axis(k, "entry_a", "palette entry a"), entry_axis(k, "entry_b", "palette entry b")]
    plot(parent, name, title, Field(name, values, what), axes, interpretation="image")


def _write_palette(
    made: h5py.Group, pack: HhtldPack, names: list[str], cache: HhtlCache, fisher_z: FisherZTable | None
) -> None:
    made.attrs["default"] = "distance"
    palette, k = cache.palette, cache.k
    dims = Field("dims", palette.entries.dims, "Base17 dimensions of every entry: 256 times a mean of weights")
    dim = index_axis("dim", dims.values.shape[1], "Base17 dimension, along the golden step")
    plot(made, "palette", "Palette: Base17 dimensions by entry", dims, [entry_axis(k), dim], interpretation="image")
    what = "L1 distance of two entries over 17, rounded down"
    _heatmap(made, "distance", "Distance between entries", cache.distances, what)
    actions = h5py.enum_dtype({action.name: action.value for action in RouteAction}, np.uint8)
    routes = cache.routes.astype(actions)
    _heatmap(made, "route", "What a search does with two entries", routes, "SKIP 0, ATTEND 1, COMPOSE 2, ESCALATE 3")
    _heatmap(
        made, "compose", "Entry nearest to the binding of two", cache.composition, "entry nearest to a exclusive-or b"
    )
    if fisher_z is not None:
        made.attrs["default"] = "fisher_z"
        cosines = fisher_z.cosines(fisher_z.codes)
        what = "cosine of two entries' representatives, decoded from the Fisher z table"
        _heatmap(made, "fisher_z", "Cosine between entries", cosines, what)
        what = "the table as stored: tanh((code + 127) / 254 * z_range + z_min) is the cosine"
        put(made["fisher_z"], Field("codes", fisher_z.codes, what, "1", "Fisher z code"))
        made.attrs["z_min"], made.attrs["z_range"] = fisher_z.z_min, fisher_z.z_range
    families = Field("family", build_hip_families(palette), "HIP family 0..15 of the entry")
    plot(made, "hip_family", "HIP family of every entry", families, [entry_axis(k)])
    counts, radii = _usage(pack, names, cache)
    rows = Field("count", counts, "rows of all the group's tensors on the entry", "row")
    plot(made, "counts", "Rows on every entry", rows, [entry_axis(k)])
    what = "largest L1 distance of a row on the entry, as Slot V tells it: rounded down to 8 bits"
    plot(made, "radii", "Radius of every entry", Field("radius", radii, what), [entry_axis(k)])


def _usage(pack: HhtldPack, names: list[str], cache: HhtlCache) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    counts, furthest = np.zeros(cache.k, np.int64), np.zeros(cache.k, np.float32)
    for name in names:
        for start, stop in row_ranges(pack.table.tensors[name].info.n_rows, 16):
            tensor = pack.get_encoded(name, slice(start, stop)).view()
            assert tensor.twigs is not None
            assert tensor.magnitudes is not None
            counts += np.bincount(tensor.twigs, minlength=cache.k)
            np.maximum.at(furthest, tensor.twigs, residual(np.ascontiguousarray(tensor.magnitudes)))
    size = np.abs(cache.palette.entries.dims.astype(np.int64)).sum(axis=1)
    return counts.astype(np.uint32), furthest * np.maximum(size, 1).astype(np.float32)


def _write_basis(made: h5py.Group, basis: SvdBasis) -> None:
    lane = index_axis("lane", basis.n_components, "lane of Slot L")
    vectors = Field("vectors", basis.vectors, "right singular vectors, one a lane, decoded from bfloat16")
    title = "Basis of Slot L: one singular vector a lane"
    plot(made, "basis", title, vectors, [lane, column_axis(basis.n_cols)], interpretation="image")
    values = Field("singular_value", basis.singular_values, "singular values of the sample the basis was built from")
    plot(made, "singular_values", "Singular values of the basis", values, [lane], log=True)
    made.attrs.setdefault("default", "basis")


def _write_codes(made: h5py.Group, view: TensorView) -> None:
    made.attrs["default"] = f"codebook{next(iter(view.trellises))}"
    for suffix, code in view.trellises.items():
        made.attrs[f"rate{suffix}_bits"] = code.rate / 16
        made.attrs[f"n_states{suffix}"] = len(code.levels)
        if code.is_ring:
            made.attrs["ring"] = True
        state = index_axis("state", len(code.levels), "state of the trellis, a window of the code")
        levels = Field("level", code.levels, "what a weight of that state is, times the row's gain")
        plot(made, f"codebook{suffix}", f"Codebook of Slot T at {code.rate / 16:g} bits", levels, [state])
    if view.centroids is not None:
        centroids = Field("centroids", view.centroids, "centroids, decoded from bfloat16")
        axes = [entry_axis(len(view.centroids), "twig", "centroid"), column_axis(view.centroids.shape[1])]
        plot(made, "centroids", "Centroids: what a row's twig stands for", centroids, axes, interpretation="image")
