"""Benchmark suites: strategies x tasks x images."""
