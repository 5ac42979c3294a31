"""The ledger as MLflow shows it, and nothing else."""
