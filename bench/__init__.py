"""The benchmarks: each is one command that starts, measures, prints and cleans up.

    python -m bench.micro_batch   what a batch costs, beside the usual ways to do without Tidemark
    python -m bench.backfill      what rebuilding dates costs, by how many and how many at once
    python -m bench.latency       how long after its 200 an event can be queried
    python -m bench.capture       what the capture API costs, beside a server of the same protocol
    python -m bench.cold_demo     from `git clone` to a proved demo on an empty account

How to read what they print stands in docs/performance.md.
"""
