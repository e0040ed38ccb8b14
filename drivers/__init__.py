"""One entry script a step of the method: arguments, calls to the parts, files."""
