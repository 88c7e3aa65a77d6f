"""Benchmarks: which images there are and which answers are right."""

from locore.datasets.benchmark import Benchmark, ImageSet, Relevance, Subset, benchmarks

__all__ = ["Benchmark", "ImageSet", "Relevance", "Subset", "benchmarks"]
