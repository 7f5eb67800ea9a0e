"""One object with everything that torch_file reads, written by torch: `python kinds.py` writes
tests/fixtures/torch/kinds.pt, so that the tests read a file of torch's where torch is not installed."""

import argparse
from pathlib import Path

FILE = Path(__file__).parents[1] / "fixtures" / "torch" / "kinds.pt"
DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
)


def make(torch) -> dict:
    """The object. Numbers are 0 to 5, but for bool: 0 and 1, and e8m0: powers of 2."""
    base = torch.arange(6, dtype=torch.float32)
    with_fields = torch.nn.Parameter(base[:2].clone())
    with_fields.partition_dim = 1
    dtypes = {name: base.reshape(2, 3).to(getattr(torch, name)) for name in DTYPES}
    return {
        "dtypes": dtypes,
        "transposed": base.reshape(2, 3).T,
        "every second": base[1::2],
        "scalar": base[3],
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(base[:2].clone()),
        "with fields": with_fields,
        "state": torch.nn.Linear(1, 1, bias=False).to(torch.bfloat16).state_dict(),
        "args": argparse.Namespace(params_dtype=torch.bfloat16, lr=0.5, data_path=["a", None]),
        "size": torch.Size([2, 3]),
        "plain": [1, -(2**40), 0.5, "naïve", (True, ()), {3: None}],
        "device": torch.device("cuda", 0),
    }


if __name__ == "__main__":
    import torch

    torch.save(make(torch), FILE)
