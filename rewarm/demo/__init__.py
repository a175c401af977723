"""The demo: a small model learns old data, re-warms onto new data, forgets and recovers, on real text and a CPU."""
