"""What mining consists of: encoding, search, negatives, clusters, metrics."""
