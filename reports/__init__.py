"""Records in, verdict out: one HTML page and one JSON object. Never imports torch, ray or mlflow."""
