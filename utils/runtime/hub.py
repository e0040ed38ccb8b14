"""What is fetched by its name from the Hugging Face hub."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils import logging


@contextmanager
def quiet_retries() -> Iterator[None]:
    """Hides what the hub's library says of each attempt to reach it; where all fail, an exception says so once."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
