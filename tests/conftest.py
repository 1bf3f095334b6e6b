import os

# Set before anything imports the hub's client: tests reach no network, and a model that is not there fails at once.
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of notebooks that tests execute

import torch

# Tiny models gain nothing from threads that wait for each other.
torch.set_num_threads(1)
