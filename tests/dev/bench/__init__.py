"""What benchmarks print is counted right."""
