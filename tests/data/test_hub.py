"""Names on the hub where it is not reached: the cache alone is read, without further attempts."""

from __future__ import annotations

import time

import pytest
from huggingface_hub import constants, utils

from minialbert.data import hub
from minialbert.data.hub import sparing_attempts
from minialbert.data.tokenizers import load_tokenizer
from minialbert.errors import UserError
from minialbert.method.encoders import load_encoder_config


@pytest.fixture
def asked(monkeypatch):
    """A machine without a network, and the addresses that were asked."""
    addresses = []

    class Session:
        reached = False

        def head(self, address, timeout):
            addresses.append(address)
            if not self.reached:
                raise OSError(-2, "Name or service not known")

    hub._ask.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(utils, "get_session", Session)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("another attempt"))
    yield addresses, Session
    hub._ask.cache_clear()


@pytest.mark.parametrize("load", [load_tokenizer, load_encoder_config])
def test_a_hub_that_is_not_reached_is_asked_once(load, asked):
    with pytest.raises(UserError, match="nobody-at-all/nothing"):
        load("nobody-at-all/nothing")
    assert asked[0] == [constants.ENDPOINT]
    assert not constants.HF_HUB_OFFLINE  # the network may come back


def test_what_is_a_folder_or_a_hub_that_answers_is_read_as_ever(asked, tmp_path):
    addresses, session = asked
    with sparing_attempts(tmp_path):
        assert not constants.HF_HUB_OFFLINE and not addresses
    with pytest.raises(KeyError), sparing_attempts("some/name"):
        assert constants.HF_HUB_OFFLINE
        raise KeyError
    assert not constants.HF_HUB_OFFLINE
    session.reached = True
    for _ in range(2):
        with sparing_attempts("some/name"):
            assert not constants.HF_HUB_OFFLINE
    assert addresses == [constants.ENDPOINT] * 2  # once without a network, once with it


@pytest.mark.parametrize("name", ["nope/", "./nope", "/nope/tokenizer"])
def test_what_is_written_as_a_folder_is_not_looked_for_on_the_hub(name, asked):
    with pytest.raises(UserError, match="there is no such directory"):
        load_tokenizer(name)
    assert not asked[0]
