"""Benchmarks: which images there are and which answers are right."""

from locore.datasets.benchmark import Benchmark, ImageSet, Relevance, benchmarks

__all__ = ["Benchmark", "ImageSet", "Relevance", "benchmarks"]
