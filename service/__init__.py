"""Configuration, wiring and the command line: the only place where objects are put together."""

import os

os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # read when Arrow is loaded; why: `store.memory`
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # no matrices are multiplied here, and its threads spin at first
