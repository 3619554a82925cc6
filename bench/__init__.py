"""The benchmarks: oncelake beside its peers, alternating in one run. `python -m bench --help`."""
