"""Events become log lines, metrics and pages."""
