"""Every backend and precision of a machine against float64: `python -m kernels --check`, and a
short form for programs that take what the machine does best.

`rows` says what runs, `ops` and `oracle` what is right, `errors` how far off may be, and `verdict`
keeps what was found. Nothing else in `kernels` imports it.
"""
