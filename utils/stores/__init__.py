"""What lies on the disk: token and embedding stores, episodes, checkpoints, judgments, files and locks."""
