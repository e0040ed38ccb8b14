"""What the drivers share: stores, files, batches, search, clusters, metrics, processes. Knows no model."""
