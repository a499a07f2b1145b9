"""One thread for the tests and for what they start: models this small are slower on more, and tests may run side by
side (`pytest -n`)."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when it is imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"
