"""How fast the code is: contenders in turn in one run, ratios of medians, peak memory."""
