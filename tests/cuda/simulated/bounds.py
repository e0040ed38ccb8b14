"""How often a training step may make the host wait, launch and send, at most: lower them where a change does better.

Of a BERT of 3 layers, two of them watched, 5 clusters, one batch and a GPU without grouped products. A launch is an
operation that is no view (`tests.cuda.device`).
"""

import torch

WAITS = 1
LAUNCHES = {
    ("erm", torch.float32): 710,
    ("erm", torch.bfloat16): 510,
    ("erm", torch.float16): 520,
    ("idro", torch.float32): 830,
    ("idro", torch.bfloat16): 640,
    ("idro", torch.float16): 650,
}

COLLECTIVES_OF_TWO = 6  # of a process that is one of two

# Of GroupGradients.collect by one of 8 processes, for 3 layers of BERT-base: launches and collectives, by how many of
# the 50 groups each process has: 64 random rows are of 36. Of 41 to 49 it takes 325 launches.
COLLECT = {11: (230, 5), 36: (300, 20), 50: (260, 20)}
