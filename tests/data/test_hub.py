"""Names on the hub where its host has no address: the cache alone is read, without attempts."""

from __future__ import annotations

import socket
import time

import pytest
from huggingface_hub import constants

from minialbert.data import hub
from minialbert.data.hub import sparing_attempts
from minialbert.data.tokenizers import load_tokenizer
from minialbert.errors import UserError
from minialbert.method.encoders import load_encoder_config


@pytest.fixture
def asked(monkeypatch):
    """A machine without a network or a proxy, and the hosts whose addresses were asked for."""
    hosts = []

    def none(host, *_rest, **_named):
        hosts.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", none)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("another attempt"))
    return hosts


@pytest.mark.parametrize("load", [load_tokenizer, load_encoder_config])
def test_a_host_without_an_address_is_asked_for_once(load, asked):
    with pytest.raises(UserError, match="nobody-at-all/nothing"):
        load("nobody-at-all/nothing")
    assert asked == [constants.ENDPOINT.removeprefix("https://")]
    assert not constants.HF_HUB_OFFLINE  # the network may come back


def test_who_needs_no_address_or_has_one_reads_as_ever(asked, monkeypatch, tmp_path):
    with sparing_attempts(tmp_path):
        assert not constants.HF_HUB_OFFLINE and not asked
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "http://proxy:3128"})
    with sparing_attempts("some/name"):
        assert not constants.HF_HUB_OFFLINE and not asked
    monkeypatch.setattr(hub, "getproxies", dict)
    with pytest.raises(KeyError), sparing_attempts("some/name"):
        assert constants.HF_HUB_OFFLINE
        raise KeyError
    assert not constants.HF_HUB_OFFLINE
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: ["an address"])
    with sparing_attempts("some/name"):
        assert not constants.HF_HUB_OFFLINE
