"""Ten lines as a user writes them; type checkers must know every name (`.ci/run` asks mypy and pyright)."""

import numpy as np

import hhtld

report = hhtld.convert("model.safetensors", "model.hhtld", profile="bits:4", jobs=2)
with hhtld.open("model.hhtld") as pack:
    rows = pack.get_rows("lm_head.weight", [3, 70, 3])
    best = pack.scorer("lm_head.weight").topk(np.ones(rows.shape[1], np.float32), 5)
ratio: float = report.ratio
print(f"{ratio:.2f}", sorted(pack.keys())[0], rows.sum(), best)
