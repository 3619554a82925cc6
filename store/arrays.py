"""The types of arrays that columns are worked with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["I64", "U64"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
