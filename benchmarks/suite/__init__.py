"""The benchmarks: operations that are registered once, and one way to measure, report and write them."""
