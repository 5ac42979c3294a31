"""What a sweep showed: correlations, figures, reports, and a view of the ledger in MLflow."""
