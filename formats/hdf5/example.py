"""Three plots from an export, cell by cell: python -m hhtld.formats.hdf5.example EXPORT.h5 PICTURE.png."""

# %% Open an export. `hhtld convert model.hhtld model.h5 --original model.safetensors` wrote it.
import sys
from pathlib import Path

import h5py
import numpy as np
from matplotlib.figure import Figure

export, picture = Path(sys.argv[1]), Path(sys.argv[2])
file = h5py.File(export)
entry = file[file.attrs["default"]]
figure = Figure((16, 4), layout="constrained")
quality, histogram, row = figure.subplots(1, 3)

# %% 1. How well every tensor came back: the plot that viewers open with.
overview = entry[entry.attrs["default"]]
for name in (overview.attrs["signal"], *overview.attrs["auxiliary_signals"]):
    quality.plot(overview["tensor"][:], overview[name][:], ".-", label=name)
quality.set_title(overview["title"].asstr()[()], fontsize=9)
quality.set(xlabel="tensor", ylabel="cosine")
quality.legend()

# %% 2. The rows of the largest tensor: how their cosines are spread.
summary = entry["summary"][:]
encoded = summary[summary["codec"] != 0]
largest = encoded[np.argmax(encoded["n_rows"] * encoded["n_cols"])]["name"].decode()
tensor = next(group for group in entry["tensors"].values() if group.attrs["tensor_name"] == largest)
bins = tensor["cosine_histogram"]
histogram.stairs(bins["count"][:], bins["edges"][:], fill=True)
histogram.set_title(f"Row cosines of {largest}", fontsize=9)
histogram.set(xlabel="cosine", ylabel="rows")

# %% 3. One row of it: as it was, as it comes back, and the difference.
sample = tensor["sample"]
for name in (sample.attrs["signal"], *sample.attrs["auxiliary_signals"]):
    row.plot(sample["column"][:], sample[name][0], label=name, linewidth=0.8)
row.set_title(f"Row {sample['row'][0]} of {largest}", fontsize=9)
row.set(xlabel="column", ylabel="weight")
row.legend()

# %% Keep the picture.
figure.savefig(picture, dpi=100)
file.close()
print(f"{picture} is written")
