"""Side-by-side benchmarks: ours and the peers, interleaved in one session, each in a fresh process.

python -m bench quantize|lowbit|load [--quick] [--json]
"""
