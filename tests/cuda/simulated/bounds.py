"""How often a training step may make the host wait, launch and send, at most: lower them where a change does better.

Of a BERT of 3 layers, two of them watched, 5 clusters, one batch and a GPU without grouped products. A launch is an
operation that is no view (`tests.cuda.device`).
"""

import torch

WAITS = {torch.float32: 1, torch.bfloat16: 1, torch.float16: 2}  # the scaler asks by itself
LAUNCHES = {
    ("erm", torch.float32): 710,
    ("erm", torch.bfloat16): 510,
    ("erm", torch.float16): 520,
    ("idro", torch.float32): 970,
    ("idro", torch.bfloat16): 770,
    ("idro", torch.float16): 780,
}

# Of a process that is one of two.
WAITS_OF_TWO = 3
COLLECTIVES_OF_TWO = 90
