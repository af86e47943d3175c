"""What `flwr run` logs of an error of the user's input."""

import io
import logging

from common.errors import ConfigError
from server.app import OneLine


def log_of(error):
    stream = io.StringIO()
    logger = logging.Logger("flwr")
    logger.addHandler(logging.StreamHandler(stream))
    logger.addFilter(OneLine())
    try:
        raise error
    except Exception as caught:
        logger.error("%s raised an exception", "ServerApp", exc_info=caught)
    return stream.getvalue()


def test_an_error_of_the_users_input_is_one_line():
    assert log_of(ConfigError("a must be 1\nb must be 2")) == "a must be 1; b must be 2\n"


def test_any_other_error_keeps_its_traceback():
    text = log_of(KeyError("x"))
    assert text.startswith("ServerApp raised an exception\nTraceback")
