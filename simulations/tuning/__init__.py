"""`fedmtl tune`: search for settings with Optuna, judged on validation rows."""
