"""How a script lives: processes, signals, precision, memory, logs, errors, arguments."""
