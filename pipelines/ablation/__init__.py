"""Stage: which mask strategy and which loss are better, with seeds and error bars.

comparison.py   paired differences, ranks with ties, verdict: pure functions of the scores
tick.py         a scheduled start: once per period, never two at a time
report.py       ablation.html and ablation.json
run.py          the sweep: cells as stages of a graph, successive halving, tracking
"""
