"""Benchmarks: each runs its peers beside Modiste, in alternation, and checks claims of ratios."""
