"""Scaling laws: ladders of sizes, a resumable sweep, fits with intervals, a report."""
