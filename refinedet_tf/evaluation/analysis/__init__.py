"""Why a detector errs: kinds of errors and what they cost, curves and thresholds, suspicious labels, a report."""
