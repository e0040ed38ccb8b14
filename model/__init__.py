"""What is learnt: encoders, the pairwise loss, the DRO objectives and the optimizers."""
