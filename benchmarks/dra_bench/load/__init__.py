"""Whole queries under load, in the shapes of MLPerf Inference (Reddi et al. 2020, arXiv 1911.02549).

`load.queries` says what is asked, `load.runtime` and `load.pytorch` who answers. `load.turns` times one stream, batches
and threads in turns; `load.attempt` is one attempt of the server shape, `load.rates` the search for the highest rate.
"""
