"""A whole federation on one machine: engines, baselines, compare, report, the fedmtl command."""
