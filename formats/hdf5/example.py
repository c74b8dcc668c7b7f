"""Three plots from an export, cell by cell: python -m hhtld.formats.hdf5.example EXPORT.h5 PICTURE.png."""

# %% Open an export. `hhtld convert model.hhtld model.h5 --original model.safetensors` wrote it.
import sys
from pathlib import Path

import h5py
from matplotlib.figure import Figure

export, picture = Path(sys.argv[1]), Path(sys.argv[2])
file = h5py.File(export)
entry = file[file.attrs["default"]]
figure = Figure((16, 4), layout="constrained")
quality, histogram, row = figure.subplots(1, 3)

encoded = [group for group in entry["tensors"].values() if "entries" in group]
if not encoded:
    sys.exit(f"{export} shows no encoded tensor")

# %% 1. How well every tensor came back: the plot that viewers open with.
overview = entry["overview"]
for name in (overview.attrs["signal"], *overview.attrs["auxiliary_signals"]):
    quality.plot(overview["tensor"][:], overview[name][:], ".-", label=name)
quality.set_title(overview["title"].asstr()[()], fontsize=9)
quality.set(xlabel="tensor", ylabel="cosine")
quality.legend()

# %% 2. The rows of the largest tensor: how their cosines are spread. Without --original only quantiles are known.
largest = max(encoded, key=lambda group: group.attrs["n_rows"] * group.attrs["n_cols"])
name = largest.attrs["tensor_name"]
if "cosine_histogram" in largest:
    bins = largest["cosine_histogram"]
    histogram.stairs(bins["count"][:], bins["edges"][:], fill=True)
    histogram.set(xlabel="cosine", ylabel="rows")
else:
    quantiles = largest["cosine_quantiles"]
    histogram.plot(quantiles["fraction"][:], quantiles["cosine"][:], ".-")
    histogram.set(xlabel="share of the rows", ylabel="cosine")
histogram.set_title(f"Row cosines of {name}", fontsize=9)

# %% 3. One row of it as it comes back, and with --original as it was, and the difference.
if "sample" in largest:  # a small --max-size leaves it out
    sample = largest["sample"]
    for signal in (sample.attrs["signal"], *sample.attrs.get("auxiliary_signals", ())):
        row.plot(sample["column"][:], sample[signal][0], label=signal, linewidth=0.8)
    row.set_title(f"Row {sample['row'][0]} of {name}", fontsize=9)
    row.set(xlabel="column", ylabel="weight")
    row.legend()

# %% Keep the picture.
figure.savefig(picture, dpi=100)
file.close()
print(f"{picture} is written")
